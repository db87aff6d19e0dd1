"""The weights of a run: of the seed model to train from, of any to sample with.

They lie on the mesh that they are used on: of all processes to train, of this
one's devices to sample. Only the last ones asked for are held.
"""

from collections.abc import Callable
from typing import Any

from tract_jax import types
from tract_jax.models import lora
from tract_jax.pipeline import base_weights, build, finetune


class Weights:
  """Reads weights, or draws them, when they are needed.

  Attributes:
    training: the setup with the mesh to train on.
    sampling: the one with the mesh to sample on; may be the same.
  """

  def __init__(
    self,
    training: build.Setup,
    sampling: build.Setup,
    seed_model: Callable[[int], finetune.StageRun | None],
    forget: Callable[[], None],
  ):
    """Reads nothing yet.

    Args:
      training: to train with; of all processes.
      sampling: to sample with; of this one.
      seed_model: gives, for a seed, the stage that makes a model from scratch
        the seed model; None where it is as it was read or drawn.
      forget: is called before weights are read, to let go of those before.
    """
    self.training = training
    self.sampling = sampling
    self._seed_model = seed_model
    self._forget = forget
    self._held: tuple[Any, types.PyTree] = (None, None)

  def to_train(
    self, seed: int, after: finetune.StageRun | None = None
  ) -> tuple[types.PyTree, types.PyTree]:
    """What a stage starts from; called by all processes together.

    Args:
      seed: of the run.
      after: a finished stage whose trained leaves take the place of the seed
        model's.

    Returns:
      (trainable, frozen).
    """
    return self._read(self.training, seed, after)

  def to_sample(
    self, stage: finetune.StageRun | None, seed: int
  ) -> types.PyTree:
    """The whole model after a stage, on this process's devices.

    Args:
      stage: a finished stage; None: the seed model.
      seed: of the run.

    Returns:
      Params; those of the last stage asked for are kept.
    """
    key = stage.folder if stage else ('seed', seed)
    if self._held[0] != key:
      dtype = self.sampling.model.dtype
      self._hold(key, *self._read(self.sampling, seed, stage, dtype))
    return self._held[1]

  def keep(
    self, stage: finetune.StageRun, trained: types.PyTree, frozen: types.PyTree
  ) -> None:
    """Keeps what was just trained, where it can be sampled from as it lies."""
    if self.sampling is self.training:
      self._hold(stage.folder, trained, frozen)

  def _hold(self, key, trained, frozen) -> None:
    params = lora.merge(trained, frozen)
    params = base_weights.for_sampling(self.sampling.model, params)
    self._held = (key, params)

  def _read(
    self, setup, seed, stage, dtype=None
  ) -> tuple[types.PyTree, types.PyTree]:
    self._held = (None, None)
    self._forget()
    stage = stage or self._seed_model(seed)
    trainable, frozen = base_weights.init_params(setup.model, seed, dtype)
    if stage:
      trainable = finetune.load_trained(stage, setup)
    return trainable, frozen
