"""Metrics of a run: `metrics.jsonl` and TensorBoard always, W&B where asked.

A line of `metrics.jsonl` is one call of `write`:

  {"step": 7, "loss": 1.25, "grad_norm": null, "secs_per_step": 0.5}

A number that is not finite is null. A run that goes on from an older step
first cuts the lines that it is going to write again, so the file ends as that
of a run that was never interrupted, but for what was measured with a clock.

Metrics never stop a training: a sink that fails says so once and is left out.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import json
import logging
import math
import secrets
import time
from typing import Any, IO, Self

from etils import epath
import numpy as np

from tract_jax.data import manifest

METRICS = 'metrics.jsonl'
_TENSORBOARD = 'tensorboard'
_WANDB, _WANDB_ID = 'Weights & Biases', 'wandb_run_id'
# Nothing is sent of the terminal, the command, the machine's name and its user.
# Nobody is waited for: neither for a key, nor long for what cannot be sent.
_WANDB_SETTINGS = {
  'console': 'off',
  'disable_git': True,
  'x_disable_meta': True,
  'x_save_requirements': False,
  'init_timeout': 30.0,
  'login_timeout': 30.0,
  'finish_timeout': 60.0,
}
# TensorBoard's files and objects in a bucket are written whole at each flush.
_FLUSH_SECS = 30.0
_logger = logging.getLogger(__name__)


class MetricWriter:
  """Writes metrics on process 0 and does nothing on the others.

  Example:
    with MetricWriter(folder, start_step, jax.process_index() == 0) as writer:
      writer.write(step, {'loss': loss})
  """

  def __init__(
    self,
    folder: epath.PathLike,
    start_step: int,
    is_writer: bool = True,
    wandb_run: Mapping[str, Any] | None = None,
  ):
    """Opens the files in `folder`.

    Args:
      folder: of the stage; made if absent.
      start_step: lines of this step and later ones are cut: an interrupted
        run wrote them, and this one writes them again.
      is_writer: whether this process is the one that writes.
      wandb_run: arguments of wandb.init; None: it is not used.
    """
    folder = epath.Path(folder)
    self._sinks: dict[str, Any] = {}
    if not is_writer:
      return
    makers: dict[str, Callable[[], Any]] = {
      METRICS: lambda: _JsonLines(folder, start_step),
      'TensorBoard': lambda: _TensorBoard(folder, start_step),
    }
    if wandb_run is not None:
      makers[_WANDB] = lambda: _Wandb(folder, wandb_run)
    for name, make in makers.items():
      with self._guarded(name):
        self._sinks[name] = make()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *unused_error: object) -> None:
    self.close()

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes one line.

    Args:
      step: of the training, counted as `start_step` is.
      values: {name: number, text or list of these}; scalars of numpy and jax
        count as numbers, which waits for them to be computed. "step" is taken.
    """
    if 'step' in values:
      raise ValueError('metrics: the name "step" is taken')
    if not self._sinks:
      return
    row = {name: _json_value(value) for name, value in values.items()}
    for name, sink in list(self._sinks.items()):
      with self._guarded(name):
        sink.write(step, row)

  def flush(self) -> None:
    """Writes what is kept back, so that no checkpoint is ahead of it."""
    for name, sink in list(self._sinks.items()):
      with self._guarded(name):
        sink.flush()

  def close(self) -> None:
    """Flushes and closes the files."""
    for name, sink in list(self._sinks.items()):
      with self._guarded(name):
        sink.close()
    self._sinks.clear()

  @contextlib.contextmanager
  def _guarded(self, name: str) -> Iterator[None]:
    """A sink that fails here is named in a warning and used no more."""
    try:
      yield
    except Exception as error:
      self._sinks.pop(name, None)
      _logger.warning(
        '%s: no more metrics are written there, training goes on: %s: %s',
        name,
        type(error).__name__,
        error,
      )


class _JsonLines:
  """Appends to metrics.jsonl; in a bucket, which cannot, rewrites it."""

  def __init__(self, folder: epath.Path, start_step: int):
    folder.mkdir(parents=True, exist_ok=True)
    self._path = folder / METRICS
    kept = _kept_lines(self._path, start_step)
    manifest.write_text_atomic(self._path, ''.join(kept))
    self._in_bucket = '://' in str(folder)
    self._lines = kept if self._in_bucket else []
    self._file: IO[str] | None = None
    if not self._in_bucket:
      self._file = open(self._path, 'a', encoding='utf-8', newline='\n')
    self._flushed = time.monotonic()

  def write(self, step: int, row: Mapping[str, Any]) -> None:
    line = json.dumps({'step': step, **row}, allow_nan=False) + '\n'
    if self._file is not None:
      self._file.write(line)
      self._file.flush()
      return
    self._lines.append(line)
    if time.monotonic() - self._flushed > _FLUSH_SECS:
      self.flush()

  def flush(self) -> None:
    if self._file is None:
      manifest.write_text_atomic(self._path, ''.join(self._lines))
      self._flushed = time.monotonic()

  def close(self) -> None:
    self.flush()
    if self._file is not None:
      self._file.close()


class _TensorBoard:
  """Scalars for TensorBoard.

  tensorboardX's own SummaryWriter writes in a thread, through a queue: when
  the disk is full the thread dies, the queue fills and the training hangs. So
  events are written here, in the caller's thread, where an error shows.
  """

  def __init__(self, folder: epath.Path, start_step: int):
    # Imports PyTorch wherever that is: a second and 240 MB, spared who only
    # samples.
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2

    self._make_event, self._scalar = event_pb2.Event, summary.scalar
    folder = folder / _TENSORBOARD
    folder.mkdir(parents=True, exist_ok=True)
    self._writer = event_file_writer.EventsWriter(
      str(folder / 'events'), filename_suffix=f'.{start_step}'
    )
    # Hides what an interrupted run wrote at this step and later ones.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._event(start_step, session_log=start)
    self.flush()

  def write(self, step: int, row: Mapping[str, Any]) -> None:
    for name, value in _scalars(row).items():
      self._event(step, summary=self._scalar(name, value))
    if time.monotonic() - self._flushed > _FLUSH_SECS:
      self.flush()

  def close(self) -> None:
    self._writer.close()

  def _event(self, step: int, **content: Any) -> None:
    self._writer.write_event(
      self._make_event(wall_time=time.time(), step=step, **content)
    )

  def flush(self) -> None:
    self._writer.flush()
    self._flushed = time.monotonic()


class _Wandb:
  """A run of Weights & Biases, which goes on where a training does.

  Its id is drawn once and kept in the folder, so that no other folder has the
  same, on whatever machine.
  """

  def __init__(self, folder: epath.Path, arguments: Mapping[str, Any]):
    import wandb

    path = folder / _WANDB_ID
    if not path.exists():
      folder.mkdir(parents=True, exist_ok=True)
      manifest.write_text_atomic(path, secrets.token_hex(8))
    self._run = wandb.init(
      **arguments,
      id=path.read_text().strip(),
      resume='allow',
      reinit='create_new',
      # Of a bucket, where it says, by default in the current folder.
      dir=None if '://' in str(folder) else str(folder),
      settings=_WANDB_SETTINGS,
    )

  def write(self, step: int, row: Mapping[str, Any]) -> None:
    # What an interrupted run wrote cannot be written again, and is the same.
    if step >= self._run.step:
      self._run.log(_scalars(row), step=step)

  def flush(self) -> None:
    """Does nothing: it is sent as it comes."""

  def close(self) -> None:
    self._run.finish()


def _scalars(row: Mapping[str, Any]) -> dict[str, float]:
  return {
    name: float(value)
    for name, value in row.items()
    if isinstance(value, int | float)
  }


def _kept_lines(path: epath.Path, start_step: int) -> list[str]:
  """Lines of steps before `start_step`; a line torn by a kill is dropped."""
  if not path.exists():
    return []
  kept = []
  for line in path.read_bytes().decode('utf-8', 'replace').splitlines():
    try:
      keep = json.loads(line)['step'] < start_step
    except (ValueError, KeyError, TypeError):
      keep = False
    if keep:
      kept.append(line + '\n')
  return kept


def _json_value(value: Any) -> Any:
  """Numbers, texts and lists of these, as JSON has them."""
  if hasattr(value, 'dtype'):
    value = np.asarray(value).tolist()
  if isinstance(value, list | tuple):
    return [_json_value(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
