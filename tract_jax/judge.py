"""The Python face for those who only want to judge.

    judge = Judge.load('runs/mistral/export/tract')
    judge.score([{'prompt': 'Rate this answer from 1 to 5 ...'}])[0].prediction

It joins what a run is made of, base model, score tokens and predictor, and
adds nothing to it. Axes: B rows, L row length, V vocabulary, Y score grid, C
CoTs per input.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import numbers
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tract_jax import types
from tract_jax.data import records
from tract_jax.models import config as model_config_lib
from tract_jax.objectives import predictors
from tract_jax.pipeline import (
  base_model,
  base_weights,
  build,
  config_check,
  data_source,
  fit_prompts,
  judge_file,
  model_source,
  predict,
  progress,
  read_data,
  row_settings,
  sample,
)
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import methods as methods_lib
from tract_jax.text import prompts
from tract_jax.text import tokenizer as tokenizer_lib

# Keys of the configuration that are arguments here.
_LOAD_ARGUMENTS = {
  'model.path': 'path',
  'model.revision': 'revision',
  'model.dtype': 'dtype',
}
_SCORE_ARGUMENTS = {
  'num_cots': 'num_cots',
  'predictors': 'predictor',
  'seeds': 'seed',
}


class Judge:
  """A model that judges rows, or gives logits; made by `Judge.load`.

  Attributes:
    grid: the scores.
    model_config: the architecture.
    method: its own predictor, and whether it predicts after a CoT.
  """

  grid: types.ScoreGrid
  model_config: model_config_lib.ModelConfig
  method: methods_lib.Method

  def __init__(
    self,
    model: base_model.BaseModel,
    params: types.PyTree,
    method: methods_lib.Method,
    grid: types.ScoreGrid,
    sampler: sample.Sampler | None,
    logits_only: str,
  ):
    """Use `Judge.load`.

    Args:
      model: the model.
      params: all of its weights.
      method: how it is used.
      grid: the scores.
      sampler: what judging takes; None for a model that cannot judge.
      logits_only: why it cannot; else "".
    """
    self.grid = grid
    self.model_config = model.config
    self.method = method
    self._params = params
    self._sampler = sampler
    self._logits_only = logits_only
    self._logits = jax.jit(_make_logits(model.fns))

  @classmethod
  def load(
    cls,
    path: str | os.PathLike[str],
    revision: str | None = None,
    dtype: Any = 'float32',
    settings: Mapping[str, Any] | None = None,
  ) -> 'Judge':
    """Loads a judge, or any model of the family; its weights are read now.

    What a judge.json in the folder says takes the place of the defaults. A
    model without one is used zero-shot, after a CoT, unless settings name
    another method that trains nothing. One without a tokenizer is loaded all
    the same and has logits only.

    Args:
      path: whatever config.model.path may be: a Hugging Face folder, local or
        gs://, an exported judge, a PEFT adapter's folder, a hub id, or the name
        of a prepared seed model.
      revision: the commit of a hub model.
      dtype: of the weights and the computation, float32 or bfloat16, by name
        or as a dtype.
      settings: any other keys of the configuration, dotted.

    Returns:
      The judge.

    Raises:
      types.InputError: no such model, files that are damaged or not supported,
        or settings that are unknown, bad, or contradict judge.json.

    Example:
      judge = Judge.load(
        'org/name', revision='0123abc', settings={'sampling.top_p': 0.8}
      )
    """
    config = _config(os.fspath(path), revision or '', dtype, settings or {})
    sources = model_source.find_model(config.model)
    config, as_is = judge_file.applied(config, sources.judge_folder)
    method, *others = as_is.values()
    if others:
      names = ', '.join(as_is)
      raise types.InputError(f'config.methods: {names}: a Judge has one')
    grid = prompts.make_score_grid(config.score.grid, config.score.format)
    mesh = build.sampling_mesh(config)
    model = base_model.from_source(sources, config, mesh)
    sampler, logits_only = None, ''
    if tokenizer_lib.has_tokenizer(sources.folder):
      tokenizer = tokenizer_lib.load_tokenizer(str(sources.folder))
      setup = build.join(config, tokenizer, model, as_is)
      sampler = sample.Sampler(setup, should_stop=lambda: False)
    else:
      logits_only = f'{sources.name}: has logits only: there is no tokenizer'
      progress.say(logits_only)
    params = base_weights.read_weights(model, model.dtype)
    return cls(model, params, method, grid, sampler, logits_only)

  def score(
    self,
    rows: Iterable[Mapping[str, Any]] | str | os.PathLike[str],
    num_cots: int = 1,
    predictor: str | None = None,
    seed: int = 0,
  ) -> list[types.Prediction]:
    """Judges rows.

    What a row gets depends on the row, the seed and the number of CoTs, not on
    the rows beside it: a row with an id draws its CoTs by that id, one without
    by its prompt. Different shapes of batches round differently, though, and
    may, rarely, tip a draw.

    Args:
      rows: with the columns of a data file's; or the path of a JSON, JSONL or
        parquet file. A rater's score may be there or not.
      num_cots: C, at least 1; their predictions are averaged.
      predictor: one of predictors.PREDICTORS, such as "rail", the expected
        score; None: the judge's own.
      seed: of the CoTs, at least 0.

    Returns:
      A prediction for each row, in order, with its CoTs and the distribution
      over the grid after each.

    Raises:
      types.InputError: bad rows, a line each; an argument that is not allowed;
        or a model that has logits only.

    Example:
      (row,) = judge.score([{'prompt': 'Rate this answer ...'}], num_cots=3)
      row.prediction, row.distributions, row.cots
    """
    if self._sampler is None:
      raise types.InputError(self._logits_only)
    predictor = predictor or self.method.predictor
    _check_arguments(num_cots, predictor, seed, self.method.with_cot)
    examples = _read_rows(rows, self._sampler.setup)
    return predict.predict_examples(
      self._sampler,
      self._params,
      dataclasses.replace(self.method, predictor=predictor),
      examples,
      num_cots=int(num_cots),
      seed=int(seed),
    )

  def logits(
    self, token_ids: Sequence[Sequence[int]] | np.ndarray
  ) -> np.ndarray:
    """Next-token logits at every position.

    Args:
      token_ids: [B, L] integers, whole rows without padding.

    Returns:
      [B, L, V] float32.

    Raises:
      types.InputError: no rows, rows of different or no length or longer than
        the model's longest, or a token that it does not have.

    Example:
      judge.logits([[1, 733, 16289]])[0, -1].argmax()
    """
    tokens = _checked_tokens(token_ids, self.model_config)
    return np.asarray(self._logits(self._params, tokens))


def _config(path: str, revision: str, dtype: Any, settings: Mapping[str, Any]):
  """The configuration of a judge, checked."""
  if not isinstance(settings, Mapping):
    raise types.InputError(
      f'settings: is {type(settings).__name__}; give a dictionary of keys'
    )
  problems = [
    f'config.{key}: is the argument {arguments[key]!r} of Judge.{function}'
    for function, arguments in (
      ('load', _LOAD_ARGUMENTS),
      ('score', _SCORE_ARGUMENTS),
    )
    for key in arguments.keys() & settings.keys()
  ]
  if problems:
    raise types.InputError('\n'.join(sorted(problems)))
  if not path:
    raise types.InputError("path: is empty; give a model's folder or name")
  try:
    dtype = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
  except TypeError as error:
    raise types.InputError(f'dtype: {error}') from error
  given = dict(zip(_LOAD_ARGUMENTS, (path, revision, dtype), strict=True))
  config = config_lib.merge({'name': 'judge', **settings, **given})
  config_check.check_values(config)
  return row_settings.with_template(config)


def _check_arguments(num_cots, predictor, seed, with_cot: bool) -> None:
  problems = []
  if not _is_integer(num_cots) or num_cots < 1:
    problems.append(f'num_cots: {num_cots!r} is not an integer of at least 1')
  elif num_cots > 1 and not with_cot:
    problems.append(f'num_cots: {num_cots}, but this judge has no CoT; set 1')
  if predictor not in predictors.PREDICTORS:
    names = ', '.join(predictors.PREDICTORS)
    problems.append(f'predictor: {predictor!r} is not one of {names}')
  if not _is_integer(seed) or seed < 0:
    problems.append(f'seed: {seed!r} is not an integer of at least 0')
  if problems:
    raise types.InputError('\n'.join(problems))


def _read_rows(rows, setup: build.Setup) -> list[types.Example]:
  """Rows of any kind that `Judge.score` takes, checked."""
  name, marker = 'rows', setup.config.score.marker
  row_format = row_settings.row_format(setup.config)
  if isinstance(rows, str | os.PathLike):
    name = os.fspath(rows)
    examples, _ = records.read_examples(
      data_source.find(name),
      setup.grid,
      role='judge',
      marker=marker,
      row_format=row_format,
      name=name,
    )
  elif isinstance(rows, Mapping) or not isinstance(rows, Iterable):
    raise types.InputError(
      f'rows: is {type(rows).__name__}; give a list of rows, or a path'
    )
  else:
    examples, _ = records.examples_from_rows(
      list(rows),
      setup.grid,
      role='judge',
      marker=marker,
      name=name,
      row_format=row_format,
    )
  read_data.check_prompts(setup, {name: examples})
  if setup.config.data.too_long == 'truncate':
    examples, _ = fit_prompts.fit(setup, examples, name, trained=False)
  return examples


def _is_integer(value) -> bool:
  """Also one of numpy."""
  return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _make_logits(fns: types.ModelFns):
  """(params, tokens [B, L]) -> logits [B, L, V]."""

  def logits(params, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = fns.hidden(params, tokens, positions, jnp.ones_like(tokens))
    return fns.project(params, hidden)

  return logits


def _checked_tokens(
  token_ids, config: model_config_lib.ModelConfig
) -> np.ndarray:
  """Token ids as [B, L] int32."""
  try:
    tokens = np.asarray(token_ids)
  except ValueError as error:  # Rows of different lengths.
    raise types.InputError(f'token_ids: {error}') from error
  if tokens.ndim != 2 or not tokens.size:
    raise types.InputError(
      f'token_ids: shape {tokens.shape} is not [B, L] with at least one token'
    )
  if not np.issubdtype(tokens.dtype, np.integer):
    raise types.InputError(f'token_ids: {tokens.dtype} are no integers')
  bad = tokens[(tokens < 0) | (tokens >= config.vocab_size)]
  if bad.size:
    raise types.InputError(
      f'token_ids: {bad[0]} is not in 0..{config.vocab_size - 1}'
    )
  return tokens.astype(np.int32)
