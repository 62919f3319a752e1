"""AdamW as in the paper, or Muon; weaker updates of spatial layers."""

import re
from typing import Any

import jax
import optax
import optax.contrib
from ml_collections import ConfigDict

from i2vgen_jax.errors import InputError
from i2vgen_jax.types import Params

DECAYS = ("constant", "cosine")
OPTIMIZERS = ("adamw", "muon")

# Layers that an image diffusion model has too, which work within one frame. The
# embeddings of time, fps and conditions are not among them, as in public code.
SPATIAL_PATHS = (
  r"^(conv_in|norm_out|conv_out)/|/(resnet|spatial)/|_(down|up)sample/"
)

_KERNELS = r"kernel$"


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
  """AdamW (β1 0.9, ε 1e-8) or Muon, with weight decay on kernels.

  Args:
    config: the group `train` of a config. Of it,
      optimizer: "adamw" (the paper), or "muon" (Jordan 2024), which takes fewer
        steps in short runs. It orthogonalises the momentum of each kernel and
        scales it to the size of an AdamW update (Liu et al. 2025), so rates
        are comparable; other parameters are left to Adam with Nesterov
        momentum.
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
  if config.optimizer not in OPTIMIZERS:
    raise InputError(
      f"unknown optimizer {config.optimizer!r}, in train.optimizer; choose one "
      f"of {OPTIMIZERS}"
    )
  clip = optax.identity()
  if config.grad_clip is not None:
    clip = optax.clip_by_global_norm(config.grad_clip)
  rate = learning_rate_schedule(config)
  kernels = lambda params: path_mask(params, _KERNELS)  # noqa: E731
  if config.optimizer == "adamw":
    update = optax.adamw(
      rate, b2=config.beta2, weight_decay=config.weight_decay, mask=kernels
    )
  else:
    update = optax.contrib.muon(
      rate,
      weight_decay=config.weight_decay,
      weight_decay_mask=kernels,
      adam_b2=config.beta2,
      consistent_rms=0.2,
      muon_weight_dimension_numbers=_matrices,
    )
  return optax.chain(
    clip,
    update,
    optax.masked(
      optax.scale(config.spatial_grad_scale),
      lambda params: path_mask(params, SPATIAL_PATHS),
    ),
  )


def _matrices(params: Params) -> Any:
  """How Muon reads kernels as matrices: all axes but the last are inputs."""
  return jax.tree.map(
    lambda leaf, is_kernel: (
      optax.contrib.MuonDimensionNumbers(
        tuple(range(leaf.ndim - 1)), leaf.ndim - 1
      )
      if is_kernel
      else None
    ),
    params,
    path_mask(params, _KERNELS),
  )
