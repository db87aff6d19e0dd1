"""Training beside PyTorch: agreement is seen, and so is a broken term."""

import dataclasses
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip('torch')
pytest.importorskip('peft')
parity = pytest.importorskip('benchmarks.parity')
parity_cases = pytest.importorskip('benchmarks.parity_cases')
judge = pytest.importorskip('benchmarks.pytorch.judge')

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
