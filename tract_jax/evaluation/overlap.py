"""How much of a CoT is said in the words of its rubric: BLEU-4 and ROUGE-L.

In: a CoT and the rubric that its row is judged by. Out: two numbers from 0 (no
words in common) to 1 (the same text). The libraries are of the extra
"analyses", and imported when a figure is made.
"""

from collections.abc import Callable
import importlib.metadata
import re

_LIBRARIES = ('sacrebleu', 'rapidfuzz')
_WORD = re.compile(r'[^\W_]+')

Measure = Callable[[str, str], float]


def versions() -> str:
  """What figures are made with; "" where a library is not there."""
  try:
    found = [f'{n} {importlib.metadata.version(n)}' for n in _LIBRARIES]
  except importlib.metadata.PackageNotFoundError:
    return ''
  return ', '.join(found)


def measures() -> dict[str, Measure]:
  """What is measured, by name; each is (CoT, rubric) -> number in [0, 1].

  "bleu" is sentence BLEU with the rubric as the only reference: n-grams up to
  4, or up to as many as there are, exponential smoothing (Chen and Cherry,
  WMT 2014, method 3), tokens as in WMT (13a).

  "rouge_l" is the F1 of the longest common subsequence of words, in lower case
  and without punctuation: 2 LCS / (m + n) for m and n words (Lin, ROUGE, 2004,
  with beta = 1); the same as rouge-score's "rougeL" for ASCII text, without
  stemming.

  Returns:
    The measures; none where a library is not there.
  """
  if not versions():
    return {}
  from rapidfuzz import distance
  from sacrebleu import metrics

  scorer = metrics.BLEU(effective_order=True)

  def bleu(cot: str, rubric: str) -> float:
    # Rounding makes the same text a little more than 100.
    return min(scorer.sentence_score(cot, [rubric]).score / 100, 1.0)

  def rouge_l(cot: str, rubric: str) -> float:
    words, wanted = (_WORD.findall(text.lower()) for text in (cot, rubric))
    common = distance.LCSseq.similarity(words, wanted)
    return 2 * common / max(len(words) + len(wanted), 1)

  return {'bleu': bleu, 'rouge_l': rouge_l}
