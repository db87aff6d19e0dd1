"""judge.json: how an exported judge is to be used, in its own folder.

    {"schema": 1, "method": "tract", "predictor": "rail", "with_cot": true,
     "score": {"grid": [1.0, 2.0, 3.0, 4.0, 5.0], "format": "{:g}",
               "marker": "So the overall score is"},
     "sampling": {"temperature": 1.0, "top_k": 0, "top_p": 0.9,
                  "repetition_penalty": 1.03, "max_new_tokens": 1024},
     "data": {"max_length": 3072, "too_long": "error", "template": "",
              "use_reference": true, "system_prompt": ""}}

A judge answers in the words and on the grid that it was trained on, so its file
takes the place of the configuration's defaults. The file may come from anyone:
every field is checked, and none but these is read.
"""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

from etils import epath
import ml_collections

from tract_jax import types
from tract_jax.data import manifest
from tract_jax.models import json_file
from tract_jax.objectives import predictors
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import config_check
from tract_jax.pipeline import methods as methods_lib
from tract_jax.text import prompts

FILE = 'judge.json'
SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class JudgeFile:
  """How a judge is used; what is not said here is the configuration's.

  Attributes:
    method: the name of methods.METHODS that it was trained by.
    predictor: its own, of predictors.PREDICTORS.
    with_cot: whether it predicts after a sampled CoT.
    grid: [Y] the scores.
    score_format: a format of Python that writes a score.
    marker: the fixed words between CoT and score.
    temperature, top_k, top_p, repetition_penalty, max_new_tokens: of sampling.
    max_length: most tokens of prompt and target together.
    too_long: whether longer prompts are cut ("truncate").
    template: of its prompts; "" for those of the rows.
    use_reference: whether reference answers stand in them.
    system_prompt: stands before them.
  """

  method: str
  predictor: str
  with_cot: bool
  grid: tuple[float, ...]
  score_format: str
  marker: str
  temperature: float
  top_k: int
  top_p: float
  repetition_penalty: float
  max_new_tokens: int
  max_length: int
  too_long: str = 'error'
  template: str = ''
  use_reference: bool = True
  system_prompt: str = ''


# Of each key of the configuration, the attribute that has its value.
_KEYS = {
  'score.grid': 'grid',
  'score.format': 'score_format',
  'score.marker': 'marker',
  'sampling.temperature': 'temperature',
  'sampling.top_k': 'top_k',
  'sampling.top_p': 'top_p',
  'sampling.repetition_penalty': 'repetition_penalty',
  'sampling.max_new_tokens': 'max_new_tokens',
  'data.max_length': 'max_length',
  'data.too_long': 'too_long',
  'data.template': 'template',
  'data.use_reference': 'use_reference',
  'data.system_prompt': 'system_prompt',
}
_PROMPTS = ('data.template', 'data.use_reference', 'data.system_prompt')
# A file of an earlier version lacks these; it means their defaults.
_OPTIONAL = ('data.too_long', *_PROMPTS)
# What a judge has learnt; the rest is how it is asked.
_LEARNT = ('score.grid', 'score.format', 'score.marker', *_PROMPTS)
_OWN_KEYS = ('schema', 'method', 'predictor', 'with_cot')


def read(folder: epath.PathLike) -> JudgeFile | None:
  """Reads the judge.json of a model's folder.

  Args:
    folder: of the model, or of the adapter.

  Returns:
    Its content; None where there is no such file.

  Raises:
    types.InputError: a file that is too large, no JSON, of another schema, or
      with a field that is missing, unknown or bad; a line each.
  """
  path = epath.Path(folder) / FILE
  if not path.exists():
    return None
  return _parsed(path, json_file.read(path))


def write(folder: epath.PathLike, judge_file: JudgeFile) -> None:
  """Writes judge.json into a folder.

  Args:
    folder: of the model, or of the adapter.
    judge_file: its content.

  Raises:
    types.InputError: content that could not be read again.
  """
  fields: dict[str, Any] = {
    'schema': SCHEMA,
    'method': judge_file.method,
    'predictor': judge_file.predictor,
    'with_cot': judge_file.with_cot,
  }
  for key, attribute in _KEYS.items():
    section, name = key.split('.')
    value = getattr(judge_file, attribute)
    fields.setdefault(section, {})[name] = (
      list(value) if isinstance(value, tuple) else value
    )
  path = epath.Path(folder) / FILE
  _parsed(path, fields)
  manifest.write_json_atomic(path, fields)


def from_run(config: ml_collections.ConfigDict, method_name: str) -> JudgeFile:
  """What a run says about the judge that it trains.

  Args:
    config: of the run.
    method_name: a name of methods.METHODS.

  Returns:
    The content of its judge.json.
  """
  table = methods_lib.trained_with(config.train.expectation)
  method = table[method_name]
  values = {
    attribute: config_lib.get(config, key) for key, attribute in _KEYS.items()
  }
  return JudgeFile(
    method=method_name,
    predictor=method.predictor,
    with_cot=method.with_cot,
    **values,
  )


def applied(
  config: ml_collections.ConfigDict, folder: epath.PathLike
) -> tuple[ml_collections.ConfigDict, dict[str, methods_lib.Method]]:
  """The configuration and the methods of a model that is used as it is.

  The judge's settings take the place of the values that stand at their
  defaults. Other values of sampling and length win over the judge's: they are
  how it is asked. Another grid, format, marker, template, use of references or
  system prompt is refused: the judge has learnt its own.

  Args:
    config: with every key.
    folder: of the model, or of the adapter; without judge.json it is used by
      those of config.methods that train nothing, or zero-shot.

  Returns:
    The config, with the methods' names for `methods` and without fresh
    adapters, since nothing is trained; and {name: method}.

  Raises:
    types.InputError: a bad judge.json, or one that the config contradicts.
  """
  config = config.copy_and_resolve_references()
  config.model.lora_rank = 0
  judge_file = read(folder)
  if judge_file is None:
    config.methods = methods_lib.untrained(config.methods) or ('zero_shot',)
    used = {name: methods_lib.METHODS[name] for name in config.methods}
    return config, used
  config.methods = (judge_file.method,)
  defaults, problems = config_lib.default_config(), []
  for key, attribute in _KEYS.items():
    asked, own = config_lib.get(config, key), getattr(judge_file, attribute)
    if asked == config_lib.get(defaults, key):
      section, name = key.split('.')
      config[section][name] = own
    elif asked != own and key in _LEARNT:
      problems.append(
        f'config.{key}: {asked!r}, but the judge in {folder} has {own!r}'
      )
  if config.num_cots > 1 and not judge_file.with_cot:
    problems.append(
      f'config.num_cots: {config.num_cots}, but the judge in {folder} predicts '
      'without CoT; set 1'
    )
  method = methods_lib.Method(
    stages=methods_lib.METHODS[judge_file.method].stages,
    predictor=judge_file.predictor,
    with_cot=judge_file.with_cot,
  )
  used = {judge_file.method: method}
  if problems:
    raise types.InputError('\n'.join(problems))
  return config, used


def _parsed(path: epath.Path, content: Any) -> JudgeFile:
  """The content of a judge.json, once everything in it is checked."""
  if not isinstance(content, dict):
    raise types.InputError(
      f'{path}: is {type(content).__name__}, not an object'
    )
  if content.get('schema') != SCHEMA or content['schema'] is True:
    raise types.InputError(
      f'{path}: schema: {content.get("schema")!r} is not {SCHEMA}'
    )
  fields = dict(_flat(content))
  problems = list(_key_problems(fields))
  if not problems:
    values = _typed(path, {k: fields[k] for k in _KEYS if k in fields})
    fields |= values
    problems = list(_value_problems(fields))
  if problems:
    raise types.InputError('\n'.join(f'{path}: {line}' for line in problems))
  return JudgeFile(
    fields['method'],
    fields['predictor'],
    fields['with_cot'],
    **{attribute: values[key] for key, attribute in _KEYS.items()},
  )


def _flat(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """Dotted keys, one level deep, as those of the configuration."""
  for key, value in content.items():
    if isinstance(value, dict):
      yield from ((f'{key}.{name}', inner) for name, inner in value.items())
    else:
      yield key, value


def _key_problems(fields: Mapping[str, Any]) -> Iterator[str]:
  known = (*_OWN_KEYS, *_KEYS)
  needed = [key for key in known if key not in _OPTIONAL]
  yield from (f'{key}: is missing' for key in needed if key not in fields)
  yield from (f'{key}: is unknown' for key in fields if key not in known)


def _typed(path: epath.Path, settings: dict[str, Any]) -> dict[str, Any]:
  """The settings with the types that the configuration's keys have."""
  try:
    config = config_lib.merge(settings)
  except types.InputError as error:
    lines = str(error).splitlines()
    raise types.InputError(
      '\n'.join(f'{path}: {line.removeprefix("config.")}' for line in lines)
    ) from error
  return {key: config_lib.get(config, key) for key in _KEYS}


def _value_problems(fields: Mapping[str, Any]) -> Iterator[str]:
  allowed = {'method': methods_lib.METHODS, 'predictor': predictors.PREDICTORS}
  for key, names in allowed.items():
    if not isinstance(fields[key], str) or fields[key] not in names:
      yield f'{key}: {fields[key]!r} is not one of {", ".join(names)}'
  if not isinstance(fields['with_cot'], bool):
    yield f'with_cot: {fields["with_cot"]!r} is not true or false'
  for key in _KEYS:
    if reason := config_check.reason_against(key, fields[key]):
      yield f'{key}: {fields[key]!r} {reason}'
  try:
    prompts.make_score_grid(fields['score.grid'], fields['score.format'])
  except types.InputError as error:
    yield from str(error).splitlines()
