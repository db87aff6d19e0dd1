"""Predicts rows with a trained method, or a judge: CoTs, distributions, scores.

A benchmark's rows are predicted in one stream; the file of a chunk of them
(prediction_files) is written once its rows are there.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import math
from typing import Any

from etils import epath
import numpy as np

from tract_jax import types
from tract_jax.data import manifest
from tract_jax.objectives import predictors
from tract_jax.pipeline import (
  build,
  hosts,
  interruption,
  prediction_files,
  progress,
  sample,
)
from tract_jax.pipeline import methods as methods_lib

PURPOSE = 'predict'


@dataclasses.dataclass(frozen=True)
class PredictionRun:
  """Predictions of one method on one benchmark with one seed.

  Attributes:
    label: for progress.
    folder: of the chunks.
    method: a row of the table.
    seed: of the run.
    num_cots: CoTs per row; 1 for a method without CoT.
    examples: the benchmark's rows.
    fields: the facts that make the predictions what they are.
  """

  label: str
  folder: epath.Path
  method: methods_lib.Method
  seed: int
  num_cots: int
  examples: Sequence[types.Example]
  fields: dict[str, Any]


def predict_examples(
  sampler: sample.Sampler,
  params: types.PyTree,
  method: methods_lib.Method,
  examples: Sequence[types.Example],
  *,
  num_cots: int,
  seed: int,
) -> list[types.Prediction]:
  """Predicts rows; nothing is written.

  Args:
    sampler: of the setup.
    params: the whole model.
    method: says whether a CoT is sampled, and the predictor.
    examples: the rows.
    num_cots: C, CoTs per row; 1 for a method without CoT.
    seed: of the CoTs.

  Returns:
    A prediction for each row, in order. It depends on the row, the seed and C,
    not on the other rows, but for rounding where there are over 16 slots.
  """
  if method.with_cot:
    flat = sampler.cots(params, examples, num_cots, seed=seed, purpose=PURPOSE)
    starts = range(0, len(flat), num_cots)
    samples = [flat[start : start + num_cots] for start in starts]
  else:
    samples = _bare(sampler, params, examples)
  return [
    prediction_of(sampler.setup, method, seed, example, of_example)
    for example, of_example in zip(examples, samples, strict=True)
  ]


def is_done(run: PredictionRun) -> bool:
  """Whether all chunks are there, by the manifest."""
  return manifest.matches(run.folder, 'predictions', run.fields)


def predict(
  sampler: sample.Sampler,
  params: Callable[[], types.PyTree],
  run: PredictionRun,
  *,
  process_index: int = 0,
  process_count: int = 1,
  together: Callable[[str, Callable[[], None]], None] = hosts.at_once,
) -> None:
  """Predicts the chunks that are missing.

  Args:
    sampler: of the run.
    params: gives the trained model; called only if a chunk is missing.
    run: what to predict.
    process_index, process_count: this process predicts
      chunks[process_index::process_count].
    together: (label, finish) calls `finish` when they are done, at once or
      when those of others are, too; it marks the predictions as done where all
      of them are there.

  Raises:
    loop.Interrupted: stopped; the same call goes on.
    types.InputError: the folder holds chunks of other facts, or a damaged one.
  """
  size = sampler.setup.config.sampling.chunk_size
  if manifest.read_manifest(run.folder) is None:  # Else of the same fields.
    manifest.write_manifest(
      run.folder, 'predictions', run.fields, finished=False
    )
  starts = range(0, len(run.examples), size)
  mine = starts[process_index::process_count]
  missing = [s for s in mine if not _is_whole(_chunk_path(run, s))]
  chunks = [run.examples[start : start + size] for start in missing]
  lines = progress.SampleProgress(run.label)
  for number, samples in _stream(sampler, params, run, chunks, lines):
    predictions = [
      prediction_of(sampler.setup, run.method, run.seed, example, of_example)
      for example, of_example in zip(chunks[number], samples, strict=True)
    ]
    rows = ''.join(map(prediction_files.to_line, predictions))
    text = prediction_files.with_digest(rows)
    manifest.write_text_atomic(_chunk_path(run, missing[number]), text)
    lines.on_rows(len(predictions))
  num_there = sum(_chunk_path(run, start).exists() for start in starts)
  if process_index == 0:
    lines.write(run.folder, num_there)

  def finish() -> None:
    if all(_chunk_path(run, start).exists() for start in starts):
      manifest.write_manifest(run.folder, 'predictions', run.fields)

  together(run.label, finish)


def _is_whole(path: epath.Path) -> bool:
  """Whether a chunk is there; a damaged one is refused."""
  return path.exists() and bool(prediction_files.read_chunk(path))


def _bare(sampler, params, examples) -> list[list[types.CotSample]]:
  """The sample of each example, [1], of a method without CoT."""
  return [[s] for s in sampler.given(params, examples, with_cot=False)]


def _stream(
  sampler, params, run, chunks, lines
) -> Iterator[tuple[int, list[list[types.CotSample]]]]:
  """(number of a chunk, [its examples][C] samples), when it is whole."""
  if not chunks:
    return
  model = params()
  if run.method.with_cot:
    yield from sampler.chunks(
      model,
      chunks,
      run.num_cots,
      seed=run.seed,
      purpose=PURPOSE,
      on_progress=lines.on_progress,
      num_examples=len(run.examples),
    )
    return
  on_rows = progress.row_progress(run.label, sum(map(len, chunks)))
  lines.begin()
  for number, chunk in enumerate(chunks):
    interruption.stop_if(
      sampler.should_stop, f'before prediction chunk {number}'
    )
    yield number, _bare(sampler, model, chunk)
    on_rows(len(chunk), 0)


def prediction_of(
  setup: build.Setup,
  method: methods_lib.Method,
  seed: int,
  example: types.Example,
  samples: Sequence[types.CotSample],
) -> types.Prediction:
  """One row: distributions, texts, and the method's own prediction.

  Args:
    setup: gives the grid and the tokenizer.
    method: says the predictor.
    seed: of the run.
    example: the benchmark's row.
    samples: [C] of this example; one without tokens for a method without CoT.

  Returns:
    The row.
  """
  probs = np.stack([s.score_probs for s in samples])
  decoded = [
    setup.grid.values[s.greedy_index] if s.greedy_index >= 0 else None
    for s in samples
  ]
  uniforms = predictors.decode_uniforms(seed, [example.random_id], len(samples))
  value = float(
    predictors.predict(
      method.predictor,
      probs,
      np.array([math.nan if d is None else d for d in decoded], np.float32),
      np.array(setup.grid.values, np.float32),
      temperature=setup.config.evaluation.tempered_temperature,
      uniforms=uniforms[0],
    )
  )
  valid = math.isfinite(value)
  return types.Prediction(
    example_id=example.example_id,
    seed=seed,
    score=example.score,
    prediction=value if valid else None,
    distributions=[
      [float(p) for p in row] if np.isfinite(row).all() else None
      for row in probs
    ],
    decoded=decoded,
    cots=[setup.tokenizer.decode(s.tokens) for s in samples],
    finish_reasons=[s.finish_reason for s in samples],
    invalid_reason=None if valid else _invalid_reason(method, samples),
    category=example.category,
    human_score=example.human_score,
    pair_id=example.pair_id,
    cot_tokens=[s.num_sampled_tokens for s in samples],
  )


def _invalid_reason(method: methods_lib.Method, samples) -> str:
  failed = [s.finish_reason for s in samples if not s.is_usable]
  if failed:
    return failed[0]
  if method.predictor == 'decode':
    return 'greedy decoding writes no score'
  if method.predictor == 'decode_sampled':
    return 'the sampled token is no score'
  return 'the score tokens have no probability'


def _chunk_path(run: PredictionRun, start: int) -> epath.Path:
  return run.folder / prediction_files.chunk_name(start)
