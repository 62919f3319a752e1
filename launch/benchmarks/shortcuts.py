"""What shortened evaluations save and lose.

    python -m launch.benchmarks.shortcuts --photographs DIR

For each setting of `guidance_interval` and `reuse_every`: the FLOPs of the base
stage relative to whole evaluations, for the small cascade and for public
variant (c) as its public code samples; and for held-out clips of the small
cascade, the share that moves as prompted, PSNR against the true clips, and PSNR
against the clips of whole evaluations.
"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from data_pipelines.procedural.photographs import Photographs
from i2vgen_jax.cascade import BUNDLED, Cascade
from i2vgen_jax.diffusion.schedules import NUM_TRAIN_TIMESTEPS
from i2vgen_jax.diffusion.shortcuts import Shortcuts
from i2vgen_jax.diffusion.timesteps import ddim_timesteps
from i2vgen_jax.evaluation.quality import psnr
from i2vgen_jax.flops import flops
from i2vgen_jax.models import build
from i2vgen_jax.models.unet import I2VGenUNet
from i2vgen_jax.stage import Sampling, Stage
from i2vgen_jax.variants import VARIANTS
from launch import arguments
from launch.arguments import Count, Seed, Weights
from launch.cli import exit_status
from launch.evaluation import worlds
from launch.progress import note

TOKENS = 77
SETTINGS: dict[str, dict[str, Any]] = {
  "whole": {},
  "reuse_every 2": {"reuse_every": 2},
  "reuse_every 3": {"reuse_every": 3},
  "reuse_every 5": {"reuse_every": 5},
  "guided 300-999": {"guidance_interval": (300, 999)},
  "both, 3": {"guidance_interval": (300, 999), "reuse_every": 3},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
  """Measures shortened evaluations of the base stage.

  For example: python -m launch.benchmarks.shortcuts --num-clips 32

  Attributes:
    weights: The cascade.
    photographs: Folder of the training photographs, see `i2vgen evaluate`;
      without it only drawn objects are shown.
    num_clips: Number of held-out clips of each world.
    seed: Seed of the clips and of sampling.
  """

  weights: Weights = str(BUNDLED)
  photographs: Path | None = None
  num_clips: Count = 32
  seed: Seed = 0


def work(
  unet: I2VGenUNet,
  shrink: int,
  sampling: Sampling,
  timesteps: Int[np.ndarray, "n"],
) -> int:
  """FLOPs of the evaluations of one clip.

  Args:
    unet: the network.
    shrink: pixels of a frame's side for each latent.
    sampling: the settings.
    timesteps: of the evaluations.
  """
  guided = sampling.guidance_scale != 1
  interval = sampling.guidance_interval if guided else None
  shortcuts = Shortcuts.of(timesteps, interval, sampling.reuse_every)
  params = {"params": build.abstract_params(unet)}
  width, height = (side // shrink for side in sampling.size)
  sides = (height, width)

  def evaluation(guided: bool, whole: bool) -> int:
    rows = 2 if guided else 1
    shape = lambda *axes: jax.ShapeDtypeStruct((rows, *axes), np.float32)  # noqa: E731
    video = (sampling.num_frames, *sides)
    known = {
      "fps": shape(),
      "image_latents": shape(*sides, unet.latent_channels),
      "image_embeds": shape(unet.context_dim),
      "text_context": shape(TOKENS, unet.context_dim),
    }
    given = {name: known[name] for name in unet.conditions}
    if not whole:
      given["features"] = shape(*video, unet.block_channels[0])
    return flops(
      unet.apply, params, shape(*video, unet.latent_channels), shape(), **given
    )

  kinds = [
    *zip(shortcuts.guided.tolist(), shortcuts.whole.tolist(), strict=True)
  ]
  cost = {kind: evaluation(*kind) for kind in set(kinds)}
  return sum(cost[kind] for kind in kinds)


def work_of(stage: Stage) -> int:
  """`work` of a stage as it samples."""
  timesteps = stage.solver.timesteps
  return work(stage.unet, stage.shrink, stage.sampling, timesteps)


def work_at_full_size(changes: dict[str, Any]) -> int:
  """`work` of public variant (c) as its public code samples."""
  public = VARIANTS["released"]
  sampling = dataclasses.replace(public.sampling, **changes)
  timesteps = ddim_timesteps(sampling.num_steps, NUM_TRAIN_TIMESTEPS - 1)
  return work(public.unet, 8, sampling, timesteps)


def rows(args: Arguments) -> Iterator[str]:
  """The table, row by row."""
  cascade = Cascade.load(args.weights, np.float32)
  base = cascade.stage("base")
  pool = args.photographs and Photographs(args.photographs, "test")
  names = ("objects", "camera") if pool else ("objects",)
  held = {
    world: worlds.held_out(
      world, pool, args.seed, args.num_clips, base.sampling.num_frames
    )
    for world in names
  }
  yield f"{'':16}{'small':>8}{'(c)':>8}" + "".join(
    f"{f'{world}: as prompted':>24}{'psnr':>8}{'to whole':>10}"
    for world in held
  )
  whole: dict[str, np.ndarray] = {}
  most, most_at_full_size = work_of(base), work_at_full_size({})
  for name, changes in SETTINGS.items():
    stage = base.with_sampling(**changes)
    shares = (
      work_of(stage) / most,
      work_at_full_size(changes) / most_at_full_size,
    )
    line = f"{name:16}" + "".join(f"{share:8.2f}" for share in shares)
    for world, draw in held.items():
      clips = draw(base.sampling.size)
      made = np.asarray(
        cascade.run(
          stage,
          [clip.frames[0] for clip in clips],
          [clip.caption for clip in clips],
          seed=args.seed,
        )
      )
      note(f"{name}: {world}")
      whole.setdefault(world, made)
      true = worlds.frames_of(draw, made)
      motion = float(worlds.has_motion(draw, made).mean())
      line += f"{motion:24.2f}{_mean_psnr(made, true):8.1f}"
      same = name == "whole"
      line += f"{'-' if same else f'{_mean_psnr(made, whole[world]):.1f}':>10}"
    yield line


def _mean_psnr(made: np.ndarray, like: np.ndarray) -> float:
  return float(np.mean([psnr(a, b) for a, b in zip(made, like, strict=True)]))


def main(argv: list[str] | None = None) -> None:
  args = arguments.parse(
    Arguments, argv, "python -m launch.benchmarks.shortcuts"
  )
  for row in rows(args):
    print(row, flush=True)


if __name__ == "__main__":
  sys.exit(exit_status(main))
