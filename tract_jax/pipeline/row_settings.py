"""What the configuration says about files, rows and prompts."""

import re

from etils import epath
import ml_collections

from tract_jax import types
from tract_jax.data import manifest, row_kinds
from tract_jax.evaluation import report
from tract_jax.pipeline import methods
from tract_jax.text import prompt_template


def with_template(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """The configuration with the text of `data.template_path` in `data.template`.

  An exported judge carries the text, not the path.

  Args:
    config: with every key.

  Returns:
    The same where there is no path; else a copy.

  Raises:
    types.InputError: a file that cannot be read, is not UTF-8, or is no
      template; a line for each problem.
  """
  path = config.data.template_path
  if not path:
    return config
  try:
    # As Python's own text files: any line ends, and no byte order mark.
    text = epath.Path(path).read_bytes().decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise types.InputError(f'{path}: is not UTF-8') from error
  except OSError as error:
    raise types.InputError(
      f'{path}: cannot be read: {error.strerror or error}'
    ) from error
  text = text.replace('\r\n', '\n').rstrip()
  if config.data.template not in ('', text):
    raise types.InputError(
      f'config.data.template_path: {path!r} has another text than '
      'config.data.template; give one of them'
    )
  problems = list(prompt_template.problems(text))
  if problems:
    raise types.InputError('\n'.join(f'{path}: {line}' for line in problems))
  config = config.copy_and_resolve_references()
  config.data.template = text
  return config


def row_format(config: ml_collections.ConfigDict) -> row_kinds.RowFormat:
  """How rows are read.

  Args:
    config: as of `with_template`.

  Returns:
    The template, the reference answers and the names of columns.

  Raises:
    types.InputError: a bad `data.fields`.
  """
  data = config.data
  return row_kinds.RowFormat(
    template=data.template,
    use_reference=data.use_reference,
    fields=parse_fields(data.fields),
  )


def parse_benchmarks(text: str) -> dict[str, str]:
  """Benchmarks of `config.data.benchmarks`.

  Args:
    text: "name=path,name=path"; a path alone is named by its file.

  Returns:
    {name: path}, in order; names are fit for a file name.

  Raises:
    types.InputError: a name that is not, or that is taken.
  """
  found: dict[str, str] = {}
  for part in filter(None, (p.strip() for p in text.split(','))):
    name, equals, path = part.partition('=')
    if not equals:
      name, path = re.split('[.@]', part.rsplit('/', 1)[-1])[0], part
    try:
      manifest.checked_name(name)
    except types.InputError as error:
      raise types.InputError(
        f'config.data.benchmarks: {part!r}: {error}; write NAME={path}'
      ) from error
    if name in found or name == report.MEAN:
      taken = 'stands twice' if name in found else 'is the mean of all of them'
      raise types.InputError(
        f'config.data.benchmarks: {name!r} {taken}; give each its name'
      )
    found[name] = path
  return found


def parse_others(text: str) -> list[tuple[str, str, str]]:
  """Files of `config.evaluation.others`.

  Args:
    text: "SYSTEM/BENCHMARK=path,SYSTEM/BENCHMARK=path"; several files of one
      are its seeds.

  Returns:
    (system, benchmark, path), in order; systems are fit for a report's rows,
    and none of our methods.

  Raises:
    types.InputError: a part of another form, a bad name, or a file that stands
      twice; a line each.
  """
  found: list[tuple[str, str, str]] = []
  problems = []
  for part in filter(None, (p.strip() for p in text.split(','))):
    names, _, path = (word.strip() for word in part.partition('='))
    system, slash, benchmark = names.partition('/')
    if not (slash and path):
      problems.append(f'{part!r} is not like SYSTEM/BENCHMARK=PATH')
      continue
    for name in (system, benchmark):
      try:
        manifest.checked_name(name)
      except types.InputError as error:
        problems.append(f'{part!r}: {error}')
    if system in methods.METHODS:
      problems.append(f'{part!r}: {system!r} is a method of ours; rename it')
    if (system, benchmark, path) in found:
      problems.append(f'{part!r} stands twice')
    found.append((system, benchmark, path))
  if problems:
    raise types.InputError(
      '\n'.join(f'config.evaluation.others: {line}' for line in problems)
    )
  return found


def parse_fields(text: str) -> dict[str, str]:
  """Columns of `config.data.fields`.

  Args:
    text: "ours=column,ours=column".

  Returns:
    {name of row_kinds.FIELDS: column}, in order.

  Raises:
    types.InputError: a name that is none of ours, or stands twice, or has no
      column; a line each.
  """
  found: dict[str, str] = {}
  problems = []
  for part in filter(None, (p.strip() for p in text.split(','))):
    ours, _, column = (word.strip() for word in part.partition('='))
    if ours not in row_kinds.FIELDS:
      names = ', '.join(row_kinds.FIELDS)
      problems.append(f'{ours!r} is not one of {names}')
    elif not column:
      problems.append(f'{part!r} is not like {ours}=column')
    elif ours in found:
      problems.append(f'{ours!r} stands twice')
    found[ours] = column
  if problems:
    raise types.InputError(
      '\n'.join(f'config.data.fields: {line}' for line in problems)
    )
  return found
