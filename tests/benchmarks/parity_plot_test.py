"""Curves as SVG, by hand."""

from xml.etree import ElementTree

import numpy as np

from benchmarks import parity_plot

SVG = '{http://www.w3.org/2000/svg}'


def drawn(*panels):
  return ElementTree.fromstring(parity_plot.svg({'a <case>': panels}))


def points(line):
  pairs = [pair.split(',') for pair in line.attrib['points'].split()]
  return np.array(pairs, float)


def test_lines_span_their_panel_and_share_its_scale():
  ours, theirs = np.array([3.0, 2.0, 1.0]), np.array([3.0, 2.0, 2.0])
  root = drawn(parity_plot.Panel('loss', {'ours': ours, 'theirs': theirs}))
  frame = root.findall(f'{SVG}rect')[1].attrib
  left, top = float(frame['x']), float(frame['y'])
  width, height = float(frame['width']), float(frame['height'])
  mine, others = map(points, root.findall(f'{SVG}polyline'))
  np.testing.assert_allclose(mine[:, 0], left + width * np.array([0, 0.5, 1]))
  np.testing.assert_allclose(mine[:, 1], top + height * np.array([0, 0.5, 1]))
  np.testing.assert_allclose(
    others[:, 1], top + height * np.array([0, 0.5, 0.5])
  )
  texts = [text.text for text in root.findall(f'{SVG}text')]
  assert texts == [
    'a <case>',
    'loss (ours solid, theirs dashed)',
    '3',
    '1',
    'step 2',
  ]


def test_a_logarithmic_panel_marks_its_limit_and_leaves_zeros_out():
  apart = np.array([0.0, 1e-6, 1e-5])
  root = drawn(
    parity_plot.Panel('apart', {'apart': apart}, is_log=True, limit=1e-4)
  )
  (line,) = map(points, root.findall(f'{SVG}polyline'))
  assert len(line) == 2
  (limit,) = root.findall(f'{SVG}line')
  frame = root.findall(f'{SVG}rect')[1].attrib
  assert float(limit.attrib['y1']) == float(frame['y'])
  # 1e-5 is half the way from 1e-6 to 1e-4.
  middle = float(frame['y']) + float(frame['height']) / 2
  assert line[1, 1] == middle
  texts = [text.text for text in root.findall(f'{SVG}text')]
  assert texts[2:4] == ['1e-04', '1e-06']


def test_a_constant_line_and_one_without_numbers():
  for values in (np.full(3, 2.0), np.full(3, np.nan), np.zeros(0)):
    drawn(parity_plot.Panel('ce', {'ours': values}))
