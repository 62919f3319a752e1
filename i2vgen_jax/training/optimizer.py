"""AdamW as in the paper: constant rate, weaker updates of spatial layers."""

import re
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from i2vgen_jax.errors import InputError
from i2vgen_jax.types import Params

DECAYS = ("constant", "cosine")

# Layers that an image diffusion model has too, which work within one frame. The
# embeddings of time, fps and conditions are not among them, as in public code.
SPATIAL_PATHS = (
  r"^(conv_in|norm_out|conv_out)/|/(resnet|spatial)/|_(down|up)sample/"
)


def learning_rate_schedule(config: ConfigDict) -> optax.Schedule:
  """Rate per update: linear warm-up from 0, then constant or a cosine to 0.

  Args:
    config: see `make_optimizer`.

  Raises:
    InputError: an unknown decay, or a warm-up longer than the run.
  """
  peak, num_steps = config.learning_rate, config.num_steps
  warmup_steps = config.warmup_steps
  if config.decay not in DECAYS:
    raise InputError(
      f"unknown decay {config.decay!r}, in train.decay; choose one of {DECAYS}"
    )
  if not 0 <= warmup_steps <= num_steps:
    raise InputError(
      f"warm-up of {warmup_steps} steps in a run of {num_steps}, in "
      "train.warmup_steps; choose a shorter one"
    )
  after = optax.constant_schedule(peak)
  if config.decay == "cosine":
    length = max(num_steps - warmup_steps, 1)
    after = optax.cosine_decay_schedule(peak, length)
  warmup = optax.linear_schedule(0.0, peak, warmup_steps)
  # Without this the first of n warm-up updates would have a rate of zero.
  return optax.join_schedules(
    [lambda count: warmup(count + 1), after], [warmup_steps]
  )


def path_mask(params: Params, pattern: str) -> Any:
  """True at each leaf whose path (`a/b/kernel`) the pattern finds."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: bool(
      re.search(pattern, jax.tree_util.keystr(path, simple=True, separator="/"))
    ),
    params,
  )


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """AdamW (β1 0.9, ε 1e-8) with weight decay on kernels.

  Args:
    config: the group `train` of a config. Of it,
      learning_rate: peak rate.
      num_steps: length of the run, where the cosine reaches 0.
      warmup_steps: number of updates of linear warm-up.
      decay: "constant" (the paper) or "cosine" (public code).
      beta2: decay of the second moment; 0.999 in public code, less for short
        runs.
      weight_decay: decoupled; kernels only.
      grad_clip: largest global norm of the gradients; None is off.
      spatial_grad_scale: γ of the paper, the strength of `SPATIAL_PATHS`
        against the temporal weights (recalled as 0.2). It scales the update,
        not the gradient: Adam divides a constant factor away again.
  """
  clip = optax.identity()
  if config.grad_clip is not None:
    clip = optax.clip_by_global_norm(config.grad_clip)
  return optax.chain(
    clip,
    optax.adamw(
      learning_rate_schedule(config),
      b2=config.beta2,
      weight_decay=config.weight_decay,
      mask=lambda params: path_mask(params, r"kernel$"),
    ),
    optax.masked(
      optax.scale(config.spatial_grad_scale),
      lambda params: path_mask(params, SPATIAL_PATHS),
    ),
  )
