"""The report as one page of HTML, with a browser of single judgements.

In: a report, what methods predicted, and chosen judgements. Out: the text of
report/report.html. Nothing is loaded from elsewhere, which the page's policy
forbids as well: it names the digests of its own style and script, and no other
runs. All text of the data is escaped; the judgements stand in it as JSON in
which no "<" can end the element.
"""

import base64
from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import html
import json
import re
from typing import Any

from tract_jax import types
from tract_jax.evaluation import (
  charts,
  compared_seeds,
  intervals,
  judgements,
  metrics,
  page_script,
  page_style,
  report_sections,
  tables,
)
from tract_jax.evaluation import report as report_lib

_FILTERS = ('benchmark', 'method', 'seed')
_COLUMNS = ('row', *_FILTERS, 'score', 'prediction', 'error')
# Those that a narrow page leaves out.
_WIDE = ('benchmark', 'seed')


@dataclasses.dataclass(frozen=True)
class Judged:
  """What the page shows of single rows.

  Attributes:
    grid: the scores.
    benchmarks: {name: its rows}.
    predicted: what each method's own predictor said, for plots.
    groups: the judgements that can be opened.
  """

  grid: types.ScoreGrid
  benchmarks: Mapping[str, Sequence[types.Example]]
  predicted: Sequence[metrics.SystemPredictions] = ()
  groups: Sequence[judgements.Group] = ()


NOTHING = Judged(types.ScoreGrid((), ()), {})


def report_html(report: report_lib.Report, judged: Judged) -> str:
  """Text of report/report.html.

  Args:
    report: its figures.
    judged: its single rows.

  Returns:
    A whole document.
  """
  content = judgements.content(
    judged.groups, judged.benchmarks, judged.grid, report.fallback
  )
  content['differences'] = [*map(_difference, report.choice)]
  plots = {
    'Results': charts.scatters(judged.predicted, report.fallback)
    + charts.cot_curves(report.cot_curve),
    'Differences': charts.forest(report),
    'Preference pairs': charts.pairs(report),
    'Calibration': charts.calibrations(report.calibrations),
    'Choice of lambda': charts.lambdas(report.lambda_points),
  }
  sections = report_sections.sections(report)
  titles = [section.title for section in sections]
  more = {'Differences': _choice(report)}
  *first, last = (
    _section(s, plots.get(s.title, []), more.get(s.title, '')) for s in sections
  )
  name = tables.plain(report.config.get('name') or '')
  body = [
    f'<h1>Report{" of " + _text(name) if name else ""}</h1>',
    _contents([*titles[:-1], 'Judgements', titles[-1]]),
    *first,
    _browser(judged, report.half_step),
    last,
  ]
  return _document(''.join(body), content)


def embedded(content: Any) -> str:
  """JSON that may stand in an HTML element of any kind.

  Args:
    content: as JSON has it.

  Returns:
    JSON with the same content, in which <, > and & are written as escapes and
    half a surrogate pair has become U+FFFD.
  """
  text = json.dumps(
    content, allow_nan=False, ensure_ascii=False, separators=(',', ':')
  )
  text = re.sub('[\ud800-\udfff]', '\ufffd', text)
  return re.sub('[<>&]', lambda m: f'\\u{ord(m[0]):04x}', text)


def _document(body: str, content: Any) -> str:
  style, script = page_style.STYLE, page_script.SCRIPT
  policy = (
    f"default-src 'none'; style-src '{_digest(style)}'; "
    f"script-src '{_digest(script)}'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
  )
  return (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta http-equiv="Content-Security-Policy" content="'
    f'{html.escape(policy)}">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="referrer" content="no-referrer">'
    '<link rel="icon" href="data:,"><title>Report</title>'
    f'<style>{style}</style></head>\n<body><main>{body}</main>\n{_DIALOG}'
    f'<script type="application/json" id="data">{embedded(content)}</script>\n'
    f'<script>{script}</script></body></html>\n'
  )


def _digest(text: str) -> str:
  """As a policy names what may be in a page."""
  found = hashlib.sha256(text.encode()).digest()
  return f'sha256-{base64.b64encode(found).decode()}'


def _text(value: Any) -> str:
  """Any cell as HTML text."""
  return html.escape(tables.plain(value))


def _anchor(title: str) -> str:
  return re.sub('[^a-z]+', '-', title.lower()).strip('-')


def _contents(titles: Sequence[str]) -> str:
  links = (f'<a href="#{_anchor(t)}">{_text(t)}</a>' for t in titles)
  return f'<nav>{"".join(links)}</nav>'


def _section(
  section: report_sections.Section, plots: Sequence[str], more: str
) -> str:
  parts = ''.join(map(_part, section.parts))
  if plots:
    parts += f'<div class="plots">{"".join(plots)}</div>'
  parts += more
  title = section.title
  return f'<h2 id="{_anchor(title)}">{_text(title)}</h2>{parts}'


def _part(part: report_sections.Part) -> str:
  if isinstance(part, report_sections.Bullets):
    lines = ''.join(f'<li>{_text(line)}</li>' for line in part.lines)
    return f'<ul>{lines}</ul>'
  if isinstance(part, str):
    return f'<p>{_text(part)}</p>'
  if not part.lines:
    return '<p>None.</p>'
  head = ''.join(f'<th>{_text(cell)}</th>' for cell in part.header)
  cells = (
    ''.join(f'<td>{_text(cell)}</td>' for cell in line) for line in part.lines
  )
  rows = ''.join(f'<tr>{line}</tr>' for line in cells)
  return (
    f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
    f'<tbody>{rows}</tbody></table></div>'
  )


def _difference(difference: intervals.Difference) -> dict[str, Any]:
  """A pair of systems as the script shows it."""
  first = intervals.Gap(
    difference.mean,
    difference.ci,
    difference.excludes_zero,
    difference.reason,
  )
  gaps = {'pearson': first, **difference.figures}
  seeds = difference.seeds, difference.seeds_b
  return {
    'a': str(difference.a),
    'b': str(difference.b),
    # In this order of the systems, and in the other.
    'seeds': [compared_seeds.shown(seeds), compared_seeds.shown(seeds[::-1])],
    'rows': difference.num_rows,
    'figures': [
      {
        'name': report_sections.FIGURES[name],
        # The last digits depend on the order of summation.
        'mean': gap.mean and round(gap.mean, 6),
        'ci': gap.ci and [round(end, 6) for end in gap.ci],
        'reason': gap.reason,
      }
      for name, gap in gaps.items()
    ],
  }


def _choice(report: report_lib.Report) -> str:
  """Two lists of systems and an empty table, which the script fills."""
  if not report.choice:
    return ''
  lists = ''.join(
    f'<label>{name}<select id="d-{name}"></select></label>'
    for name in ('first', 'second')
  )
  head = ''.join(
    f'<th>{name}</th>'
    for name in ('figure', 'first minus second', 'excludes 0')
  )
  return (
    '<div id="choice"><h3>Any two systems</h3>'
    f'<div class="filters">{lists}</div><div class="scroll">'
    f'<table id="d-table"><thead><tr>{head}</tr></thead>'
    '<tbody></tbody></table></div><p id="d-note"></p></div>'
  )


def _browser(judged: Judged, half_step: float) -> str:
  """Filters and an empty list, which the script fills."""
  selects = ''.join(
    f'<label>{name}<select id="f-{name}"><option value="">all</option>'
    '</select></label>'
    for name in _FILTERS
  )
  errors = ''.join(
    f'<option value="{size:g}">{size:g} or more</option>'
    for size in (half_step * times for times in (1, 2, 3, 4, 6))
    if size
  )
  head = ''.join(
    f'<th{" class=wide" if column in _WIDE else ""}>{column}</th>'
    for column in _COLUMNS
  )
  return (
    '<h2 id="judgements">Judgements</h2>'
    f"<p>{_text(judgements.said(judged.groups))} By each method's own "
    'predictor, the largest errors first; open one by its row.</p>'
    f'<div class="filters">{selects}'
    '<label>error<select id="f-error"><option value="">any</option>'
    f'{errors}</select></label>'
    '<label>validity<select id="f-invalid"><option value="">all</option>'
    '<option value="valid">valid</option>'
    '<option value="invalid">invalid</option></select></label>'
    '<label>words<input id="f-words" type="search"></label></div>'
    f'<div class="scroll"><table id="list"><thead><tr>{head}</tr></thead>'
    '<tbody></tbody></table></div>'
    '<div class="pager"><button id="before" type="button">Before</button>'
    '<button id="after" type="button">After</button>'
    '<span id="count"></span></div>'
    '<noscript><p>Judgements can be opened with JavaScript.</p></noscript>'
  )


_DIALOG = (
  '<dialog id="judgement" aria-labelledby="title"><div class="top">'
  '<strong id="title"></strong>'
  '<button id="previous" type="button">Previous</button>'
  '<button id="next" type="button">Next</button>'
  '<button id="close" type="button">Close</button></div>'
  '<div id="body"></div></dialog>\n'
)
