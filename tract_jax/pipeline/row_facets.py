"""What the rows of a prediction file are, for breakdowns by kind.

In: predictions, and the benchmark's rows where they are known. Out: for each
facet of evaluation/breakdowns a text for each row; "" where it is unknown.
"""

from collections.abc import Mapping, Sequence

from tract_jax import types
from tract_jax.evaluation import breakdowns
from tract_jax.text import prompt_template

_MAX_TEXT = 80


def facets(
  rows: Sequence[types.Prediction],
  examples: Mapping[str, types.Example],
  grid: types.ScoreGrid,
  num_cots: int,
) -> dict[str, list[str]]:
  """The facets of rows.

  Args:
    rows: [n] predictions of one seed.
    examples: {id: the benchmark's row}, for what prediction files lack.
    grid: fractional scores go to the nearest of it.
    num_cots: of each row's CoTs, how many were used; 0: there are none.

  Returns:
    {one of breakdowns.FACETS: [n] values}.
  """
  known = [examples.get(row.example_id) for row in rows]
  found = {
    'category': [row.category for row in rows],
    'response_source': [e.response_source if e else '' for e in known],
    'rubric': [prompt_template.rubric_of(e.prompt) if e else '' for e in known],
    'score': [
      '' if row.score is None else grid.texts[grid.nearest(row.score)]
      for row in rows
    ],
    'finish_reason': [
      ', '.join(sorted(set(row.finish_reasons[:num_cots]))) for row in rows
    ],
  }
  if num_cots:
    found['cot_length'] = breakdowns.thirds(
      [sum(map(len, row.cots[:num_cots])) for row in rows]
    )
  return {facet: [*map(_short, values)] for facet, values in found.items()}


def _short(text: str) -> str:
  return text if len(text) <= _MAX_TEXT else f'{text[: _MAX_TEXT - 2]}..'
