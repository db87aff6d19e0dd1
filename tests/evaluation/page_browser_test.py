"""The report's page in a real browser, where the machine has one."""

import re

import pytest

from tests.evaluation import browser, page_test, reports
from tract_jax.evaluation import page, report_writing

pytestmark = pytest.mark.skipif(
  not browser.find(), reason='there is no Chromium on this machine'
)
LINES = "[...document.querySelectorAll('#list tbody tr')]"


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
  with browser.page(tmp_path_factory.mktemp('profile')) as found:
    yield found


def pick(opened, name, value):
  """Chooses a value in a filter, as a click would."""
  opened.run(
    f"(() => {{const e = document.getElementById('f-{name}');"
    f"e.value = '{value}';"
    "e.dispatchEvent(new Event(e.tagName === 'INPUT' ? 'input' : 'change'));"
    '})()'
  )


def count(opened):
  return opened.run("document.getElementById('count').textContent")


def url_of(folder, report, judged):
  report_writing.write_report(report, folder, judged)
  return (folder / 'report.html').as_uri()


@pytest.mark.parametrize('width', [1400, 390])
def test_filters_and_judgements(opened, tmp_path, width):
  rows = [page_test.prediction(i, value=1.0 + i / 25) for i in range(60)] + [
    page_test.prediction(60, value=None)
  ]
  judged = page_test.judged(
    groups=[
      page_test.group(rows),
      page_test.group(rows[:10], method='raft'),
    ]
  )
  url = url_of(tmp_path, reports.report(), judged)
  assert opened.open(url, width, 900) < 3
  # Nothing is wider than the page.
  wide, room = (
    opened.run(f'document.documentElement.{name}Width')
    for name in ('scroll', 'client')
  )
  assert width - 20 <= wide <= room <= width
  assert count(opened) == '71 found; page 1 of 3'
  assert opened.run(f'{LINES}.length') == 25
  opened.run("document.getElementById('after').click()")
  assert count(opened) == '71 found; page 2 of 3'
  pick(opened, 'method', 'raft')
  assert count(opened) == '10 found; page 1 of 1'
  pick(opened, 'method', '')
  pick(opened, 'invalid', 'invalid')
  assert count(opened) == '1 found; page 1 of 1'
  pick(opened, 'invalid', '')
  pick(opened, 'error', '1.5')
  assert count(opened) == '23 found; page 1 of 1'
  pick(opened, 'error', '')
  pick(opened, 'words', 'judge 2.')
  assert count(opened) == '2 found; page 1 of 1'
  pick(opened, 'words', '<script>alert(1)')
  assert count(opened) == '71 found; page 1 of 3'
  assert opened.run(f"{LINES}[0].querySelector('button').click()") is None
  assert opened.run("document.getElementById('judgement').open")
  text = opened.run("document.getElementById('body').innerText")
  for part in ('error 2', 'raters: 2, 4', 'CoT 1 of 2', 'Response', '0.500'):
    assert part in text
  assert page_test.EVIL.replace('\x00', '') in text.replace('\ufffd', '')
  # What is judged is marked in the prompt.
  marked = opened.run("document.querySelector('#body mark').textContent")
  assert '<script>alert(1)</script>' in marked
  opened.run("document.getElementById('next').click()")
  title = opened.run("document.getElementById('title').textContent")
  assert title.startswith('row ')
  opened.run("document.getElementById('close').click()")
  assert not opened.run("document.getElementById('judgement').open")
  # The judged texts made no element, nothing was said, nothing asked for.
  assert opened.run('document.scripts.length') == 2
  assert opened.run('document.images.length') == 0
  assert opened.problems == []
  assert [r for r in opened.requests if not r.startswith('data:')] == [url]


def test_two_systems_are_chosen_and_turned_round(opened, tmp_path):
  others = reports.systems(('raft',), seeds=(5, 6, 7))
  report = reports.report([*reports.systems(('tract', 'zero_shot')), *others])
  opened.open(url_of(tmp_path, report, page_test.judged()), 1000, 900)
  cells = (
    "[...document.querySelectorAll('#d-table tbody tr')].map("
    "(l) => [...l.cells].map((c) => c.textContent).join('|')).join(';')"
  )

  def choose(first, second):
    for name, value in (('first', first), ('second', second)):
      opened.run(
        f"(() => {{const e = document.getElementById('d-{name}');"
        f"e.value = '{value}/rail/1'; e.dispatchEvent(new Event('change'));"
        '})()'
      )
    lines = filter(None, opened.run(cells).split(';'))
    return [line.split('|') for line in lines]

  def note():
    return opened.run("document.getElementById('d-note').textContent")

  ours = report.differences[0]
  name, gap, excludes = choose('tract', 'raft')[0]
  mean, low, high = (float(part) for part in re.findall('[-.0-9]+', gap))
  assert name == 'r' and mean == pytest.approx(ours.mean, abs=5e-4)
  assert (low, high) == pytest.approx(ours.ci, abs=5e-4)
  assert excludes == ('no', 'yes')[ours.excludes_zero]
  assert note().startswith('Seeds: 2 and 3, rows: 80. Above zero the first is')
  _, gap, _ = choose('raft', 'tract')[0]
  found = [float(part) for part in re.findall('[-.0-9]+', gap)]
  assert found == [-mean, -high, -low]
  assert note().startswith('Seeds: 3 and 2, rows: 80.')
  assert choose('tract', 'zero_shot')[0][1:] == ['n/a', 'n/a']
  assert choose('tract', 'tract') == []
  assert note() == 'Choose two different systems.'
  assert opened.problems == []


def test_both_judgements_of_a_pair_are_found(opened, tmp_path):
  rows = [
    page_test.prediction(
      i, score=None, example_id=f'{i // 2}-{side}', pair_id=str(i // 2)
    )
    for i, side in enumerate(['chosen', 'rejected'] * 9)
  ]
  judged = page_test.judged(groups=[page_test.group(rows)])
  opened.open(url_of(tmp_path, reports.report(), judged), 1400, 900)
  pick(opened, 'words', 'pair 7')
  names = opened.run(
    f"{LINES}.map((e) => e.querySelector('button').textContent).join()"
  )
  assert names == '7-chosen,7-rejected'
  opened.run(f"{LINES}[1].querySelector('button').click()")
  text = opened.run("document.getElementById('body').innerText")
  assert 'pair 7' in text
  assert opened.problems == []


def test_no_other_script_may_run(opened, tmp_path):
  text = page.report_html(reports.report(), page_test.judged())
  path = tmp_path / 'changed.html'
  path.write_text(
    text.replace('</main>', '</main><script>document.title = "x"</script>')
  )
  opened.open(path.as_uri(), 800, 600)
  assert opened.run('document.title') == 'Report'
  assert 'Content Security Policy' in str(opened.problems)


def test_page_without_judgements(opened, tmp_path):
  url = url_of(tmp_path, reports.report([]), page.NOTHING)
  opened.open(url, 390, 800)
  assert count(opened) == '0 found; page 1 of 1'
  assert opened.problems == []
