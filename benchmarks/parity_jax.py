"""Our side of `make parity`: the run's own step, update by update.

The other side is told the seed model, the tokens of the batches, the prompts as
text, the schedule and lambda. What of a row is learnt, where its score stands,
and the weights of an objective it has to know by itself: a mistake of ours in
one of these would else be made on both sides, and not be seen.
"""

from collections.abc import Iterator
import dataclasses
import itertools
import pathlib

import jax
import numpy as np

from benchmarks import parity_cases
from tract_jax import types
from tract_jax.data import encoding, packing
from tract_jax.data import loader as loader_lib
from tract_jax.models import lora, peft_adapter
from tract_jax.pipeline import base_weights, build, export, finetune, read_data
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import objective as objective_lib
from tract_jax.sampling import engine as engine_lib


@dataclasses.dataclass(frozen=True)
class Update:
  """What an update was given and gave.

  Attributes:
    batch: the rows.
    loss, ce, score_mse, grad_norm: as in training.step.StepMetrics.
    adapter: a PEFT folder, written after it.
  """

  batch: types.Batch
  loss: float
  ce: float
  score_mse: float
  grad_norm: float
  adapter: pathlib.Path


class Side:
  """A stage of a run, and what the other side has to know of it.

  Attributes:
    prompts: of the training rows, as text.
    score_values: [Y].
    num_steps: of the whole schedule.
    num_warmup_steps: of it.
    lr: its peak.
    start: the adapter, drawn and not yet trained, as a PEFT folder.
    sequences: token ids up to the score of the benchmark's rows, with their
      CoTs where the case has CoTs.
  """

  def __init__(self, case: parity_cases.Case, folder: pathlib.Path):
    """Encodes the rows and draws the adapter.

    Args:
      case: what is trained.
      folder: for the adapters.
    """
    settings = {
      'model.path': case.model,
      'train.lambda_value': case.lambda_value,
    }
    config = config_lib.merge({**case.settings, **settings})
    self._folder = folder
    # One device, as on the other side.
    self._setup = setup = build.build(config, devices=jax.devices()[:1])
    self._objective = objective_lib.make_objective(config, case.objective)
    self._with_cot = case.with_cot
    self.score_values = setup.grid.values
    self._trainable, self._frozen = base_weights.init_params(
      setup.model, seed=0
    )
    data = read_data.read_data(setup)
    self.prompts = [example.prompt for example in data.train]
    rows = data.benchmarks['synthetic']
    self.sequences = read_data.before_score(setup, rows, self._with_cot)
    self_cots = self._sampled(data.train) if case.cot_source == 'self' else []
    encoded = read_data.encode_for_stage(
      setup, data.train, case.cot_source, self_cots, case.name
    )
    self._loader = loader_lib.Loader(
      encoded,
      packing.one_each(len(encoded)),
      batch_size=config.train.batch_size,
      length=loader_lib.static_size(
        encoding.sizes(encoded)[0], config.data.length_multiple
      ),
      seed=0,
      num_epochs=config.train.num_epochs,
    )
    self.num_steps = self._loader.num_steps
    self.lr = config.train.lr
    self.num_warmup_steps = round(config.train.warmup_fraction * self.num_steps)
    self.start = self._written('start')

  def updates(self, num_steps: int) -> Iterator[Update]:
    """Trains for so many updates."""
    num_targets = loader_lib.static_size(
      [self._loader.max_targets], finetune.TARGET_MULTIPLE
    )
    trainer = build.make_trainer(
      self._setup, self._objective, self._with_cot, self.num_steps, num_targets
    )
    state = trainer.init_state(self._trainable)
    batches = self._loader.iterate()
    for number, batch in itertools.islice(batches, num_steps):
      state, metrics = trainer.step(
        state, self._frozen, trainer.to_device(batch)
      )
      self._trainable = state.params
      numbers = {
        name: float(getattr(metrics, name))
        for name in ('loss', 'ce', 'score_mse', 'grad_norm')
      }
      yield Update(batch, **numbers, adapter=self._written(str(number)))

  def score_probs(self) -> np.ndarray:
    """[n, Y] probabilities of the scores behind `sequences`, eq. 3."""
    engine = build.make_engine(self._setup, self._with_cot)
    params = lora.merge(self._trainable, self._frozen)
    return engine.score(params, self.sequences)[0]

  def _sampled(self, examples) -> list[types.CotSample]:
    """A CoT of the seed model for each row."""
    engine = build.make_engine(self._setup, with_cot=True)
    requests = [
      engine_lib.CotRequest(
        e.example_id, 0, self._setup.tokenizer.prompt_ids(e.prompt)
      )
      for e in examples
    ]
    params = lora.merge(self._trainable, self._frozen)
    return engine.sample(params, requests, 0, 'parity')

  def _written(self, name: str) -> pathlib.Path:
    folder = self._folder / name
    peft_adapter.write_adapter(
      folder,
      self._trainable,
      export.lora_config(self._setup),
      self._setup.config.model.path,
    )
    return folder
