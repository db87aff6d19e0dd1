"""Progress that a person can follow: plain lines on the main process."""

from collections.abc import Callable, Mapping
import dataclasses
import statistics
import time

from etils import epath

from tract_jax.parallel import distributed
from tract_jax.pipeline import scrub
from tract_jax.sampling import engine as engine_lib
from tract_jax.training import loop, metric_writer

MIN_SECS_BETWEEN_LINES = 1.0
MIN_SECS_BETWEEN_SAMPLING_LINES = 5.0
# Below this, scores are read from what is hardly a score.
LEAST_GRID_MASS = 0.5
# More than half of the time, and so long, and the data are too slow.
LEAST_WAIT_SECS = 10.0


def say(text: str) -> None:
  """Prints a line without secrets, at once, on the main process only.

  Args:
    text: the line.
  """
  if distributed.is_main_process():
    print(scrub.scrubbed(text), flush=True)


def duration(secs: float) -> str:
  """Writes a duration as a person would.

  Args:
    secs: at least 0.

  Returns:
    "7 s", "3:05 min" or "2:10 h".
  """
  if secs < 60:
    return f'{secs:.0f} s'
  minutes, rest = divmod(round(secs), 60)
  if minutes < 60:
    return f'{minutes}:{rest:02d} min'
  return f'{minutes // 60}:{minutes % 60:02d} h'


def gigabytes(num_bytes: float) -> str:
  """Writes a size in GiB with two digits, small ones in MiB."""
  mebi = num_bytes / 2**20
  return f'{mebi / 1024:.2f} GiB' if mebi >= 1024 else f'{mebi:.1f} MiB'


@dataclasses.dataclass
class TrainProgress:
  """Lines of a training run: loss parts, learning rate, speed, time left.

  Attributes:
    label: which run, such as "tract stage 2 seed 0".
    num_steps: updates of the whole run.
    every: updates between two lines; the first and last always have one.
    num_warmup: updates in which the learning rate rises; what is warned of is
      looked at after them.
  """

  label: str
  num_steps: int
  every: int
  num_warmup: int = 0
  _recent: list[loop.StepReport] = dataclasses.field(default_factory=list)
  _warned: set[str] = dataclasses.field(default_factory=set)
  _steps: int = 0
  _num_skipped: int = 0
  _tokens: float = 0.0
  _secs: float = 0.0
  _first: bool = True

  def on_step(self, report: loop.StepReport) -> None:
    """Takes a StepReport and prints a line where one is due."""
    metrics = report.metrics
    if not metrics.finite:
      self._num_skipped += 1
      say(f'{self.label}: step {report.step} was not finite, update skipped')
    if not self._first:  # The first update's time is mostly compilation.
      self._steps += 1
      self._tokens += metrics.num_tokens
      self._secs += report.secs
    if report.step >= max(self.num_warmup, 1):
      self._recent.append(report)
    last = report.step + 1 == self.num_steps
    if self._first or last or (report.step + 1) % self.every == 0:
      speed = self._tokens / self._secs if self._secs else 0.0
      left = self._secs / max(self._steps, 1)
      left *= self.num_steps - report.step - 1
      say(
        f'{self.label}: step {report.step + 1}/{self.num_steps}'
        f'  loss {metrics.loss:.4f}  ce {metrics.ce:.4f}'
        f'  score rmse {metrics.score_mse**0.5:.3f}'
        f'  grid mass {metrics.grid_mass:.3f}  lr {metrics.lr:.2e}'
        + (f'  {speed:,.0f} tokens/s  {duration(left)} left' if speed else '')
        + (f'  {self._num_skipped} skipped' if self._num_skipped else '')
      )
      self._check()
    self._first = False

  def _check(self) -> None:
    """Warns, once of each, of what the updates since the last line show."""
    recent, self._recent = self._recent, []
    masses = [r.metrics.grid_mass for r in recent if r.metrics.finite]
    if masses and (mass := statistics.fmean(masses)) < LEAST_GRID_MASS:
      self._warn(
        'grid mass',
        f'{recent[-1].step + 1}: only {mass:.3f} of the probability is on the '
        'score tokens; a wrong score position or tokenizer, or too few steps?',
      )
    secs = sum(r.secs for r in recent)
    waited = sum(r.data_wait_secs for r in recent)
    if waited > max(secs / 2, LEAST_WAIT_SECS):
      self._warn(
        'data',
        f'{recent[-1].step + 1}: {waited:.0f} of the last {secs:.0f} s were '
        'spent waiting for batches; is the machine busy, or short of memory?',
      )

  def _warn(self, kind: str, problem: str) -> None:
    if kind not in self._warned:
      self._warned.add(kind)
      say(f'warning: {self.label}: step {problem}')


class SampleProgress:
  """Lines of a sampling job, and its figures at the end.

  Speeds of prefill (tokens of prompts) and decode (tokens of CoTs) are each
  over its own seconds. Slot use is the share of a slot's steps that had a CoT.
  Rows are written together: seconds per row are those of the whole job over its
  rows, and no row's own.

  Example:
    lines = SampleProgress('tract self-CoTs seed 0')
    for chunk, samples in sampler.chunks(..., on_progress=lines.on_progress):
      lines.on_rows(len(samples))
    lines.write(folder, num_chunks)
  """

  def __init__(self, label: str):
    """Begins to count the seconds between lines.

    Args:
      label: which job.
    """
    self._label = label
    self._begin = 0.0
    self._last = time.perf_counter()
    self._now: engine_lib.Progress | None = None
    self._num_rows = 0

  def begin(self) -> None:
    """Counts the seconds of a job without `on_progress` from now on."""
    self._begin = time.perf_counter()

  def on_rows(self, num_rows: int) -> None:
    """Is told that so many rows more are done and written."""
    self._num_rows += num_rows

  def on_progress(self, now: engine_lib.Progress) -> None:
    """Takes the engine's progress; prints a line every few seconds."""
    secs = time.perf_counter()
    if self._now is None:  # Weights may have been read since it was made.
      self._begin = secs - now.prefill_secs - now.decode_secs
    self._now = now
    is_last = now.num_done == now.num_total
    if not is_last and secs - self._last < MIN_SECS_BETWEEN_SAMPLING_LINES:
      return
    self._last = secs
    shown = [
      f'{self._label}: {now.num_done}/{now.num_total} CoTs',
      f'prefill {_rate(now.prefill_tokens, now.prefill_secs)} tokens/s',
      f'decode {_rate(now.decode_tokens, now.decode_secs)} tokens/s',
      f'{_slot_use(now):.0%} of {now.num_slots} slots in use',
      f'ended by {endings(now.finish_reasons)}',
    ]
    if now.num_retries:
      shown.append(f'{now.num_retries} tried again')
    if now.num_done:
      left = (secs - self._begin) / now.num_done
      shown.append(f'{duration(left * (now.num_total - now.num_done))} left')
    say('  '.join(shown))

  def write(self, folder: epath.Path, step: int) -> None:
    """Adds a line with all figures to the folder's metrics.

    Args:
      folder: of what was sampled.
      step: number of its chunks that are there; a line of the same number or a
        larger one is replaced.
    """
    now, num_rows = self._now, self._num_rows
    if now is None and not num_rows:
      return
    secs = max(time.perf_counter() - self._begin, 1e-9)
    values: dict[str, float] = {'num_rows': num_rows, 'secs': secs}
    values['rows_per_sec'] = num_rows / secs
    if num_rows:
      values['secs_per_row'] = secs / num_rows
    if now is not None:
      values |= {
        f.name: getattr(now, f.name)
        for f in dataclasses.fields(now)
        if f.name != 'finish_reasons'
      }
      values['slot_use'] = _slot_use(now)
      values['tokens_per_sec'] = now.decode_tokens / secs
      values |= {f'num_{k}': n for k, n in sorted(now.finish_reasons.items())}
    with metric_writer.MetricWriter(folder, step) as writer:
      writer.write(step, values)


def endings(finish_reasons: Mapping[str, int]) -> str:
  """How many CoTs ended for which reason: "length 2, marker 30"."""
  counts = sorted((k, n) for k, n in finish_reasons.items() if n)
  return ', '.join(f'{reason} {n}' for reason, n in counts) or 'none'


def _rate(num_tokens: int, secs: float) -> str:
  return f'{num_tokens / secs:,.0f}' if secs else '0'


def _slot_use(now: engine_lib.Progress) -> float:
  return now.decode_tokens / now.slot_steps if now.slot_steps else 0.0


def row_progress(
  label: str, total: int, num_processes: int = 0
) -> Callable[[int, int], None]:
  """Lines of a job on rows: rows done, tokens per second, time left.

  Args:
    label: which job.
    total: rows of the whole job.
    num_processes: that share the job, to tell the rows per second of each; 0:
      not told.

  Returns:
    on_rows(num_rows, num_tokens), to be called after each piece of work; it
    prints at most a line a second, and the last one always.
  """
  begin = last = time.perf_counter()
  done = tokens = 0

  def on_rows(num_rows: int, num_tokens: int) -> None:
    nonlocal last, done, tokens
    done += num_rows
    tokens += num_tokens
    now = time.perf_counter()
    if done < total and now - last < MIN_SECS_BETWEEN_LINES:
      return
    last = now
    secs = max(now - begin, 1e-9)
    left = secs / done * (total - done) if done else 0.0
    shared = ''
    if num_processes:
      rate = done / secs / num_processes
      shared = f'  {rate:,.0f} rows/s in each of {num_processes} processes'
    say(
      f'{label}: {done}/{total} rows  {tokens / secs:,.0f} tokens/s{shared}'
      f'  {duration(left)} left'
    )

  return on_rows
