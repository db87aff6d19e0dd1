"""Scores of several tokens through the pipeline, on the demo's tiny world."""

import dataclasses
import json

from etils import epath
import numpy as np
import pytest

from tests.pipeline import tiny_model
from tract_jax.data import loader as loader_lib
from tract_jax.data import packing
from tract_jax.models import lora
from tract_jax.parallel import agreement
from tract_jax.pipeline import (
  base_weights,
  build,
  inspect_data,
  read_data,
  sample,
  tasks,
)
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import objective as objective_lib
from tract_jax.pipeline import run as run_lib

SCORES = {
  '0 to 10': {'grid': tuple(map(float, range(11)))},
  'halves': {
    'grid': tuple(i / 2 for i in range(2, 11)),
    'format': '{:.1f}',
  },
  '-4 to 4': {'grid': tuple(map(float, range(-4, 5)))},
}


def make_config(name, **more):
  return config_lib.merge(
    {
      'methods': ('raft', 'tract'),
      'predictors': ('rail', 'decode'),
      'score': SCORES[name],
      'model': {
        **tiny_model.SETTINGS,
        'num_layers': 2,
      },
      'data': {
        'source': 'synthetic',
        'synthetic_train': 24,
        'synthetic_test': 6,
        'length_multiple': 16,
        'max_length': 64,
      },
      'train': {
        'batch_size': 8,
        'micro_batch_size': 4,
        'lr': 1e-2,
        'num_epochs': 1,
      },
      'sampling': {'slots': 8, 'chunk_size': 4, 'max_new_tokens': 8},
      'evaluation': {'gap_examples': 4, 'num_resamples': 100},
      'mesh': {'data': 2, 'fsdp': 2, 'tensor': 2},
      **more,
    }
  )


def make_trainer(setup, examples, objective):
  rows = read_data.encode_for_stage(setup, examples, 'annotator', [], 'rows')
  trainer = build.make_trainer(setup, objective, True, 50, 40)
  plan = packing.one_each(len(rows))
  loader = loader_lib.Loader(
    rows, plan, batch_size=8, length=64, seed=0, num_epochs=1
  )
  return trainer, trainer.to_device(loader.batch(0))


@pytest.mark.parametrize('name', SCORES)
def test_training_and_prediction_read_the_same_distribution(name):
  setup = build.build(make_config(name))
  examples = read_data.read_data(setup).train[:8]
  objective = objective_lib.make_objective(setup.config, 'cot_raft')
  trainer, batch = make_trainer(setup, examples, objective)
  params = base_weights.init_params(setup.model, seed=0)
  terms = trainer.evaluate(*params, batch)
  sampler = sample.Sampler(setup, lambda: False)
  given = sampler.given(lora.merge(*params), examples, with_cot=True)
  probs = np.stack([one.score_probs for one in given])
  scores = np.array([e.score for e in examples])
  errors = probs @ np.array(setup.grid.values) - scores
  assert terms.score_count == 8
  np.testing.assert_allclose(terms.score_sq_sum, (errors**2).sum(), rtol=1e-4)
  np.testing.assert_allclose(terms.grid_mass_sum, probs.sum(), rtol=1e-4)
  # All tokens of the scores are targets, and none is in the cross-entropy.
  texts = [setup.grid.texts[setup.grid.nearest(s)] for s in scores]
  learnt = int((batch.cot_mask | batch.score_mask).sum())
  assert terms.ce_count == learnt - sum(map(len, texts))


def test_steps_learn_scores_of_several_tokens_through_the_tree_alone():
  # No cross-entropy. A random model's product of four probabilities is so
  # small that only its logarithm has a gradient to start with.
  train = {'batch_size': 8, 'micro_batch_size': 4, 'off_grid_penalty': 1.0}
  config = make_config('halves', train={**train, 'lr': 3e-2})
  setup = build.build(config)
  examples = read_data.read_data(setup).train[:8]
  objective = objective_lib.make_objective(config, 'raft')
  trainer, batch = make_trainer(setup, examples, objective)
  trainable, frozen = base_weights.init_params(setup.model, seed=0)
  state = trainer.init_state(trainable)
  found = []
  for _ in range(50):
    state, metrics = trainer.step(state, frozen, batch)
    # One step at a time: the virtual devices share a few threads.
    found.append((float(metrics.grid_mass), float(metrics.score_mse)))
  (first_mass, first_mse), (last_mass, last_mse) = found[0], found[-1]
  assert first_mass < 1e-6
  assert 0.5 < last_mass <= 1
  assert last_mse < 0.5 * first_mse
  assert trainer.step._cache_size() == 1


def test_inspect_shows_the_tokens_of_a_score(capsys):
  setup = build.build(make_config('0 to 10'))
  data = read_data.read_data(setup)
  best = [e for e in data.train if e.score == 10]
  inspect_data.inspect(setup, dataclasses.replace(data, train=best))
  printed = capsys.readouterr().out
  one, zero = setup.cot_scores.sequences[-1]
  assert f'10={one}+{zero}' in printed
  assert (
    f'[score, {one} "1" + {zero} "0" at position 39, 2 tokens]\n  10\n'
    in (printed)
  )


@pytest.mark.slow
@pytest.mark.parametrize('name', ['0 to 10', '-4 to 4'])
def test_a_whole_run(name, tmp_path):
  config = make_config(name)
  setup = build.build(config)
  run = run_lib.Run(
    setup,
    read_data.read_data(setup),
    epath.Path(tmp_path),
    agreement.Agreement(lambda: False),
  )
  tasks.execute(run, 'run')
  for method in config.methods:
    path = tmp_path / 'predictions' / method / 'synthetic.jsonl'
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 6
    for row in rows:
      (probs,) = row['distributions']
      assert len(probs) == len(setup.grid.values)
      assert sum(probs) <= 1 + 1e-5
      assert row['decoded'][0] in (None, *setup.grid.values)
