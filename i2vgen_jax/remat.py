"""What a block keeps for its backward pass; all else is computed again."""

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

# Name of the results of layers in a traced program.
LAYER = "layer"

POLICIES = {
  "nothing": jax.checkpoint_policies.nothing_saveable,
  "layers": jax.checkpoint_policies.save_only_these_names(LAYER),
  "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[LAYER],
    offload_src="device",
    offload_dst="pinned_host",
  ),
}


def layer_result(tree: Any) -> Any:
  """The same arrays, as results of a layer that policies can keep."""
  return jax.tree.map(lambda x: checkpoint_name(x, LAYER), tree)
