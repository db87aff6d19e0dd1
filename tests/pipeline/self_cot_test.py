"""The stream of self-CoTs: chunks, hosts, stops, counts and copies."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

from etils import epath
import numpy as np
import pytest

from tests.pipeline.fake_engine import Engine
from tract_jax import types
from tract_jax.data import manifest
from tract_jax.data import self_cot as self_cot_data
from tract_jax.parallel import agreement
from tract_jax.pipeline import (
  build,
  finetune,
  methods,
  read_data,
  sample,
  self_cot,
)
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import run as run_lib
from tract_jax.training import loop

PROVENANCE = {'sampler': 'a'}
CHUNK_SIZE, NUM_COTS, NUM_ROWS = 3, 2, 10


def make_setup(**sampling):
  overrides = {
    'data': {
      'source': 'synthetic',
      'synthetic_train': NUM_ROWS,
      'synthetic_test': 1,
      'validation_fraction': 0.2,
      'max_length': 64,
    },
    'model': {'lora_rank': 0, 'hidden_size': 16, 'num_layers': 1},
    'sampling': {
      'chunk_size': CHUNK_SIZE,
      'num_self_cots': NUM_COTS,
      'max_new_tokens': 8,
      **sampling,
    },
  }
  return build.build(config_lib.merge(overrides))


@pytest.fixture(scope='module')
def setup():
  return make_setup()


@pytest.fixture(scope='module')
def data(setup):
  return read_data.read_data(setup)


def sampler_of(engine, should_stop=lambda: False):
  sampler = sample.Sampler(engine.setup, should_stop)
  sampler.__dict__['_cot_engine'] = engine
  return sampler


def write(folder, engine, data, should_stop=lambda: False, seed=7, **host):
  self_cot.sample_self_cots(
    sampler_of(engine, should_stop),
    lambda: 'params',
    {'train': data.train, 'validation': data.validation},
    epath.Path(folder),
    PROVENANCE,
    seed,
    'self-CoTs',
    **host,
  )


def read(folder):
  return self_cot_data.read_self_cots(folder, PROVENANCE)


def files(folder):
  names = ('self_cots.jsonl', 'dataset.json')
  paths = [*(folder / n for n in names), *(folder / 'llama_factory').iterdir()]
  return {path.name: path.read_bytes() for path in paths}


@pytest.fixture(scope='module')
def whole(setup, data, tmp_path_factory):
  folder = tmp_path_factory.mktemp('whole')
  write(folder, Engine(setup), data)
  return folder


def test_another_seed_has_other_cots(setup, data, whole, tmp_path):
  write(tmp_path, Engine(setup), data, seed=8)
  assert files(tmp_path) != files(whole)


def test_chunks_are_of_similar_length_with_ties_by_index():
  found = self_cot.plan_chunks([5, 3, 9, 3, 5, 1, 3], 3)
  assert found == [[5, 1, 3], [6, 0, 4], [2]]


def test_every_row_has_its_cots_and_the_order_of_the_data(whole, data):
  samples, _ = read(whole)
  rows = [*data.train, *data.validation]
  assert [(s.example_id, s.cot_index) for s in samples] == [
    (e.example_id, c) for e in rows for c in range(NUM_COTS)
  ]


def test_requests_stand_by_length_and_cots_of_a_row_together(
  setup, data, tmp_path
):
  engine = Engine(setup)
  write(tmp_path, engine, data)
  rows = {e.example_id: e for e in [*data.train, *data.validation]}
  assert engine.asked[::2] == [(name, 0) for name, _ in engine.asked[1::2]]
  lengths = [
    len(setup.tokenizer.prompt_ids(rows[name].prompt))
    for name, _ in engine.asked
  ]
  assert lengths == sorted(lengths)
  assert len(engine.asked) == len(rows) * NUM_COTS


def test_a_chunk_is_written_while_others_are_sampled(setup, data, tmp_path):
  seen = []

  def look(done):
    seen.append((tmp_path / '0').exists())

  write(tmp_path, Engine(setup, on_request=look), data)
  # The six of the first chunk are among the first twelve.
  assert not any(seen[:6])
  assert all(seen[12:])


@pytest.mark.parametrize('num_calls', [1, 9, 13, 19])
def test_stopped_within_a_chunk_goes_on_and_ends_the_same(
  setup, data, whole, tmp_path, num_calls
):
  asked = iter(range(100))

  def stop():
    return next(asked) >= num_calls

  with pytest.raises(loop.Interrupted):
    write(tmp_path, Engine(setup), data, stop)
  assert not (tmp_path / 'dataset.json').exists()
  done = [p.name for p in tmp_path.iterdir() if p.name.isdigit()]
  stamps = {n: (tmp_path / n).stat().st_mtime_ns for n in done}
  engine = Engine(setup, order=1)
  write(tmp_path, engine, data)
  # What was finished is not asked for again.
  finished = len(done) * CHUNK_SIZE * NUM_COTS
  assert len(engine.asked) == NUM_ROWS * NUM_COTS - finished
  assert {n: (tmp_path / n).stat().st_mtime_ns for n in done} == stamps
  assert files(tmp_path) == files(whole)
  # Nor are there fewer slots for it, which would change its products' order.
  assert engine.in_all == [NUM_ROWS * NUM_COTS]


def test_hosts_do_their_own_chunks_and_the_last_one_finishes(
  setup, data, whole, tmp_path
):
  engines = [Engine(setup, order) for order in (3, 4)]
  write(tmp_path, engines[1], data, process_index=1, process_count=2)
  assert not (tmp_path / 'dataset.json').exists()
  with pytest.raises(types.InputError, match='2 of 4 chunks are missing'):
    read(tmp_path)
  # A host that comes back waits for nobody and does nothing twice.
  again = Engine(setup)
  write(tmp_path, again, data, process_index=1, process_count=2)
  assert not again.asked
  write(tmp_path, engines[0], data, process_index=0, process_count=2)
  assert files(tmp_path) == files(whole)
  assert not set(engines[0].asked) & set(engines[1].asked)
  assert engines[0].in_all == engines[1].in_all == [NUM_ROWS * NUM_COTS]
  assert len(engines[0].asked + engines[1].asked) == NUM_ROWS * NUM_COTS


def test_a_lost_or_temporary_chunk_is_sampled_again(
  setup, data, whole, tmp_path
):
  folder = shutil.copytree(whole, tmp_path / 'copy')
  shutil.rmtree(folder / '2')
  (folder / '2.orbax-checkpoint-tmp').mkdir()
  with pytest.raises(types.InputError, match='1 of 4 chunks are missing'):
    read(folder)
  engine = Engine(setup, order=5)
  write(folder, engine, data)
  assert len(engine.asked) == CHUNK_SIZE * NUM_COTS
  assert read(folder)[1] == read(whole)[1]


def test_killed_before_it_was_finished_is_only_finished(
  setup, data, whole, tmp_path
):
  folder = shutil.copytree(whole, tmp_path / 'copy')
  shutil.rmtree(folder / 'llama_factory')
  for name in ('self_cots.jsonl', 'dataset.json'):
    (folder / name).unlink()
  engine = Engine(setup)
  write(folder, engine, data)
  assert not engine.asked
  assert files(folder) == files(whole)


def write_slowly(folder):
  """Of a process that is killed: begins, samples for a second, and waits."""
  setup = make_setup()
  data = read_data.read_data(setup)
  print('begins', flush=True)
  engine = Engine(setup, on_request=lambda done: time.sleep(0.03))
  write(folder, engine, data)
  time.sleep(60)


@pytest.mark.slow
def test_killed_at_any_moment_ends_the_same(setup, data, whole, tmp_path):
  code = f'from {__name__} import write_slowly as w; import sys; w(sys.argv[1])'
  rng = np.random.default_rng(0)
  folders = [tmp_path / '0']
  num_amid = 0
  for _ in range(10):
    if (folders[-1] / 'dataset.json').exists():
      folders.append(tmp_path / str(len(folders)))
    with subprocess.Popen(
      [sys.executable, '-c', code, str(folders[-1])],
      cwd=pathlib.Path(__file__).parents[2],
      stdout=subprocess.PIPE,
      text=True,
    ) as process:
      assert process.stdout is not None
      while process.stdout.readline() not in ('begins\n', ''):
        pass
      time.sleep(rng.uniform(0, 2.0))
      process.kill()
    assert process.returncode == -signal.SIGKILL
    num_chunks = sum(path.name.isdigit() for path in folders[-1].glob('*'))
    num_amid += num_chunks > 0 and not (folders[-1] / 'dataset.json').exists()
  assert num_amid
  for folder in folders:
    write(folder, Engine(setup), data)
    assert files(folder) == files(whole)


def test_figures_of_the_sampling_are_one_line(whole):
  (line,) = (whole / 'metrics.jsonl').read_text().splitlines()
  figures = json.loads(line)
  assert figures['step'] == 4
  assert figures['num_done'] == figures['num_marker'] == NUM_ROWS * NUM_COTS
  assert figures['num_rows'] == NUM_ROWS
  assert (figures['prefill_tokens'], figures['prefill_secs']) == (100, 0.5)
  assert (figures['decode_tokens'], figures['decode_secs']) == (40, 2.0)
  assert (figures['slot_steps'], figures['slot_use']) == (50, 0.8)


def test_copy_for_llama_factory_has_the_tokens_of_stage_2(setup, data, whole):
  folder = whole / 'llama_factory'
  info = json.loads((folder / 'dataset_info.json').read_text())
  assert list(info) == ['self_cots_train', 'self_cots_validation']
  samples, _ = read(whole)
  for kind, examples in (
    ('train', data.train),
    ('validation', data.validation),
  ):
    name = info[f'self_cots_{kind}']['file_name']
    rows = json.loads((folder / name).read_text())
    encoded = read_data.encode_for_stage(setup, examples, 'self', samples, kind)
    assert 0 < len(rows) == len(encoded) < NUM_COTS * len(examples)
    for row, wanted in zip(rows, encoded, strict=True):
      tokens = [
        *setup.tokenizer.prompt_ids(row['instruction']),
        *setup.tokenizer.encode(row['output'])[0],
        setup.tokenizer.eos_id,
      ]
      assert tokens == [*wanted.inputs, wanted.targets[-1]]


def test_counts_are_those_of_the_dataset(setup, whole):
  config = config_lib.merge({'methods': ('ce', 'tract', 'tract_mixed')})
  (counts,) = self_cot.read_counts(config, lambda owner, seed: whole)
  samples, _ = read(whole)
  usable = [s for s in samples if s.is_usable]
  assert (counts.method, counts.seed) == ('tract', 0)
  assert (counts.num_examples, counts.num_samples) == (NUM_ROWS, len(samples))
  assert 0 < counts.num_unusable == len(samples) - len(usable)
  assert counts.num_unusable == counts.finish_reasons['length']
  without = NUM_ROWS - len({s.example_id for s in usable})
  assert counts.num_without_usable == without
  assert counts.num_retries == sum(s.num_retries for s in samples) > 0
  none = self_cot.read_counts(config, lambda owner, seed: whole / 'none')
  assert none == []


def lines_of_refusal(workdir, monkeypatch, *, checkpoint='a', **changes):
  """What a run says on the self-CoTs that are in the workdir already."""
  setup = make_setup(**changes.pop('sampling', {}))
  config = setup.config.copy_and_resolve_references()
  for key, value in changes.pop('data', {}).items():
    config.data[key] = value
  setup = build.Setup(**{**vars(setup), 'config': config, **changes})
  stage = workdir / 'stage'
  manifest.write_manifest(stage, 's', {}, {'params_digest': checkpoint})
  stop = agreement.Agreement(lambda: False)
  run = run_lib.Run(setup, read_data.read_data(setup), workdir, stop)
  run._sampler = sampler_of(Engine(setup))
  monkeypatch.setattr(run._weights, 'to_sample', lambda stage, seed: 'params')
  objective = finetune.StageRun('', stage, 0, None, True, {})
  monkeypatch.setattr(run, 'stage', lambda *unused: objective)
  try:
    run.self_cots('tract', 0)
  except types.InputError as error:
    place = f'{run.self_cot_folder("tract", 0)}: '
    return [line.removeprefix(place) for line in str(error).splitlines()][:-1]
  return []


def test_other_checkpoint_tokenizer_data_or_sampling_is_refused_by_name(
  tmp_path, monkeypatch, setup
):
  def refusal(**changes):
    return lines_of_refusal(epath.Path(tmp_path), monkeypatch, **changes)

  assert refusal() == []
  speed = {'slots': 3, 'steps_per_call': 5, 'prefill_tokens': 9}
  assert refusal(sampling=speed) == []
  assert refusal(checkpoint='b') == ['sampler: recorded "a", expected "b"']
  for key, value, was in (
    ('temperature', 0.5, '1.0'),
    ('top_p', 0.5, '0.9'),
    ('top_k', 4, '0'),
    ('repetition_penalty', 1.5, '1.03'),
    ('max_new_tokens', 9, '8'),
    ('max_retries', 2, '0'),
    ('num_self_cots', 3, '2'),
  ):
    (line,) = refusal(sampling={key: value})
    assert line == f'sampling.{key}: recorded {was}, expected {value}'
  (line,) = refusal(sampling={'unfinished': 'drop'})
  assert line == 'sampling.unfinished: recorded "complete", expected "drop"'
  lines = refusal(data={'synthetic_seed': 1})
  assert [line.split(':')[0] for line in lines] == ['train', 'validation']
  tokenizer = type(setup.tokenizer)(
    setup.tokenizer.hf, system_prompt='Be fair.'
  )
  (line,) = refusal(tokenizer=tokenizer)
  assert line.startswith('tokenizer: recorded "')


def test_methods_that_share_self_cots_are_those_that_use_them():
  users = [name for name in methods.METHODS if methods.uses_self_cots(name)]
  assert users == ['tract', 'tract_ce', 'tract_warm', 'tract_mixed']
