"""Tables of curves, a line for each size, and how cost grows with it.

In: rows of results called figure.curve.size. Out: Markdown.

  | slots | `tokens_per_sec` | | `peak_memory_bytes` |
  |---|---|---|---|
  | 1 | 10 | ▇▇▇▇▇ | 1,000 |
  | 4 | 20 | ▇▇▇▇▇▇▇▇▇▇ | 2,000 |

  - `tokens_per_sec`: 4 times the slots take 2 times as long (power 0.50). The
    rate is highest at 4.

Of three sizes and more, the last two are told of, too: a curve may bend.
"""

from collections.abc import Iterator, Sequence
import math

from benchmarks import results

_BAR = 10
# What sizes count, by curve.
_SIZES = {
  'length': 'tokens of a row',
  'batch': 'rows of an update',
  'slots': 'slots',
  'data': 'rows',
}
_Curve = dict[str, dict[int, results.Row]]  # By figure and size.


def sections(rows: Sequence[results.Row]) -> Iterator[str]:
  """The Markdown of each curve.

  Args:
    rows: called figure.curve.size.

  Yields:
    A table, and the list of how cost grows.
  """
  curves: dict[str, _Curve] = {}
  for row in rows:
    figure, name, size = row.name.split('.')
    curves.setdefault(name, {}).setdefault(figure, {})[int(size)] = row
  for name, curve in curves.items():
    yield f'`{name}`:'
    yield '\n'.join(_table(_SIZES.get(name, name), curve))
    yield '\n'.join(
      _growth(figure, _SIZES.get(name, name), points)
      for figure, points in curve.items()
      if _is_rate(figure) and len(points) > 1
    )


def growth_power(first: tuple[int, float], last: tuple[int, float]) -> float:
  """The power p of a size with which the time of all its work grows.

  At `rate` a second, work of `size` takes size / rate, and

    p = log(time ratio) / log(size ratio)

  Args:
    first, last: (size, rate), of different sizes.

  Returns:
    1 where the rate stays, 0 where the time does.
  """
  return math.log(_time_ratio(first, last)) / math.log(last[0] / first[0])


def _time_ratio(first: tuple[int, float], last: tuple[int, float]) -> float:
  return (last[0] / last[1]) / (first[0] / first[1])


def _growth(figure: str, what: str, points: dict[int, results.Row]) -> str:
  rates = [(size, points[size].ours) for size in sorted(points)]
  first, last = rates[0], rates[-1]
  text = (
    f'- `{figure}`: {last[0] / first[0]:.3g} times the {what} take'
    f' {_times_as_long(first, last)}'
  )
  if len(rates) > 2:
    before = rates[-2]
    text += (
      f'; from {before[0]:,} to {last[0]:,}, {last[0] / before[0]:.3g} times'
      f' take {_times_as_long(before, last)}'
    )
  peak = max(rates, key=lambda point: point[1])[0]
  return f'{text}. The rate is highest at {peak:,}.'


def _times_as_long(first: tuple[int, float], last: tuple[int, float]) -> str:
  return (
    f'{_time_ratio(first, last):.3g} times as long (power'
    f' {growth_power(first, last):.2f})'
  )


def _table(what: str, curve: _Curve) -> Iterator[str]:
  """Lines of Markdown; a bar is as long as its figure, next to the largest."""
  header = [what]
  for figure, points in curve.items():
    header += [f'`{figure}`', *[''] * _is_rate(figure)]
    header += ['theirs'] * _has_theirs(points)
  yield _line(header)
  yield '|' + '---|' * len(header)
  for size in sorted({size for points in curve.values() for size in points}):
    cells = [f'{size:,}']
    for figure, points in curve.items():
      row = points.get(size)
      cells.append(results.shown(row.ours if row else None))
      if _is_rate(figure):
        most = max(point.ours for point in points.values())
        cells.append('▇' * math.ceil(_BAR * row.ours / most) if row else '')
      if _has_theirs(points):
        cells.append(results.shown(row.theirs if row else None))
    yield _line(cells)


def _is_rate(figure: str) -> bool:
  return figure.endswith('_per_sec')


def _has_theirs(points: dict[int, results.Row]) -> bool:
  return any(row.theirs is not None for row in points.values())


def _line(cells: Sequence[str]) -> str:
  return f'| {" | ".join(cells)} |'
