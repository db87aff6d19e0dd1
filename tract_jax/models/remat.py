"""What the backward pass finds stored of each layer, by name.

What is not stored is computed again from the layer's input, which always is.
Axes as in types.py.
"""

from collections.abc import Callable
from typing import Any

import jax

from tract_jax.models import attention, layers, lora


def _names(*names: str) -> Callable[..., bool]:
  """What is called so is stored, and what adapters make of their inputs."""
  return jax.checkpoint_policies.save_only_these_names(lora.LOW_NAME, *names)


# From the fastest to the smallest. Per token and layer there are stored, beside
# the R numbers that each adapter makes of its input, of a layer with D = N H =
# 4096, K H = 1024, F = 14336 (Mistral-7B) in bfloat16:
#
#   none       everything, weights gathered from other devices included
#   dots       results of projections and attention: 4 D + 2 K H + 2 F, 92 KiB
#   heads      as "inputs", and what attention takes, 4 D + 2 K H, 36 KiB: of
#              projections, only the MLP's first two are computed again
#   inputs     attention's results and the MLP's input, 3 D, 24 KiB: projections
#              are computed again, but not attention and o_proj
#   attention  attention's results, 2 D, 16 KiB
#   full       the layer's input alone, D, 8 KiB
POLICIES: dict[str, Callable[..., bool]] = {
  'none': jax.checkpoint_policies.everything_saveable,
  'dots': _names(layers.LINEAR_NAME, attention.OUTPUT_NAME),
  'heads': _names(
    attention.OUTPUT_NAME, layers.HEADS_NAME, layers.MLP_INPUT_NAME
  ),
  'inputs': _names(attention.OUTPUT_NAME, layers.MLP_INPUT_NAME),
  'attention': _names(attention.OUTPUT_NAME),
  'full': _names(),
}


def rematerialised(
  layer: Callable[..., Any], policy: str
) -> Callable[..., Any]:
  """The body of a loop over layers, storing what the policy says.

  Args:
    layer: (carry, weights) -> (carry, result).
    policy: of `POLICIES`.

  Returns:
    A function with the same results and gradients.
  """
  if policy == 'none':
    return layer
  # Inside a scan nothing can be merged with the forward pass, and the barriers
  # against it would only cost time.
  return jax.checkpoint(layer, policy=POLICIES[policy], prevent_cse=False)
