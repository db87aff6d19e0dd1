import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tract_jax import types
from tract_jax.objectives import predictors, score_tree
from tract_jax.text import token_tree

END = 0
TREE = token_tree.make_tree([(1, END), (1, 2, END), (3, END)])


def test_log_probs_by_hand():
  # Probabilities at node 0, after "1", after "1 2", and after "3".
  probs = np.array(
    [
      [0.1, 0.5, 0.1, 0.3],
      [0.6, 0.1, 0.2, 0.1],
      [0.9, 0.0, 0.1, 0.0],
      [0.7, 0.1, 0.1, 0.1],
    ],
    np.float32,
  )
  # Any constant may be added to logits.
  logits = np.log(probs + 1e-30) + np.array([[3.0], [-5.0], [0.0], [40.0]])
  got = np.exp(score_tree.log_probs(jnp.asarray(logits, jnp.float32), TREE))
  wanted = [0.5 * 0.6, 0.5 * 0.2 * 0.9, 0.3 * 0.7]
  np.testing.assert_allclose(got, wanted, rtol=1e-5)


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(
  strategies.sets(strategies.integers(0, 9999), min_size=9, max_size=9),
  strategies.integers(0, 2**16),
  strategies.floats(0, 1e4),
)
def test_mass_is_at_most_one_for_drawn_grids(numbers, seed, scale):
  tree = token_tree.make_tree(
    [(*(int(d) + 1 for d in str(n)), END) for n in sorted(numbers)]
  )
  logits = np.random.default_rng(seed).normal(size=(len(tree.tokens) + 1, 11))
  found = score_tree.log_probs(jnp.asarray(logits * scale, jnp.float32), tree)
  assert np.isfinite(found).all()
  assert np.exp(found).sum() <= 1 + 1e-5


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(
  strategies.permutations(range(11)), strategies.integers(0, 2**16)
)
def test_a_tree_of_single_tokens_is_one_softmax(order, seed):
  ids = order[:4]
  tree = token_tree.make_tree([(token,) for token in ids])
  logits = np.random.default_rng(seed).normal(0, 9, (2, 1, 11))
  logits = jnp.asarray(logits, jnp.float32)
  np.testing.assert_array_equal(
    score_tree.log_probs(logits, tree),
    predictors.score_log_probs(logits[:, 0], jnp.array(ids)),
  )


def test_huge_bfloat16_logits_stay_finite():
  for sign in (1e4, -1e4):
    logits = np.full((4, 4), -sign)
    logits[:, 1:3] = sign

    def total(logits):
      return jnp.sum(score_tree.log_probs(logits, TREE))

    value, grad = jax.value_and_grad(total)(jnp.asarray(logits, jnp.bfloat16))
    assert np.isfinite(value)
    assert np.isfinite(np.asarray(grad, np.float32)).all()


@pytest.mark.parametrize('seed', range(5))
def test_mass_is_at_most_one_for_any_grid_and_any_model(seed):
  rng = np.random.default_rng(seed)
  # "1" and "10" and "100", and all else that four digits can write.
  digits = [
    tuple(int(d) + 1 for d in str(n))
    for n in rng.choice(10_000, 300, replace=False)
  ]
  tree = token_tree.make_tree([(*d, END) for d in digits])
  logits = rng.normal(0, 4, (2, 3, len(tree.tokens) + 1, 11))
  logits[0, 0] = -50.0
  logits[0, 0, 0, 1:] = 50.0  # As much of it as there can be.
  logits[0, 0, 1:, END] = 50.0
  mass = np.exp(score_tree.log_probs(jnp.asarray(logits), tree)).sum(axis=-1)
  assert mass.shape == (2, 3)
  assert (mass <= 1 + 1e-5).all()


def test_mass_is_one_where_the_grid_is_all_that_can_be_written():
  # All that one or two of the tokens 1 and 2 can say, and an end.
  tree = token_tree.make_tree(
    [(a, END) for a in (1, 2)] + [(a, b, END) for a in (1, 2) for b in (1, 2)]
  )
  logits = np.random.default_rng(0).normal(size=(7, 3))
  logits[0, END] = -100.0
  logits[tree.depths == 2, END] = 100.0
  mass = np.exp(score_tree.log_probs(jnp.asarray(logits), tree)).sum()
  np.testing.assert_allclose(mass, 1, rtol=1e-5)


def test_bfloat16_logits_give_float32():
  logits = jax.random.normal(jax.random.key(0), (4, 5), jnp.bfloat16)
  got = score_tree.log_probs(logits, TREE)
  assert got.dtype == jnp.float32
  wanted = score_tree.log_probs(logits.astype(jnp.float32), TREE)
  np.testing.assert_array_equal(got, wanted)


def test_greedy_follows_the_likeliest_tokens_and_not_the_likeliest_score():
  # p(1) = .6, but then nothing ends: "3" is the likeliest score, by .4 to .3.
  probs = np.array(
    [
      [0.0, 0.6, 0.0, 0.4],
      [0.5, 0.0, 0.3, 0.2],
      [1.0, 0.0, 0.0, 0.0],
      [1.0, 0.0, 0.0, 0.0],
    ],
    np.float32,
  )
  log_probs = score_tree.log_probs(jnp.log(probs + 1e-30), TREE)
  assert np.argmax(log_probs) == 2
  assert score_tree.greedy_index(probs.argmax(-1), TREE) == 0


def test_greedy_index_of_each_and_of_none():
  greedy = jnp.array(
    [
      [1, END, 5, 5],  # 1
      [1, 2, END, 5],  # 1 2
      [3, 5, 5, END],  # 3
      [1, 2, 5, END],  # 1 2 5: leaves the tree late
      [2, END, END, END],  # leaves it at once
    ]
  )
  got = score_tree.greedy_index(greedy, TREE)
  assert got.tolist() == [0, 1, 2, -1, -1]
  assert got.dtype == jnp.int32


def test_score_starts():
  mask = jnp.array(
    [[0, 1, 1, 0, 0, 1, 0], [1, 0, 1, 1, 1, 0, 1], [0] * 7], bool
  )
  got = score_tree.score_starts(mask).astype(int).tolist()
  assert got == [[0, 1, 0, 0, 0, 1, 0], [1, 0, 1, 0, 0, 0, 1], [0] * 7]


def test_start_indices_of_packed_rows():
  segments = np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 0, 0, 0, 0, 0]])
  mask = np.array([[0, 1, 0, 0, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]], bool)
  nothing = np.zeros((2, 8))
  batch = types.Batch(
    inputs=nothing,
    targets=nothing,
    positions=nothing,
    segment_ids=segments,
    cot_mask=nothing,
    score_mask=mask,
    score_values=nothing,
    target_probs=np.zeros((2, 2, 3)),
  )
  assert score_tree.start_indices(batch).tolist() == [[1, 4], [1, 0]]
