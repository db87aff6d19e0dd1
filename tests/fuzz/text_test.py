"""Any text through tokenizers, targets and the search for a CoT's end."""

import functools

from hypothesis import strategies as st
import numpy as np

from tests.fuzz import properties, strategies
from tests.text import small_tokenizers
from tract_jax import types
from tract_jax.data import encoding, truncation
from tract_jax.sampling import cot_end
from tract_jax.text import prompts, score_tokens

_GRIDS = {
  values: prompts.make_score_grid(values)
  for values in ((1, 2, 3, 4, 5), (0, 5, 10), (-1, 0, 1))
}
_TOKENIZERS = {
  'byte level': small_tokenizers.byte_level(),
  'byte level, joined digits': small_tokenizers.byte_level(False),
  'sentence piece': small_tokenizers.sentence_piece(),
  'sentence piece, no template': small_tokenizers.sentence_piece(False, None),
}
_tokenizers = st.sampled_from(sorted(_TOKENIZERS))
_texts = strategies.texts(surrogates=True)


@functools.cache
def _score_tokens(name: str, values: tuple, marker: str):
  """Score tokens, or why the vocabulary cannot write them."""
  try:
    return score_tokens.find_score_tokens(
      _TOKENIZERS[name], _GRIDS[values], marker
    )
  except types.InputError as error:
    return str(error)


@properties.fuzzed(10, name=_tokenizers, text=_texts)
def test_text_as_tokens(name, text):
  tokenizer = _TOKENIZERS[name]
  ids, offsets = tokenizer.encode(text)
  assert ids.dtype == np.int32 and offsets.shape == (len(ids), 2)
  special = set(tokenizer.hf.all_special_ids) - {tokenizer.hf.unk_token_id}
  assert not special & set(ids.tolist())
  prompt = tokenizer.prompt_ids(text).tolist()
  # The special tokens are the template's, whatever the text says.
  benign = tokenizer.prompt_ids('is').tolist()
  assert [i for i in prompt if i in special] == [
    i for i in benign if i in special
  ]
  if name.startswith('byte level'):
    assert tokenizer.decode(ids) == text
    assert text in tokenizer.decode(prompt)


@properties.fuzzed(
  10,
  name=_tokenizers,
  values=st.sampled_from(sorted(_GRIDS)),
  marker=st.sampled_from([prompts.MARKER, '']),
  prompt=_texts,
  cot=_texts,
  score=st.one_of(st.integers(-1, 10), st.floats(-1, 10)),
)
def test_example_as_tokens(name, values, marker, prompt, cot, score):
  tokenizer, grid = _TOKENIZERS[name], _GRIDS[values]
  found = _score_tokens(name, values, marker)
  if isinstance(found, str):
    return
  score = min(max(score, grid.values[0]), grid.values[-1])
  example = types.Example('x', prompt, float(score), cot=cot)
  encoded = encoding.encode_example(example, tokenizer, found)
  wanted = found.sequences[grid.nearest(score)]
  places = np.flatnonzero(encoded.score_mask)
  # The score and the end token are the last ones, and nothing else is a score.
  last = len(encoded.targets) - 1
  assert places.tolist() == list(range(last - len(wanted), last))
  assert encoded.targets[places].tolist() == list(wanted)
  assert encoded.targets[last] == tokenizer.eos_id
  assert encoded.cot_mask[last] and not encoded.cot_mask[places].any()
  assert encoded.score == np.float32(score) or encoded.score == score
  num_prompt = len(tokenizer.prompt_ids(prompt))
  # Not a token of the prompt is learnt; all after it are.
  learnt = encoded.cot_mask | encoded.score_mask
  assert not learnt[: num_prompt - 1].any() and learnt[num_prompt - 1 :].all()


@properties.fuzzed(
  5,
  name=_tokenizers,
  ids=st.lists(st.integers(0, 200), max_size=30),
  before=_texts,
  after=_texts,
  with_marker=st.booleans(),
)
def test_end_of_a_cot(name, ids, before, after, with_marker):
  tokenizer = _TOKENIZERS[name]
  marker = prompts.MARKER
  if with_marker:
    ids, _ = tokenizer.encode(f'{before} {marker}{after}')
    ids = ids.tolist()
  ids = [i for i in ids if i < tokenizer.vocab_size]
  end = cot_end.find_cot_end(ids, marker, tokenizer.decode)
  text = tokenizer.decode(ids)
  assert (end is None) == (marker not in text)
  if end is not None:
    assert end.text == text[: text.index(marker) + len(marker)]
    assert tokenizer.decode(ids[: end.num_kept]) + end.missing == end.text


_HEAD = '###Task Description:\nJudge.\n\n###The instruction to evaluate:\n'
_TAIL = '\n\n###Score Rubrics:\n[Is it good?]\n\n###Feedback:'


@properties.fuzzed(
  4,
  name=_tokenizers,
  judged=st.lists(_texts, max_size=6).map(' '.join),
  limit=st.integers(0, 300),
)
def test_prompt_that_is_cut(name, judged, limit):
  tokenizer = _TOKENIZERS[name]
  prompt = f'{_HEAD}{judged}{_TAIL}'
  cut = truncation.truncated(prompt, tokenizer, limit)
  num_tokens = len(tokenizer.prompt_ids(prompt))
  assert (cut == prompt) == (num_tokens <= limit)
  if cut is not None:
    assert len(tokenizer.prompt_ids(cut)) <= limit
    assert cut.startswith(_HEAD.rstrip()) and cut.endswith(_TAIL)


@properties.fuzzed(3, feedback=_texts, marker=st.sampled_from(['is', '5', '.']))
def test_feedback(feedback, marker):
  cot = prompts.strip_cot(feedback, marker)
  assert feedback.startswith(cot)
  prompts.stated_score(feedback, marker)
  assert feedback.startswith(prompts.clean_prompt(feedback))
