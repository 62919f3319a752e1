"""What is computed again in the backward pass, so that it need not be kept.

| policy | computed again |
|---|---|
| layers | each layer, from what it is given |
| nothing | each block of the U-Net, of which nothing is kept |
| offload | each block, but the results of its layers are kept on the host |
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
from jax.ad_checkpoint import checkpoint_name

# Name of the results of layers in a traced program.
LAYER = "layer"

Policy = Literal["nothing", "layers", "offload"]

_OF_BLOCKS = {
  "nothing": jax.checkpoint_policies.nothing_saveable,
  "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[LAYER],
    offload_src="device",
    offload_dst="pinned_host",
  ),
}
_layers_again = contextvars.ContextVar("layers_again", default=False)


def of_blocks(policy: Policy | None) -> Callable[..., bool] | None:
  """The policy of `jax.checkpoint` for blocks; None keeps what they need."""
  return _OF_BLOCKS.get(policy)


@contextlib.contextmanager
def of_layers(policy: Policy | None) -> Iterator[None]:
  """Layers that are traced inside are computed again, if the policy says so."""
  token = _layers_again.set(policy == "layers")
  try:
    yield
  finally:
    _layers_again.reset(token)


def layers_again() -> bool:
  """Whether a layer is to be computed again from what it is given."""
  return _layers_again.get()


def layer_result(tree: Any) -> Any:
  """The same arrays, as results of a layer that policies can keep."""
  return jax.tree.map(lambda x: checkpoint_name(x, LAYER), tree)
