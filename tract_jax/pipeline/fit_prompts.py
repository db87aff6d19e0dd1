"""Cuts the prompts of a run that are too long, once, where data is read."""

from collections.abc import Sequence
import dataclasses

from tract_jax import types
from tract_jax.data import row_pool, truncation
from tract_jax.pipeline import build, progress, shown_text
from tract_jax.pipeline import methods as methods_lib

_SHOWN_IDS = 10


@dataclasses.dataclass(frozen=True)
class FitReport:
  """What was done to some rows for their length.

  Attributes:
    truncated_ids: rows whose prompt's middle was cut, in order.
    unfit_ids: rows that no cut makes fit, in order; left out of training.
  """

  truncated_ids: tuple[str, ...]
  unfit_ids: tuple[str, ...]


def fit(
  setup: build.Setup,
  examples: Sequence[types.Example],
  name: str,
  *,
  trained: bool,
) -> tuple[list[types.Example], FitReport]:
  """Makes prompts fit under config.data.too_long="truncate".

  A prompt may have max_length tokens less what its target needs: where any
  method of the run has CoTs, sampling.max_new_tokens and the marker words with
  the score, or the row's own CoT with them if that is more and the row is
  trained on; else the bare score.

  Args:
    setup: of the run.
    examples: the rows.
    name: of the rows, for the lines that are printed.
    trained: whether they are trained on: own CoTs have to fit, and a row that
      cannot is left out. A row to predict stays as it is then, and becomes
      invalid if it is too long for the sampler.

  Returns:
    The rows in order, and what was done.

  Raises:
    types.InputError: a limit that leaves no room for any prompt, or texts that
      cannot be tokens, a line each.
  """
  size = row_pool.CHUNK_ROWS
  work = row_pool.map_chunks(
    truncation.fit_chunk,
    (setup.tokenizer, _room(setup), trained),
    [examples[i : i + size] for i in range(0, len(examples), size)],
    row_pool.num_processes(
      setup.config.data.encode_processes, sum(len(e.prompt) for e in examples)
    ),
  )
  prompts = [prompt for chunk in work for prompt in chunk]
  problems = [
    f'{name}: example {example.example_id}: {prompt}'
    for example, prompt in zip(examples, prompts, strict=True)
    if isinstance(prompt, types.InputError)
  ]
  types.raise_problems(problems, 'more prompts')
  kept, cut, unfit = [], [], []
  for example, prompt in zip(examples, prompts, strict=True):
    if prompt is None:
      unfit.append(example.example_id)
      if trained:
        continue
    elif prompt != example.prompt:
      cut.append(example.example_id)
      example = dataclasses.replace(example, prompt=prompt, judged=None)
    kept.append(example)
  report = FitReport(tuple(cut), tuple(unfit))
  if cut or unfit:
    _say(name, report, trained)
  return kept, report


def shown(ids: Sequence[str]) -> str:
  """The first ids of a list, for a line: " (a, b, ...)"; "" where none."""
  more = ', ...' if len(ids) > _SHOWN_IDS else ''
  return f' ({", ".join(ids[:_SHOWN_IDS])}{more})' if ids else ''


def _room(setup: build.Setup) -> truncation.Room:
  config = setup.config
  with_cot = methods_lib.any_with_cot(config.methods)
  room = truncation.Room(
    max_length=config.data.max_length,
    score_tokens=setup.cot_scores if with_cot else setup.bare_scores,
    max_new_tokens=config.sampling.max_new_tokens if with_cot else 0,
  )
  if room.for_prompt < 1:
    needed = room.max_length - room.for_prompt
    raise types.InputError(
      f'config.data.max_length: {room.max_length} leaves a truncated prompt no '
      f'room beside the {needed} tokens of a target (sampling.max_new_tokens, '
      'marker words and score)'
    )
  return room


def _say(name: str, report: FitReport, trained: bool) -> None:
  cut, unfit = report.truncated_ids, report.unfit_ids
  line = f'{name}: {len(cut)} prompts truncated{shown(cut)}'
  if unfit:
    what = 'left out' if trained else 'kept as they are'
    line += f'; {len(unfit)} cannot be made to fit, {what}{shown(unfit)}'
  progress.say(shown_text.wrapped(line))
