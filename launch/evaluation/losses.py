"""The denoising loss of stages on the real clips of a dataset."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from data_pipelines.loading.reader import Reader
from i2vgen_jax.cascade import Cascade
from i2vgen_jax.errors import enough_memory
from i2vgen_jax.sharding import make_mesh
from i2vgen_jax.training.denoising import Denoising
from i2vgen_jax.types import Params
from launch.evaluation.generation import Plan
from launch.progress import ProgressBar

MEANING = "loss of the denoiser on the real clips, as in training"

# By timestep, from little to much noise.
Losses = dict[int, float]


def by_timestep(
  cascade: Cascade,
  stages: Plan,
  directory: Path,
  *,
  count: int,
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
    directory: DATA_DIR/text_video/1.0.0.
    count: number of clips; they are drawn as those of a training.
    seed: of the choice of clips, frames and captions, and of the noise.
    batch_size: number of clips whose losses are computed at once.

  Raises:
    InputError: too many clips are damaged, or memory runs out.
  """
  mesh = cascade.mesh or make_mesh(devices=jax.devices()[:1])
  found = {}
  with jax.set_mesh(mesh), enough_memory("choose a smaller --batch-size"):
    for name, stage in stages.items():
      task = Denoising.from_cascade(cascade, stages, name, mesh)
      s = stage.sampling
      reader = Reader(
        [str(directory)],
        batch_size=count,
        size=s.size,
        buckets=[(s.num_frames, s.fps, 1.0)],
        clip_size=task.clip_size,
        tokenizer=task.tokenizer,
        seed=seed,
      )
      params = cascade.networks[name].params
      found[name] = _of_stage(task, params, reader, min(batch_size, count))
  return found


def _of_stage(
  task: Denoising, params: Params, reader: Reader, batch_size: int
) -> Losses:
  encode = jax.jit(lambda *given: task.posterior(*given).moments)
  losses = jax.jit(task.losses)
  count, key = reader.batch_size, jax.random.key(reader.seed)
  totals = dict.fromkeys(np.unique(task.held_out_levels).tolist(), 0.0)
  with ProgressBar() as progress:
    for start in range(0, count, batch_size):
      # A smaller last batch would be compiled again.
      rows = [n % count for n in range(start, start + batch_size)]
      batch, end = reader.batch(0, rows), min(start + batch_size, count)
      # Encoded once for all noise levels.
      batch = dataclasses.replace(batch, moments=encode(task.frozen, batch))
      for level in totals:
        at = np.full(batch_size, level)
        values = losses(params, task.frozen, batch, key, at)
        totals[level] += float(values[: end - start].sum())
      progress(f"loss of {task.stage.name}", end, count)
  return {level: total / count for level, total in totals.items()}
