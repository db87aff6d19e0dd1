"""How much each row has to do with a correlation.

In: scores [n] and predictions [n]. Out: influence values [n], with mean 0: to
first order, a correlation moves by their mean over the rows of a resample
(Hampel, JASA 69, 1974; the infinitesimal jackknife, Efron, 1982). So 2,000
resamples of 100,000 rows take one matrix product, not 2,000 sorts. The rows
are seen as the population: correlations are functions of how much weight each
row has, in which the ranks take part.

Axes: n rows.
"""

import numpy as np
import scipy


def pearson(scores: np.ndarray, predictions: np.ndarray) -> np.ndarray:
  """Influence of each row on Pearson's r.

  With both sides standardised to mean 0 and variance 1,

    influence = x_i y_i - r (x_i^2 + y_i^2) / 2

  (Devlin, Gnanadesikan and Kettenring, Biometrika 62, 1975.)

  Args:
    scores, predictions: [n] finite, neither constant.

  Returns:
    [n] float64.
  """
  x, y = ((v - v.mean()) / v.std() for v in (scores, predictions))
  return x * y - np.mean(x * y) * (x * x + y * y) / 2


def spearman(scores: np.ndarray, predictions: np.ndarray) -> np.ndarray:
  """Influence of each row on Spearman's rho, ties at their mean rank.

  With a, b the mean ranks over n, less their mean 1/2, and rho = C / sqrt(A B)
  of C = mean(a b), A = mean(a a), B = mean(b b):

    dC_i = a_i b_i + mean_j(H(x_j - x_i) b_j) + mean_j(H(y_j - y_i) a_j) - 3 C

  with H(u) = 1, 1/2, 0 for u > 0, u = 0, u < 0: a row has a rank itself, and
  moves those above it. dA and dB are the same of a, a and b, b; then

    influence = dC / sqrt(A B) - rho / 2 (dA / A + dB / B)

  (Croux and Dehon, Stat. Methods Appl. 19, 2010, for continuous values.)

  Args:
    scores, predictions: [n] finite, neither constant.

  Returns:
    [n] float64.
  """
  a, b = _centred_ranks(scores), _centred_ranks(predictions)
  both, own_a, own_b = np.mean(a * b), np.mean(a * a), np.mean(b * b)
  d_both = a * b + _above(scores, b) + _above(predictions, a) - 3 * both
  d_a = a * a + 2 * _above(scores, a) - 3 * own_a
  d_b = b * b + 2 * _above(predictions, b) - 3 * own_b
  root = np.sqrt(own_a * own_b)
  return d_both / root - both / root / 2 * (d_a / own_a + d_b / own_b)


def kendall(scores: np.ndarray, predictions: np.ndarray) -> np.ndarray:
  """Influence of each row on Kendall's tau-b.

  With s_i = mean_j sign(x_i - x_j) sign(y_i - y_j), u_i and v_i the part of
  the rows that differ from row i in x and in y, and S, U, V their means, tau-b
  is S / sqrt(U V), and

    influence = 2 (s - S) / sqrt(U V) - tau ((u - U) / U + (v - V) / V)

  (Hoeffding's projection of the three U-statistics, and the delta method.)

  Args:
    scores, predictions: [n] finite, neither constant.

  Returns:
    [n] float64.
  """
  num_rows = len(scores)
  s = concordance(scores, predictions) / num_rows
  u, v = (1 - _ties(x) / num_rows for x in (scores, predictions))
  root = np.sqrt(u.mean() * v.mean())
  tau = s.mean() / root
  ties = (u - u.mean()) / u.mean() + (v - v.mean()) / v.mean()
  return 2 * (s - s.mean()) / root - tau * ties


def concordance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """[n] sums over the other rows of sign(x_i - x_j) sign(y_i - y_j).

  The side with fewer values is compared bit by bit of its rank: two rows that
  differ are told apart by the highest bit in which their ranks do, and are in
  one block of those with the same bits above. Within a block sorted by the
  other side, counts are differences of running sums: n log(n) per bit.

  Args:
    x, y: [n].

  Returns:
    [n] int64.
  """
  (ranks, num_ranks), (others, num_others) = sorted(
    (_dense_ranks(x), _dense_ranks(y)), key=lambda pair: pair[1]
  )
  order = np.argsort(others, kind='stable')
  ranks, others = ranks[order], others[order]
  sums = np.zeros(len(ranks), np.int64)
  for bit in range(int(num_ranks - 1).bit_length()):
    blocks = ranks >> (bit + 1)
    by_block = np.argsort(blocks, kind='stable')
    upper = (ranks[by_block] >> bit) & 1
    block = blocks[by_block]
    key = block * num_others + others[by_block]
    of_upper = np.concatenate([[0], np.cumsum(upper)])
    of_lower = np.arange(len(ranks) + 1) - of_upper
    ends = [
      (np.searchsorted(k, k, 'left'), np.searchsorted(k, k, 'right'))
      for k in (block, key)
    ]
    (start, stop), (first, last) = ends
    below_less_above = [
      c[first] - c[start] - (c[stop] - c[last]) for c in (of_upper, of_lower)
    ]
    sums[by_block] += np.where(upper, below_less_above[1], -below_less_above[0])
  out = np.empty_like(sums)
  out[order] = sums
  return out


def _dense_ranks(values: np.ndarray) -> tuple[np.ndarray, int]:
  """Ranks from 0 without gaps, and how many there are."""
  found, ranks = np.unique(values, return_inverse=True)
  return ranks.astype(np.int64), len(found)


def _ties(values: np.ndarray) -> np.ndarray:
  """[n] rows with the same value, the row itself among them."""
  ranks, _ = _dense_ranks(values)
  return np.bincount(ranks)[ranks]


def _centred_ranks(values: np.ndarray) -> np.ndarray:
  """[n] mean ranks over n, less 1/2."""
  return (scipy.stats.rankdata(values) - 0.5) / len(values) - 0.5


def _above(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """[n] mean over j of H(values_j - values_i) weights_j."""
  ranks, _ = _dense_ranks(values)
  sums = np.bincount(ranks, weights)
  above = sums.sum() - np.cumsum(sums)
  return (above + sums / 2)[ranks] / len(values)
