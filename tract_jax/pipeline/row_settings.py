"""What the configuration says about reading rows and rendering prompts."""

from etils import epath
import ml_collections

from tract_jax import types
from tract_jax.data import row_kinds
from tract_jax.pipeline import config as config_lib
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
    fields=config_lib.parse_fields(data.fields),
  )
