"""Plots as inline SVG: text, with no style or script of its own.

In: points in the data's units. Out: a figure as HTML, whose colours are classes
"s0" to "s7" of the page's style; a series keeps its class in all plots. All
text is escaped.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import html
import math

import numpy as np

NUM_COLOURS = 8
_WIDTH, _HEIGHT = 360, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 40
_ROW_HEIGHT = 22
_FOREST_LEFT = 12

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Axis:
  """What a side of a plot shows.

  Attributes:
    label: beside it.
    low, high: the values at its ends.
    marks: (value, text) to be written; () for round numbers.
  """

  label: str
  low: float
  high: float
  marks: Sequence[tuple[float, str]] = ()


@dataclasses.dataclass(frozen=True)
class Series:
  """Points of one name.

  Attributes:
    name: in the legend; "" for none.
    colour: its class, from 0.
    points: (x, y), joined by a line where `joined` says so.
    sizes: radius of each, in pixels; () for 3 each.
    titles: of each, seen on hovering; () for none.
    joined: whether a line goes through them.
    is_guide: a thin dashed line without points.
  """

  name: str
  colour: int
  points: Sequence[Point]
  sizes: Sequence[float] = ()
  titles: Sequence[str] = ()
  joined: bool = False
  is_guide: bool = False


@dataclasses.dataclass(frozen=True)
class Bar:
  """A line of a forest plot: its label, mean and interval."""

  label: str
  mean: float
  low: float
  high: float


def axis(
  label: str,
  values: Iterable[float],
  marks: Sequence[tuple[float, str]] = (),
) -> Axis:
  """An axis that holds all values, with some room."""
  found = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
  low, high = min(found), max(found)
  room = 0.06 * (high - low) or 0.5
  return Axis(label, low - room, high + room, marks)


def ticks(low: float, high: float) -> list[float]:
  """Some four to eight round numbers between two.

  Example:
    >>> ticks(0.9, 5.1)
    [1.0, 2.0, 3.0, 4.0, 5.0]
  """
  rough = (high - low) / 6
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough)
  first = math.ceil(low / step - 1e-9)
  last = math.floor(high / step + 1e-9)
  # Rounded, so that .30000000000000004 is .3.
  return [float(f'{i * step:.10g}') for i in range(first, last + 1)]


def chart(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
  """A plot of points and lines.

  Args:
    title: above it.
    x, y: the axes.
    series: in the order in which they are drawn.

  Returns:
    A <figure>.
  """
  to_x = _scale(x.low, x.high, _LEFT, _WIDTH - _RIGHT)
  to_y = _scale(y.low, y.high, _HEIGHT - _BOTTOM, _TOP)
  parts = [
    *_x_ticks(to_x, x, _TOP, _HEIGHT - _BOTTOM),
    *_y_ticks(to_y, y),
    *(mark for s in series for mark in _marks(s, to_x, to_y)),
    _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, x.label, 'middle'),
    f'<g transform="rotate(-90)">'
    f'{_text(-(_HEIGHT - _BOTTOM + _TOP) / 2, 12, y.label, "middle")}</g>',
  ]
  names = {s.colour: s.name for s in series if s.name}
  return _figure(title, _HEIGHT, parts, names)


def forest(
  title: str, label: str, bars: Sequence[Bar], nothing: float = 0.0
) -> str:
  """A forest plot: an interval a line, and where nothing is found.

  Args:
    title: above it.
    label: of what is measured.
    bars: from top to bottom, at least one.
    nothing: the value of no effect.

  Returns:
    A <figure>.
  """
  x = axis(
    label, [nothing, *(v for b in bars for v in (b.low, b.mean, b.high))]
  )
  bottom = _TOP + 2 * _ROW_HEIGHT * len(bars)
  to_x = _scale(x.low, x.high, _FOREST_LEFT, _WIDTH - _RIGHT)
  parts = [*_x_ticks(to_x, x, _TOP, bottom)]
  zero = to_x(nothing)
  parts.append(_line(zero, _TOP, zero, bottom, 'zero'))
  for i, bar in enumerate(bars):
    figures = f'{bar.mean:.3f} ({bar.low:.3f}, {bar.high:.3f})'
    top = _TOP + 2 * _ROW_HEIGHT * i
    at = top + 1.5 * _ROW_HEIGHT
    parts += [
      _text(_FOREST_LEFT, top + 0.75 * _ROW_HEIGHT, bar.label, 'start'),
      _line(to_x(bar.low), at, to_x(bar.high), at, 's0'),
      _dot(to_x(bar.mean), at, 4, 0, figures),
    ]
  height = bottom + _BOTTOM
  parts.append(_text((_LEFT + _WIDTH) / 2, height - 6, label, 'middle'))
  return _figure(title, height, parts, {})


def density(
  name: str, x: np.ndarray, y: np.ndarray, num_bins: int = 24
) -> Series:
  """Points as circles, whose areas say how many there are near.

  Args:
    name: of the series.
    x, y: [n] finite.
    num_bins: along each side.

  Returns:
    A series of at most num_bins ** 2 points.
  """
  counts, *edges = np.histogram2d(x, y, bins=num_bins)
  sums = [np.histogram2d(x, y, bins=edges, weights=of)[0] for of in (x, y)]
  points, sizes, titles = [], [], []
  for i, j in np.argwhere(counts):
    # Their mean: a score of the grid stands where it is, not in mid-bin.
    points.append((sums[0][i, j] / counts[i, j], sums[1][i, j] / counts[i, j]))
    share = counts[i, j] / counts.max()
    sizes.append(1.5 + 5.5 * math.sqrt(share))
    titles.append(f'{int(counts[i, j])} rows')
  return Series(name, 0, points, sizes, titles)


def _scale(
  low: float, high: float, start: float, stop: float
) -> Callable[[float], float]:
  """From the data's units to pixels."""
  return lambda value: start + (value - low) / (high - low) * (stop - start)


def _marks(series: Series, to_x, to_y) -> Iterable[str]:
  points = [(to_x(x), to_y(y)) for x, y in series.points]
  kind = 'guide' if series.is_guide else f's{series.colour % NUM_COLOURS}'
  if series.joined or series.is_guide:
    joined = ' '.join(f'{x:.1f},{y:.1f}' for x, y in points)
    yield f'<polyline class="{kind}" points="{joined}"/>'
  if series.is_guide:
    return
  for i, (x, y) in enumerate(points):
    size = series.sizes[i] if series.sizes else 3
    title = series.titles[i] if series.titles else ''
    yield _dot(x, y, size, series.colour, title)


def _written(side: Axis) -> Sequence[tuple[float, str]]:
  return side.marks or [(v, f'{v:g}') for v in ticks(side.low, side.high)]


def _x_ticks(to_x, x: Axis, top: float, bottom: float) -> Iterable[str]:
  for value, text in _written(x):
    at = to_x(value)
    yield _line(at, top, at, bottom, 'grid')
    yield _text(at, bottom + 14, text, 'middle')


def _y_ticks(to_y, y: Axis) -> Iterable[str]:
  for value, text in _written(y):
    at = to_y(value)
    yield _line(_LEFT, at, _WIDTH - _RIGHT, at, 'grid')
    yield _text(_LEFT - 5, at + 4, text, 'end')


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
  return (
    f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}"'
    f' y2="{y2:.1f}"/>'
  )


def _dot(x: float, y: float, size: float, colour: int, title: str) -> str:
  inner = f'<title>{html.escape(title)}</title>' if title else ''
  return (
    f'<circle class="s{colour % NUM_COLOURS}" cx="{x:.1f}" cy="{y:.1f}"'
    f' r="{size:.1f}">{inner}</circle>'
  )


def _text(x: float, y: float, text: str, anchor: str) -> str:
  return (
    f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
    f'{html.escape(text)}</text>'
  )


def _figure(
  title: str, height: float, parts: Iterable[str], names: dict[int, str]
) -> str:
  legend = ''.join(
    f'<span class="key s{colour % NUM_COLOURS}">{html.escape(name)}</span>'
    for colour, name in names.items()
  )
  return (
    f'<figure><figcaption>{html.escape(title)}</figcaption>'
    f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label='
    f'"{html.escape(title)}">{"".join(parts)}</svg>'
    f'<div class="legend">{legend}</div></figure>'
  )
