import json
import logging
import os

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from tests.training import stand_in_wandb
from tract_jax.training import metric_writer


def _rows(folder):
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def _events(folder):
  """Events of all TensorBoard files, in the order of writing."""
  events = []
  for path in sorted((folder / 'tensorboard').iterdir()):
    data = path.read_bytes()
    while data:
      size = int.from_bytes(data[:8], 'little')
      events.append(event_pb2.Event.FromString(data[12 : 12 + size]))
      data = data[12 + size + 4 :]
  return events


def _write(folder, start, stop, **kwargs):
  with metric_writer.MetricWriter(folder, start, **kwargs) as writer:
    for step in range(start, stop):
      writer.write(step, {'loss': 1 / (step + 1), 'name': 'ä'})


def test_a_line_a_write_with_plain_numbers(tmp_path):
  with metric_writer.MetricWriter(tmp_path / 'new', 0) as writer:
    values = {
      'loss': jnp.float32(0.5),
      'count': np.int32(3),
      'nan': float('nan'),
      'inf': jnp.float32(np.inf),
      'list': np.array([1.0, np.nan]),
      'text': 'x\ny',
      'none': None,
    }
    writer.write(7, values)
    # Flushed line by line: a kill loses nothing.
    assert _rows(tmp_path / 'new') == [
      {
        'step': 7,
        'loss': 0.5,
        'count': 3,
        'nan': None,
        'inf': None,
        'list': [1.0, None],
        'text': 'x\ny',
        'none': None,
      }
    ]
    with pytest.raises(ValueError, match='"step" is taken'):
      writer.write(8, {'step': 8})


def test_tensorboard_has_the_finite_scalars(tmp_path):
  with metric_writer.MetricWriter(tmp_path, 5) as writer:
    writer.write(5, {'loss': 0.25, 'nan': np.nan, 'count': 3, 'text': 'x'})
  events = _events(tmp_path)
  assert events[0].file_version == 'brain.Event:2'
  assert events[1].session_log.status == event_pb2.SessionLog.START
  assert events[1].step == 5
  scalars = [
    (e.step, v.tag, v.simple_value) for e in events for v in e.summary.value
  ]
  assert scalars == [(5, 'loss', 0.25), (5, 'count', 3.0)]


def test_a_resumed_run_ends_with_the_file_of_an_undisturbed_one(tmp_path):
  _write(tmp_path / 'whole', 0, 9)
  _write(tmp_path / 'cut', 0, 7)
  with open(tmp_path / 'cut' / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 7, "lo')
  _write(tmp_path / 'cut', 4, 9)
  whole, cut = (
    (tmp_path / name / 'metrics.jsonl').read_bytes()
    for name in ('whole', 'cut')
  )
  assert whole == cut
  assert sorted(os.listdir(tmp_path / 'cut')) == [
    'metrics.jsonl',
    'tensorboard',
  ]


def test_other_processes_write_nothing(tmp_path):
  _write(tmp_path / 'x', 0, 2, is_writer=False)
  assert not (tmp_path / 'x').exists()


def test_a_folder_that_cannot_be_made_is_one_warning_each(tmp_path, caplog):
  (tmp_path / 'file').write_text('')
  with caplog.at_level(logging.WARNING):
    _write(tmp_path / 'file' / 'below', 0, 5)
  warnings = [r.getMessage() for r in caplog.records]
  assert [w.split(':')[0] for w in warnings] == ['metrics.jsonl', 'TensorBoard']
  assert all('training goes on: ' in w for w in warnings)


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full')
def test_a_full_disk_is_one_warning_and_the_other_file_goes_on(
  tmp_path, caplog, monkeypatch
):
  with caplog.at_level(logging.WARNING):
    with metric_writer.MetricWriter(tmp_path, 0) as writer:
      writer.write(0, {'loss': 0.5})
      full = open('/dev/full', 'w')
      monkeypatch.setattr(writer._sinks['metrics.jsonl'], '_file', full)
      for step in range(1, 4):
        writer.write(step, {'loss': 0.5})
      with pytest.raises(OSError):  # What the buffer still holds.
        full.close()
  (warning,) = [r.getMessage() for r in caplog.records]
  assert 'No space left on device' in warning
  assert _rows(tmp_path) == [{'step': 0, 'loss': 0.5}]
  steps = [e.step for e in _events(tmp_path) if e.summary.value]
  assert steps == [0, 1, 2, 3]


def _track(folder, start, stop, **arguments):
  with metric_writer.MetricWriter(folder, start, wandb_run=arguments) as writer:
    for step in range(start, stop):
      writer.write(step, {'loss': 1 / (step + 1), 'nan': np.nan, 'name': 'ä'})


def test_a_resumed_run_goes_on_in_the_same_run_of_wandb(tmp_path, monkeypatch):
  server = stand_in_wandb.install(monkeypatch)
  _track(tmp_path / 'a', 0, 7, project='judges', mode=None)
  # From an older checkpoint; what is there already is not written again.
  _track(tmp_path / 'a', 4, 9, project='judges', mode=None)
  _track(tmp_path / 'b', 0, 1, project='judges', mode=None)
  run, other = server.runs.values()
  assert run.history == [(step, {'loss': 1 / (step + 1)}) for step in range(9)]
  assert [step for step, _ in other.history] == [0]
  assert (run.num_finished, other.num_finished) == (2, 1)
  assert len(_rows(tmp_path / 'a')) == 9
  first, again, _ = server.asked
  assert first == again
  assert (first['project'], first['mode']) == ('judges', None)
  assert first['resume'] == 'allow'
  assert first['dir'] == str(tmp_path / 'a')
  # The command, the machine's name and its user stay here.
  assert first['settings']['x_disable_meta']
  assert first['settings']['console'] == 'off'


def test_only_the_writer_asks_wandb(tmp_path, monkeypatch):
  server = stand_in_wandb.install(monkeypatch)
  with metric_writer.MetricWriter(
    tmp_path, 0, False, {'project': 'a'}
  ) as writer:
    writer.write(0, {'loss': 0.5})
  _write(tmp_path, 0, 1)
  assert not server.asked


@pytest.mark.parametrize('when', ['init', 'log', 'finish'])
def test_wandb_that_fails_is_one_warning(tmp_path, monkeypatch, caplog, when):
  server = stand_in_wandb.install(monkeypatch, fails_at=when)
  with caplog.at_level(logging.WARNING):
    _track(tmp_path, 0, 5, project='judges')
  (warning,) = [r.getMessage() for r in caplog.records]
  assert warning == (
    'Weights & Biases: no more metrics are written there, training goes on: '
    f'OSError: no way to {when}'
  )
  assert len(server.asked) == 1
  assert [row['step'] for row in _rows(tmp_path)] == [0, 1, 2, 3, 4]


def test_what_a_bucket_gets_later_it_gets_before_a_checkpoint(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(metric_writer, '_FLUSH_SECS', 1000.0)
  with metric_writer.MetricWriter(tmp_path, 0) as writer:
    lines = writer._sinks[metric_writer.METRICS]
    lines._file.close()
    lines._file = None  # As in a bucket, where files are written whole.
    writer.write(0, {'loss': 1.0})
    assert _rows(tmp_path) == []
    writer.flush()
    assert _rows(tmp_path) == [{'step': 0, 'loss': 1.0}]
    assert len(_events(tmp_path)) >= 2
