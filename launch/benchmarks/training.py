"""Training steps of a LoRA of public variant (c) at full size.

    python -m launch.benchmarks.lora

The weights are random, so that nothing is downloaded; loss, gradient, time and
peak memory do not depend on their values. The clips are latents, as
`i2vgen data encode` stores them, so that of the frozen networks only the U-Net
and the text encoder are held.
"""

import dataclasses
import resource
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from i2vgen_jax import sharding
from i2vgen_jax.models import build
from i2vgen_jax.training import state as states
from i2vgen_jax.training.denoising import loss_settings
from i2vgen_jax.training.lora import PRETRAINED, LoraDenoising
from i2vgen_jax.training.optimizer import make_optimizer
from i2vgen_jax.training.step import make_train_step
from i2vgen_jax.types import Batch, Params
from launch import arguments
from launch.arguments import Count, Size
from launch.planning.programs import make_stage
from launch.progress import note
from launch.train import CONFIGS, load_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSteps:
  """Trains a LoRA of the released U-Net for some steps, on random latents.

  For example: python -m launch.benchmarks.lora --size 448x256 --num-frames 16

  Attributes:
    size: Size of the frames, in pixels.
    num_frames: Number of frames of each clip.
    batch_size: Number of clips in a step.
    steps: Number of steps.
    rank: Rank of the LoRA.
  """

  size: Size = (128, 128)
  num_frames: Count = 4
  batch_size: Count = 1
  steps: Count = 3
  rank: Count = 16


def random_weights(module: Any, dtype: Any) -> Params:
  """Weights that keep activations near 1, in host memory."""
  rng = np.random.default_rng(0)

  def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    x = rng.standard_normal(leaf.shape, np.float32)
    scale = max(np.prod(leaf.shape[:-1]), 1) ** -0.5
    x = scale * x if leaf.ndim > 1 else 0.02 * x
    return (x + (path[-1].key == "scale")).astype(dtype)

  shapes = build.abstract_params(module)
  return jax.tree_util.tree_map_with_path(draw, shapes)


def make_task(config: ConfigDict, args: LoraSteps) -> LoraDenoising:
  """The task of the config, with random weights in bfloat16."""
  size = {"size": args.size, "num_frames": args.num_frames}
  stage = make_stage(config, None, jnp.bfloat16, **size)
  stage = dataclasses.replace(stage, unet=stage.unet.clone(remat=True))
  networks = {PRETRAINED: stage.unet, "text_encoder": stage.text_encoder}
  return LoraDenoising(
    stage=stage,
    mesh=sharding.make_mesh(devices=jax.devices()[:1]),
    negative_ids=np.zeros((1, stage.text_encoder.max_length), np.int32),
    frozen={k: random_weights(m, jnp.bfloat16) for k, m in networks.items()},
    rank=args.rank,
    alpha=float(args.rank),
    **loss_settings(config.diffusion.to_dict()),
  )


def make_batch(task: LoraDenoising, args: LoraSteps, step: int) -> Batch:
  """Latents, tokens and CLIP vectors of random clips."""
  rng, rows, stage = np.random.default_rng(step), args.batch_size, task.stage
  width, height = (side // stage.shrink for side in args.size)
  channels = 2 * stage.unet.latent_channels
  shape = (rows, args.num_frames, height, width, channels)
  tokens = (rows, stage.text_encoder.max_length)
  return Batch(
    fps=np.full(rows, 8.0, np.float32),
    index=np.arange(rows, dtype=np.int32) + rows * step,
    token_ids=rng.integers(0, stage.text_encoder.vocab_size, tokens, np.int32),
    image_embeds=rng.standard_normal((rows, stage.unet.context_dim), "f4"),
    moments=rng.standard_normal(shape, "f4"),
  )


def peak_memory() -> str:
  """Of the device if it counts its memory, else of this process."""
  stats = jax.devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    return f"{stats['peak_bytes_in_use'] / 2**30:.2f} GiB of device memory"
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  return f"{peak:.2f} GiB of host memory"


def main(argv: list[str] | None = None) -> None:
  args = arguments.parse(LoraSteps, argv, "launch.benchmarks.lora")
  config = load_config(f"{CONFIGS}:released_lora")
  task, tx = make_task(config, args), make_optimizer(config.train)
  abstract = states.abstract_state(task.init_params, tx, task.mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  train_step = make_train_step(
    shardings, loss_fn=task.loss, tx=tx, ema_decay=0.99, seed=0
  )
  places = sharding.param_shardings(task.frozen, task.mesh)
  frozen = sharding.place(task.frozen, places)
  state = states.init_state(task.init_params, tx, 0, shardings)
  count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  note(f"{count} trained parameters; compiling, then the first step ...")
  for step in range(args.steps):
    start = time.perf_counter()
    with jax.set_mesh(task.mesh):
      batch = sharding.to_global(make_batch(task, args, step), task.mesh)
      state, metrics = train_step(state, frozen, batch)
    loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
    seconds = time.perf_counter() - start
    print(
      f"step {step + 1}  loss {loss:.4f}  gradient {norm:.4g}  "
      f"{seconds:.1f} s  peak {peak_memory()}"
    )


if __name__ == "__main__":
  main()
