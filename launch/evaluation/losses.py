"""The denoising loss of stages on the real clips of a dataset."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from i2vgen_jax.cascade import Cascade
from i2vgen_jax.errors import enough_memory
from i2vgen_jax.preprocessing import clip_view
from i2vgen_jax.sharding import make_mesh
from i2vgen_jax.training.denoising import Denoising
from i2vgen_jax.types import Batch, Params
from launch.evaluation.generation import Plan
from launch.evaluation.inputs import Inputs
from launch.progress import ProgressBar

MEANING = "loss of the denoiser on the real clips, as in training"

# By timestep, from little to much noise.
Losses = dict[int, float]


def by_timestep(
  cascade: Cascade,
  stages: Plan,
  inputs: Inputs,
  *,
  seed: int,
  batch_size: int,
) -> dict[str, Losses]:
  """The mean loss of each stage at the noise levels of held-out clips.

  It is what `i2vgen train` logs as `unseen_loss/timestep T`, but every clip is
  seen at every level, with the same noise.

  Args:
    cascade: the weights.
    stages: see `Denoising.from_cascade`; their sampling settings decide size,
      length and frame rate of the clips.
    inputs: the clips.
    seed: of the noise.
    batch_size: number of clips whose losses are computed at once.

  Raises:
    InputError: memory runs out.
  """
  mesh = cascade.mesh or make_mesh(devices=jax.devices()[:1])
  found = {}
  with jax.set_mesh(mesh), enough_memory("choose a smaller --batch-size"):
    for name in stages:
      task = Denoising.from_cascade(cascade, stages, name, mesh)
      params = cascade.networks[name].params
      found[name] = _of_stage(task, params, inputs, seed, batch_size)
  return found


def _of_stage(
  task: Denoising, params: Params, inputs: Inputs, seed: int, batch_size: int
) -> Losses:
  encode = jax.jit(lambda *given: task.posterior(*given).moments)
  losses = jax.jit(task.losses)
  count, key = inputs.count, jax.random.key(seed)
  batch_size = min(batch_size, count)
  totals = dict.fromkeys(np.unique(task.held_out_levels).tolist(), 0.0)
  with ProgressBar() as progress:
    first = f"compiling, then the first {batch_size} ..."
    progress.begin(f"loss of {task.stage.name}", count, first)
    for start in range(0, count, batch_size):
      # A smaller last batch would be compiled again.
      rows = [n % count for n in range(start, start + batch_size)]
      batch, end = _batch(task, inputs, rows), min(start + batch_size, count)
      # Encoded once for all noise levels.
      batch = dataclasses.replace(batch, moments=encode(task.frozen, batch))
      for level in totals:
        at = np.full(batch_size, level)
        values = losses(params, task.frozen, batch, key, at)
        totals[level] += float(values[: end - start].sum())
      progress.update(end)
  return {level: total / count for level, total in totals.items()}


def _batch(task: Denoising, inputs: Inputs, numbers: Sequence[int]) -> Batch:
  """Clips as a training reads them."""
  sampling = task.stage.sampling
  given = [inputs.read(n, sampling) for n in numbers]
  token_ids = clip_images = None
  if task.tokenizer is not None:
    token_ids = task.tokenizer([clip.prompt for clip in given]).ids
  if task.clip_size is not None:
    sizes = sampling.size[0], task.clip_size
    views = [clip_view(clip.picture, *sizes) for clip in given]
    clip_images = np.stack(views)
  return Batch(
    fps=np.array([clip.fps for clip in given], np.float32),
    index=np.array(numbers, np.int32),
    token_ids=token_ids,
    frames=np.stack([clip.real for clip in given]),
    clip_images=clip_images,
  )
