"""Artefacts of a run and of strangers, changed as JSON or as bytes."""

import contextlib
import dataclasses
import io
import json

from etils import epath
from hypothesis import strategies as st

from tests.fuzz import properties, strategies
from tests.models import hf_config_test
from tests.pipeline import judge_file_test
from tract_jax import types
from tract_jax.data import manifest
from tract_jax.evaluation import page, report_writing
from tract_jax.models import hf_config, json_file, peft_adapter
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import (
  evaluate,
  judge_file,
  other_systems,
  predicted,
  prediction_files,
  prediction_rows,
  prepared_folder,
  self_cot,
)
from tract_jax.pipeline import methods as methods_lib
from tract_jax.text import prompts

_FINGERPRINT = {'seed': 0, 'model.dtype': 'float32', 'mesh': {'data': [1, 2]}}
_MANIFEST = {
  'schema': manifest.SCHEMA,
  'kind': 'stage',
  'finished': True,
  'fingerprint': _FINGERPRINT,
  'results': {'params_digest': 'ab', 'num_rows': 7, 'loss': 0.5},
}


@properties.fuzzed(8, content=strategies.sealed_files(_MANIFEST))
def test_manifest(content):
  folder = properties.file_of(content, 'stage/manifest.json').parent
  read = manifest.read_manifest(folder)
  said = json.loads(content.decode('utf-8-sig'))
  assert manifest.sealed(read) == said
  assert manifest.read_results(folder) == read['results']
  is_done = manifest.is_current(folder, 'stage', _FINGERPRINT)
  assert manifest.matches(folder, 'stage', _FINGERPRINT) == is_done
  assert is_done == (
    read['finished']
    and read['kind'] == 'stage'
    and manifest.digest_of(read['fingerprint'])
    == manifest.digest_of(_FINGERPRINT)
  )


@properties.fuzzed(
  5,
  content=strategies.json_files(
    judge_file_test.CONTENT,
    judge_file_test.CONTENT
    | {'score': {'grid': [1, 2], 'format': '{:g}', 'marker': 'Score:'}},
  ),
)
def test_judge_file(content):
  folder = properties.file_of(content, 'judge/judge.json').parent
  read = judge_file.read(folder)
  said = json.loads(content.decode('utf-8-sig'))
  for key, attribute in judge_file._KEYS.items():
    section, name = key.split('.')
    if name in said.get(section, {}):
      value = said[section][name]
      value = tuple(value) if isinstance(value, list) else value
      assert getattr(read, attribute) == value
  prompts.make_score_grid(read.grid, read.score_format)


_ADAPTER = {
  'peft_type': 'LORA',
  'task_type': 'CAUSAL_LM',
  'r': 4,
  'lora_alpha': 8.5,
  'use_rslora': False,
  'target_modules': ['q_proj', 'v_proj'],
  'base_model_name_or_path': 'org/base',
  'revision': None,
  'bias': 'none',
  'init_lora_weights': True,
}


@properties.fuzzed(
  5,
  content=strategies.json_files(
    _ADAPTER,
    _ADAPTER | {'target_modules': 'all-linear'},
    _ADAPTER | {'target_modules': r'.*\.(q|v)_proj'},
    _ADAPTER | {'target_modules': '((a*)*)*b'},
  ),
)
def test_adapter_config(content):
  folder = properties.file_of(content, 'adapter/adapter_config.json').parent
  read = peft_adapter.read_config(folder)
  said = json.loads(content.decode('utf-8-sig'))
  assert read.rank == said['r'] and read.scaling == read.alpha / read.rank
  assert read.lora.targets


@properties.fuzzed(
  5,
  content=strategies.json_files(
    *hf_config_test.MODELS.values(),
    hf_config_test.LLAMA | {'rope_scaling': hf_config_test.LLAMA3},
    hf_config_test.LLAMA | {'rope_scaling': hf_config_test.YARN},
    hf_config_test.LLAMA
    | {'rope_scaling': {'rope_type': 'linear', 'factor': 1e300}},
    hf_config_test.QWEN3 | hf_config_test.WINDOWED,
  ),
)
def test_model_config(content):
  fields = json_file.read(properties.file_of(content, 'config.json'))
  config = hf_config.config_from_hf(fields)
  assert config.longest_row >= config.max_position_embeddings > 0
  written = hf_config.config_to_hf(config)
  assert hf_config.config_from_hf(written) == config


_SUMMARY = {
  'schema': 3,
  'digest': 'ab',
  'num_chunks': 2,
  'num_samples': 4,
  'num_examples': 4,
  'finish_reasons': {'marker': 3, 'length': 1},
  'num_retries': 0,
  'num_unusable': 0,
  'without_usable': ['a'],
  'provenance': {'seed': 0},
}


@properties.fuzzed(2, content=strategies.sealed_files(_SUMMARY))
def test_summary_of_self_cots(content):
  folder = epath.Path(
    properties.file_of(content, 'self_cot/dataset.json').parent
  )
  config = config_lib.merge({'methods': ('tract',), 'seeds': (0,)})
  (counts,) = self_cot.read_counts(config, lambda method, seed: folder)
  said = json.loads(content.decode('utf-8-sig'))
  assert counts.num_without_usable == len(said['without_usable'])
  assert counts.num_samples == said['num_samples']


@properties.fuzzed(
  2,
  content=strategies.json_files(
    {'schema': 1, 'files': {'x': {'bytes': 1, 'sha256': 'ab'}}},
    {'schema': 1, 'files': {'../x': {'bytes': 1, 'sha256': 'ab'}}},
    {'schema': 1, 'files': {'manifest.json': {'bytes': 1, 'sha256': ''}}},
  ),
)
def test_manifest_of_a_prepared_folder(content):
  folder = properties.file_of(content, 'prepared/manifest.json').parent
  problem = prepared_folder.damage(folder, with_digests=True)
  # No files: nothing is damaged.
  assert problem or not json.loads(content)['files']


GRID = prompts.make_score_grid([1, 2, 3])
TRACT = methods_lib.METHODS['tract']
_PREDICTION = {
  'example_id': 'a',
  'seed': 0,
  'score': 2.0,
  'prediction': 2.5,
  'distributions': [[0.25, 0.5, 0.125], None],
  'decoded': [2.0, None],
  'cots': ['It is.', f'It. {prompts.MARKER}'],
  'finish_reasons': ['marker', 'length'],
  'invalid_reason': None,
  'category': '',
  'human_score': None,
  'pair_id': '',
  'cot_tokens': [4, 3],
}


@st.composite
def _prediction_files(draw, least_rows: int = 0) -> bytes:
  rows = []
  for number in range(draw(st.integers(least_rows, 3))):
    row = _PREDICTION | {
      'example_id': str(number),
      'score': draw(st.sampled_from([1, 2.5, 3.0, None])),
      'cots': [draw(strategies.texts(surrogates=True)), ''],
    }
    if draw(st.integers(0, 2)) == 0:
      row = draw(strategies.with_changes(row))
    rows.append(json.dumps(row).encode())
  content = b'\n'.join(rows) + b'\n'
  if draw(st.integers(0, 2)) == 0:
    content = draw(strategies.damaged(content))
  return content


@properties.fuzzed(6, content=_prediction_files())
def test_predictions(content):
  path = epath.Path(properties.file_of(content, 'bench.jsonl'))
  rows = prediction_files.read_predictions(path)
  lines = content.decode('utf-8-sig').rstrip().split('\n')
  written = [
    {'category': '', 'human_score': None, 'pair_id': '', 'cot_tokens': []}
    | json.loads(line)
    for line in lines
  ]
  for row in written:
    for i, probs in enumerate(row['distributions']):
      if probs and any(p != p for p in probs):
        row['distributions'][i] = None
  assert [dataclasses.asdict(row) for row in rows] == written


# Each number of rows is compiled anew.
@properties.fuzzed(1, few=10, content=_prediction_files(least_rows=3))
def test_figures_of_predictions(content):
  path = epath.Path(properties.file_of(content, 'bench.jsonl'))
  rows = prediction_files.read_predictions(path)
  config = config_lib.merge(
    {
      'methods': ('tract',),
      'num_cots': 2,
      'predictors': ('rail', 'rail_normalized', 'decode', 'median'),
      'evaluation.num_resamples': 100,
    }
  )
  prediction_rows.check_rows(config, GRID, TRACT, path, rows)
  rated = [row for row in rows if row.score is not None] or rows
  found = predicted.Found()
  predicted.add_file(
    *(found, config, GRID, 'tract', TRACT, 'bench', rated, 1, {})
  )
  made = evaluate._make_report(config, GRID, found.systems, methods_lib.METHODS)
  figures = json.loads(report_writing.metrics_json(made))['rows']
  num_rows = sum(row.seed == 0 for row in rated)
  assert {row['num_examples'] for row in figures} == {num_rows}
  assert report_writing.report_markdown(made)
  judged = page.Judged(GRID, {'bench': ()}, found.own, found.groups)
  assert page.report_html(made, judged).encode()


_RELEASE = {
  'probs': [[0.5, 0.25, 0.125], [0.0, 0.0, 1.0]],
  'cot_outputs': ['It is. So the overall score is ', ''],
  'labels': [2.5, 3.0],
  'args': {'seed': 42, 'n_cot': 1},
}
_TWICE = _RELEASE | {
  'probs': _RELEASE['probs'] * 2,
  'cot_outputs': [['a', 'b'], ['c', 'd']],
}
_OURS = [
  _PREDICTION | {'example_id': name, 'score': score}
  for name, score in (('a', 2.5), ('b', 3.0))
]


@properties.fuzzed(
  4,
  content=st.one_of(
    strategies.json_files(_RELEASE, _TWICE, _RELEASE | {'args': None}),
    _prediction_files(),
    st.lists(strategies.texts(), min_size=2, max_size=2).map(
      lambda cots: b'\n'.join(
        json.dumps(row | {'cots': [cot, '']}).encode()
        for row, cot in zip(_OURS, cots, strict=True)
      )
    ),
  ),
)
def test_predictions_of_other_systems(content):
  path = properties.file_of(content, 'other.json')
  examples = [types.Example('a', 'p', 2.5), types.Example('b', 'p', 3.0)]
  config = config_lib.merge({'evaluation.others': f'them/bench={path}'})
  with contextlib.redirect_stdout(io.StringIO()):
    (found,) = other_systems.read(config, GRID, {'bench': examples})
  scores = {e.example_id: e.score for e in examples}
  num_cots = {len(row.distributions) for row in found.rows}
  assert len(num_cots) == 1 and num_cots != {0}
  for file in found.files:
    rows = [row for row in found.rows if row.seed == file.seed]
    assert {row.example_id: row.score for row in rows} == scores
    assert len(rows) == file.num_examples == 2
  for row in found.rows:
    for probs in row.distributions:
      assert probs is None or len(probs) == 3 and sum(probs) < 1.02
