"""What stands in the report's files, and that they are never half."""

import os
import re

import pytest

from tests.evaluation import reports
from tract_jax.evaluation import metrics, report_writing


class TestMarkdown:
  def test_results_line(self):
    combined = reports.report().combined
    (mean,) = [
      c for c in combined if (c.method, c.benchmark) == ('raft', 'mean')
    ]
    text = report_writing.report_markdown(reports.report())
    results, _ = text.split('## Other figures')
    (line,) = [x for x in results.split('\n') if x.startswith('| raft')]
    cells = [cell.strip() for cell in line.strip('|').split('|')]
    assert len(cells) == 4 + 3 + 3
    low, high = mean.pearson_ci
    shown = f'{mean.pearson:.3f} ({low:.3f}, {high:.3f})'.replace('0.', '.')
    assert cells[6] == shown
    assert cells[-1] == '0/160'
    assert cells[3] == '2'

  def test_every_figure_has_its_interval(self):
    report = reports.report()
    text = report_writing.report_markdown(report)
    (mean,) = [
      c for c in report.combined if (c.method, c.benchmark) == ('raft', 'mean')
    ]
    (line,) = [
      x for x in text.split('\n') if x.startswith('| raft | rail | 1 | mean')
    ]
    for name in ('spearman', 'kendall', 'rmse', 'mae', 'accuracy'):
      value, (low, high) = getattr(mean, name), getattr(mean, f'{name}_ci')
      assert low < value < high
      shown = f'{value:.3f} ({low:.3f}, {high:.3f})'
      assert re.sub(r'\b0\.', '.', shown) in line
    gap = report.differences[0].figures['rmse'].mean
    (line,) = [
      x
      for x in text.split('\n')
      if x.startswith('| tract/rail/1 | raft/rail/1') and '| yes |' not in x
    ]
    assert f'{gap:.3f}'.replace('0.', '.') in line

  def test_gap_table_is_the_mean_over_seeds(self):
    gaps = [
      metrics.CotGap('tract', 1, 0, 9, 0.1, 0.6, 2.0, 1.5),
      metrics.CotGap('tract', 1, 1, 9, 0.2, 0.6, 2.5, 1.5),
      metrics.CotGap('tract', 2, 0, 9, 1.45, None, reason='none there'),
    ]
    text = report_writing.report_markdown(reports.report(cot_gaps=gaps))
    assert '| tract | 1 | 2 | .150 | .600 | .450 | 2.250 | 1.500 |' in text
    assert '| tract | 2 | 1 | 1.450 | n/a | n/a | n/a | n/a |' in text
    assert 'tract stage 2, seed 0: none there' in text

  def test_text_from_data_is_escaped(self):
    method = 'a|b_<img src=x>*[x](http://y)\n# z `c` www.d.e'
    text = report_writing.report_markdown(
      reports.report([reports.system(method, 'flask', 0)])
    )
    # In the results and, without a mean of one benchmark, the other figures.
    line, _ = [x for x in text.split('\n') if x.startswith('| a')]
    assert len(re.findall(r'(?<!\\)\|', line)) == 4 + 1 + 3 + 1
    assert '\n# z' not in text
    for markup in ('<', '*', '[', ']', '`', '_', '#', '://', '.d'):
      assert re.search(rf'(?<!\\){re.escape(markup)}', line) is None, markup

  def test_missing_figures_are_explained(self):
    text = report_writing.report_markdown(reports.report())
    assert 'seed 1: pearson, spearman, kendall: constant' in text


class TestResultsTable:
  @pytest.mark.parametrize('num_benchmarks', [1, 4, 9])
  def test_width_and_content(self, num_benchmarks):
    names = [f'benchmark_with_a_long_name_{i}' for i in range(num_benchmarks)]
    methods = ('tract', 'raft', 'm' * 70)
    table = report_writing.results_table(
      reports.report(reports.systems(methods, names, (0,)))
    )
    assert max(map(len, table.split('\n'))) <= 100
    assert 'm' * 28 + '..' in table
    for name in names:
      assert name in table
    # Each block names its systems; one mean column where it says more.
    blocks = [b for b in table.split('\n\n') if b.startswith('method')]
    assert all(len(b.strip().split('\n')) == 4 for b in blocks)
    headers = ' '.join(b.split('\n')[0] for b in blocks)
    assert headers.count('mean') == (1 if num_benchmarks == 1 else 2)

  def test_differences_follow(self):
    table = report_writing.results_table(reports.report())
    assert re.search(r'tract/rail/1 +raft/rail/1 +\.\d{3} \(', table)


class TestWriteReport:
  def test_files_and_identical_bytes_on_repeat(self, tmp_path):
    folder = tmp_path / 'Bericht ü' / 'report'
    report_writing.write_report(reports.report(), folder)
    names = sorted(os.listdir(folder))
    assert names == sorted(report_writing.FILES)
    first = [(folder / name).read_bytes() for name in names]
    report_writing.write_report(reports.report(), folder)
    assert [(folder / name).read_bytes() for name in names] == first
    assert sorted(os.listdir(folder)) == names

  def test_a_report_that_cannot_be_written_leaves_the_earlier(self, tmp_path):
    report_writing.write_report(reports.report(), tmp_path)
    before = (tmp_path / 'report.md').read_bytes()
    gap = metrics.CotGap('tract', 1, 0, 9, 0.1, float('nan'))
    with pytest.raises(ValueError):
      report_writing.write_report(reports.report(cot_gaps=[gap]), tmp_path)
    assert (tmp_path / 'report.md').read_bytes() == before

  def test_a_failed_write_leaves_the_earlier(self, tmp_path, monkeypatch):
    report_writing.write_report(reports.report(), tmp_path)
    before = (tmp_path / 'metrics.json').read_bytes()

    def fail(*_, **__):
      raise OSError(28, 'No space left on device')

    monkeypatch.setattr(
      type(report_writing.epath.Path(tmp_path)), 'write_text', fail
    )
    with pytest.raises(OSError, match='No space left'):
      report_writing.write_report(
        reports.report(reports.systems(('raft',))), tmp_path
      )
    assert (tmp_path / 'metrics.json').read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == sorted(report_writing.FILES)
