"""Curves of `make parity` as one SVG, which needs no library and no network.

In: for each case a row of panels, each with the lines of both sides by step.
Out: the text of the file. The other side's line is dashed, so that where both
agree its dashes lie on ours.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import html
import math

import numpy as np

_WIDTH, _HEIGHT = 190, 110
_MARGIN, _TITLE, _GAP = 46, 24, 26
_STYLES = (
  'stroke="#1f5fa8" stroke-width="2.5"',
  'stroke="#e08214" stroke-width="1.5" stroke-dasharray="4 4"',
)


@dataclasses.dataclass(frozen=True)
class Panel:
  """One small picture.

  Attributes:
    title: above it.
    lines: {name: [steps]}, at most two; on a logarithmic axis if `is_log`.
    is_log: whether numbers are shown by their order; those at 0 are left out.
    limit: a level that is marked, or None.
  """

  title: str
  lines: Mapping[str, np.ndarray]
  is_log: bool = False
  limit: float | None = None


def svg(rows: Mapping[str, Sequence[Panel]]) -> str:
  """All panels, a row of them for each case.

  Args:
    rows: {case: panels}; the same number for each.

  Returns:
    The text of an SVG file.
  """
  columns = max(map(len, rows.values()))
  width = columns * (_WIDTH + _MARGIN) + _GAP
  row_height = _TITLE + _HEIGHT + 2 * _GAP
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width}'
    f' {row_height * len(rows)}" font-family="sans-serif" font-size="10">',
    '<rect width="100%" height="100%" fill="white"/>',
  ]
  for r, (case, panels) in enumerate(rows.items()):
    top = r * row_height + _TITLE
    parts.append(_text(_MARGIN, top - 8, case, 'font-weight="bold"'))
    for c, panel in enumerate(panels):
      left = _MARGIN + c * (_WIDTH + _MARGIN)
      parts += _panel(panel, left, top + _GAP // 2)
  return '\n'.join([*parts, '</svg>']) + '\n'


def _panel(panel: Panel, left: int, top: int) -> list[str]:
  levels = [_level(v, panel.is_log) for v in panel.lines.values()]
  shown = [level[np.isfinite(level)] for level in levels]
  if panel.limit is not None:
    shown.append(_level(np.array([panel.limit]), panel.is_log))
  every = np.concatenate(shown) if shown else np.zeros(0)
  low, high = (every.min(), every.max()) if len(every) else (0.0, 0.0)
  spread = (high - low) or 1.0

  def height(level: float) -> float:
    return top + _HEIGHT * (1 - (level - low) / spread)

  names = ', '.join(
    f'{name} {("solid", "dashed")[i]}' for i, name in enumerate(panel.lines)
  )
  title = f'{panel.title} ({names})' if len(panel.lines) > 1 else panel.title
  parts = [
    f'<rect x="{left}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}"'
    ' fill="none" stroke="#999"/>',
    _text(left, top - 3, title),
    *(
      _text(left - 3, y, _number(level, panel.is_log), 'text-anchor="end"')
      for level, y in ((high, top + 8), (low, top + _HEIGHT))
    ),
  ]
  for style, level in zip(_STYLES, levels, strict=False):
    across = _WIDTH / max(len(level) - 1, 1)
    points = ' '.join(
      f'{left + across * i:.1f},{height(y):.1f}'
      for i, y in enumerate(level)
      if math.isfinite(y)
    )
    parts.append(f'<polyline points="{points}" fill="none" {style}/>')
  if panel.limit is not None:
    y = height(float(shown[-1][0]))
    parts.append(
      f'<line x1="{left}" x2="{left + _WIDTH}" y1="{y:.1f}" y2="{y:.1f}"'
      ' stroke="#b2182b"/>'
    )
  num_steps = max(map(len, panel.lines.values()), default=0)
  parts.append(
    _text(
      left + _WIDTH,
      top + _HEIGHT + 11,
      f'step {num_steps - 1}',
      'text-anchor="end"',
    )
  )
  return parts


def _level(values: np.ndarray, is_log: bool) -> np.ndarray:
  """Heights before they are scaled; NaN where there is none."""
  values = np.asarray(values, np.float64)
  if not is_log:
    return values
  return np.log10(np.where(values > 0, values, np.nan))


def _number(level: float, is_log: bool) -> str:
  return f'{10.0**level:.0e}' if is_log else f'{level:.3g}'


def _text(x: float, y: float, text: str, more: str = '') -> str:
  return f'<text x="{x}" y="{y}" {more}>{html.escape(text)}</text>'
