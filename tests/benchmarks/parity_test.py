"""Training beside PyTorch: agreement is seen, and so is a broken term."""

import dataclasses
from xml.etree import ElementTree

import numpy as np
import pytest

from tract_jax.data import encoded_examples, synthetic

pytest.importorskip('torch')
pytest.importorskip('peft')
parity = pytest.importorskip('benchmarks.parity')
parity_cases = pytest.importorskip('benchmarks.parity_cases')
parity_jax = pytest.importorskip('benchmarks.parity_jax')
judge = pytest.importorskip('benchmarks.pytorch.judge')
rows = pytest.importorskip('benchmarks.pytorch.rows')

NUM_STEPS = 4


@pytest.fixture(scope='module')
def cases(tmp_path_factory):
  """{(family, objective, CoT source): case}."""
  folder = tmp_path_factory.mktemp('models')
  found = {}
  for case in parity_cases.tiny_cases(folder):
    small = {**case.settings, 'data.synthetic_train': 24}
    words = tuple(case.name.removeprefix('tiny-').split())
    found[words] = dataclasses.replace(case, settings=small)
  return found


@pytest.mark.parametrize(
  'words',
  [
    ('llama', 'ce', 'none'),
    ('llama', 'raft', 'none'),
    ('mistral', 'cot_raft', 'annotator'),
    ('llama', 'cot_raft', 'annotator', 'lambda', '5'),
    ('llama', 'cot_raft', 'self'),
  ],
)
def test_both_sides_agree(cases, words, tmp_path):
  found = parity.compare(cases[words], NUM_STEPS, tmp_path)
  assert len(found.adapter_distances) == NUM_STEPS
  assert found.problems == []
  # They were trained: the loss is another one, and so are the adapters.
  assert np.ptp(found.ours['loss']) > 1e-3
  assert 0 < found.adapter_distances[-1]
  text = parity.table(found, every=2)
  assert text.splitlines()[0] == f'tiny-{" ".join(words)}'
  assert len(text.splitlines()) == 6
  titles = [panel.title.split()[0] for panel in parity.panels(found)]
  assert titles == ['loss', 'ce', 'score_mse', 'grad_norm', 'adapters']


def _broken(monkeypatch, change):
  """Their loss, of a changed batch and objective."""
  right = judge.loss_parts
  monkeypatch.setattr(
    judge, 'loss_parts', lambda model, *given: right(model, *change(*given))
  )


def _with_digit(batch, objective):
  other = not objective.ce_includes_score
  return batch, dataclasses.replace(objective, ce_includes_score=other)


def _shifted(batch, objective):
  shifted = np.roll(batch.score_mask, -1, axis=1)
  scores = np.roll(batch.scores, -1, axis=1)
  return dataclasses.replace(
    batch, score_mask=shifted, scores=scores
  ), objective


@pytest.mark.parametrize(
  ('change', 'part'), [(_with_digit, 'ce'), (_shifted, 'score_mse')]
)
def test_a_broken_term_is_seen(cases, change, part, monkeypatch, tmp_path):
  _broken(monkeypatch, change)
  case = cases['llama', 'cot_raft', 'annotator']
  found = parity.compare(case, 2, tmp_path)
  assert any(f'{case.name}: {part} of' in line for line in found.problems)


def _our_objective(monkeypatch, **changes):
  right = parity_jax.objective_lib.make_objective

  def wrong(config, name):
    return dataclasses.replace(right(config, name), **changes)

  monkeypatch.setattr(parity_jax.objective_lib, 'make_objective', wrong)


def _digit_is_counted(monkeypatch):
  _our_objective(monkeypatch, ce_includes_score=True)


def _other_weights(monkeypatch):
  _our_objective(monkeypatch, ce_weight=0.25, score_weight=3.0)


def _our_rows(monkeypatch, change):
  right = encoded_examples.record

  def wrong(tokens, **given):
    row = right(tokens, **given)
    return dataclasses.replace(row, **change(row))

  monkeypatch.setattr(encoded_examples, 'record', wrong)


def _score_stands_earlier(monkeypatch):
  _our_rows(
    monkeypatch, lambda row: {'score_mask': np.roll(row.score_mask, -1)}
  )


def _prompt_is_learnt(monkeypatch):
  def longer(row):
    first = int(row.cot_mask.argmax())
    mask = row.cot_mask.copy()
    mask[first - 1] = True
    return {'cot_mask': mask}

  _our_rows(monkeypatch, longer)


def _end_is_not_learnt(monkeypatch):
  def shorter(row):
    return {
      'cot_mask': row.cot_mask
      & (np.arange(len(row.inputs)) != len(row.inputs) - 1)
    }

  _our_rows(monkeypatch, shorter)


def _ours_knows_no_lambda(monkeypatch):
  monkeypatch.setattr(
    parity_jax.objective_lib, 'score_weight', lambda config, value: 1.0
  )


def _theirs_knows_no_lambda(monkeypatch):
  right = rows.objective
  monkeypatch.setattr(
    rows,
    'objective',
    lambda *args, **given: right(*args, **(given | {'lambda_value': 1.0})),
  )


@pytest.mark.parametrize(
  ('mutation', 'part'),
  [
    (_digit_is_counted, 'ce'),
    (_other_weights, 'loss'),
    (_score_stands_earlier, 'score_mse'),
    (_prompt_is_learnt, 'ce'),
    (_end_is_not_learnt, 'ce'),
    (_ours_knows_no_lambda, 'loss'),
    (_theirs_knows_no_lambda, 'loss'),
  ],
)
def test_a_mistake_in_a_definition_is_seen(
  cases, mutation, part, monkeypatch, tmp_path
):
  mutation(monkeypatch)
  case = cases['llama', 'cot_raft', 'annotator', 'lambda', '5']
  found = parity.compare(case, 1, tmp_path)
  assert any(f'{case.name}: {part} of' in line for line in found.problems)


def test_masks_of_rows_by_hand():
  tokens = np.array([[5, 6, 7, 8, 2, 1], [5, 6, 3, 1, 0, 0]])
  objective = judge.Objective(1.0, 1.0, False, (2, 3), (10.0, 20.0))
  given = {'prompts': [[5], [5, 6], [6]], 'end_id': 1, 'of': objective}
  inputs, targets = tokens[:, :-1], tokens[:, 1:]
  is_token = np.array([[True] * 5, [True] * 3 + [False] * 2])
  found = rows.batch(inputs, targets, is_token, **given)
  # The longest prompt counts: [5, 6], not [5].
  assert found.cot_mask.tolist() == [
    [False, True, True, False, True],
    [False, False, True, False, False],
  ]
  assert found.score_mask.nonzero()[0].tolist() == [0, 1]
  assert found.score_mask.nonzero()[1].tolist() == [3, 1]
  assert found.scores[found.score_mask].tolist() == [10.0, 20.0]
  assert not found.scores[~found.score_mask].any()
  for wrong in ({'prompts': [[6]]}, {'end_id': 0}):
    with pytest.raises(ValueError, match='row 0'):
      rows.batch(inputs, targets, is_token, **(given | wrong))


@pytest.mark.parametrize(
  ('method', 'weights'),
  [
    ('ce', (1.0, 0.0, True)),
    ('raft', (0.0, 1.0, False)),
    ('cot_raft', (1.0, 5.0, False)),
  ],
)
def test_weights_of_a_method(method, weights):
  tokenizer = synthetic.make_tokenizer()
  found = rows.objective(
    tokenizer,
    method,
    lambda_value=5.0,
    with_cot=True,
    score_values=(1.0, 2.0),
  )
  assert weights == (
    found.ce_weight,
    found.score_weight,
    found.ce_includes_score,
  )
  assert tokenizer.convert_ids_to_tokens(found.score_ids) == ['1', '2']


@pytest.mark.parametrize('option', ['--steps=0', '--every=0', '--platform=gpu'])
def test_options_without_a_meaning_are_refused(option, capsys):
  with pytest.raises(SystemExit) as stopped:
    parity.main([option])
  assert stopped.value.code == 2
  assert option.partition('=')[0] in capsys.readouterr().err


@pytest.mark.parametrize(
  ('platform', 'device'), [('cpu', 'cpu'), ('cuda', 'cuda'), ('tpu', 'cpu')]
)
def test_where_both_sides_work(platform, device, cases, monkeypatch, tmp_path):
  updates = {}
  monkeypatch.setattr(parity.jax.config, 'update', updates.__setitem__)
  monkeypatch.setattr(parity.os, 'environ', {})
  monkeypatch.setattr(
    parity, '_cases', lambda *_: [cases['llama', 'ce', 'none']]
  )

  class Stop(Exception):
    pass

  def compare(case, num_steps, folder, on):
    assert on == device
    raise Stop

  monkeypatch.setattr(parity, 'compare', compare)
  with pytest.raises(Stop):
    parity.main([f'--platform={platform}', f'--plot={tmp_path / "a.svg"}'])
  precision = (
    {} if platform == 'cpu' else {'jax_default_matmul_precision': 'highest'}
  )
  assert updates == {'jax_platforms': platform} | precision


def test_the_whole_command(cases, tmp_path, monkeypatch, capsys):
  case = cases['llama', 'raft', 'none']
  monkeypatch.setattr(parity, '_cases', lambda *_: iter([case]))
  plot = tmp_path / 'plots' / 'parity.svg'
  assert parity.main(['--steps=2', f'--plot={plot}']) == 0
  assert case.name in capsys.readouterr().out
  root = ElementTree.fromstring(plot.read_text())
  lines = root.findall('{http://www.w3.org/2000/svg}polyline')
  # Two lines of each part, of a point for each step, and one of the distance,
  # which is none after the first step, for that has no learning rate yet.
  numbers = [len(line.attrib['points'].split()) for line in lines]
  assert numbers == [2] * 8 + [1]
  assert parity.main(['--steps=99', f'--plot={plot}']) == 2
  assert (
    '--steps: 99, but the schedule of tiny-llama' in capsys.readouterr().err
  )


def test_an_unknown_model_is_refused(capsys):
  assert parity.main(['--models=no-such-model']) == 2
  assert 'no-such-model' in capsys.readouterr().err
