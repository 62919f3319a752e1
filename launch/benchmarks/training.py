"""Training steps of a config at full size, diffusers' U-Net beside ours.

    python -m launch.benchmarks.training

It needs the extra `test`, and for all weights of the U-Net a GPU of 80 GB; for
a LoRA, 19 GB of any memory will do. The weights are random, so that nothing is
downloaded. The clips are latents, as `i2vgen data encode` stores them, so that
of the frozen networks only the text encoder is held.
"""

import copy
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

from i2vgen_jax import sharding
from i2vgen_jax.models import build
from i2vgen_jax.training import state as states
from i2vgen_jax.training.denoising import Denoising
from i2vgen_jax.training.lora import PRETRAINED
from i2vgen_jax.training.optimizer import make_optimizer
from i2vgen_jax.training.step import make_train_step, step_settings
from i2vgen_jax.types import Batch, Params
from launch import arguments
from launch.arguments import Count, Size
from launch.benchmarks import peers
from launch.benchmarks.denoising import TOKENS
from launch.benchmarks.peers import Figures
from launch.cli import exit_status
from launch.planning.programs import make_stage, make_task
from launch.progress import note
from launch.train import CONFIGS, load_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """Times training steps on random latents.

  For example, a LoRA: python -m launch.benchmarks.training
  --config configs/i2vgen_xl.py:released_lora --size 128x128 --num-frames 4

  Attributes:
    config: FILE:NAME of a config with the objective diffusion or lora. For
      diffusion, diffusers' U-Net of variant (c) is trained first.
    size: Size of the frames, in pixels.
    num_frames: Number of frames of each clip.
    batch_size: Number of clips in a step.
    steps: Number of steps after the first.
    no_remat: Keeps the activations of our U-Net, as diffusers' does.
    channels: Width of each level, a multiple of 64.
  """

  config: str = f"{CONFIGS}:released_tuned"
  size: Size = (448, 256)
  num_frames: Count = 32
  batch_size: Count = 1
  steps: Count = 3
  no_remat: bool = False
  channels: tuple[int, int, int, int] = (320, 640, 1280, 1280)


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


def make_batch(task: Denoising, args: Training, step: int) -> Batch:
  """Latents, tokens and CLIP vectors of random clips."""
  rng, rows, stage = np.random.default_rng(step), args.batch_size, task.stage
  width, height = (side // stage.shrink for side in args.size)
  channels = 2 * stage.unet.latent_channels
  shape = (rows, args.num_frames, height, width, channels)
  token_ids = None
  if stage.text_encoder is not None:
    tokens = (rows, stage.text_encoder.max_length)
    token_ids = rng.integers(0, stage.text_encoder.vocab_size, tokens, "i4")
  return Batch(
    fps=np.full(rows, 8.0, np.float32),
    index=np.arange(rows, dtype=np.int32) + rows * step,
    token_ids=token_ids,
    image_embeds=rng.standard_normal((rows, stage.unet.context_dim), "f4"),
    moments=rng.standard_normal(shape, "f4"),
  )


def ours(args: Training) -> Figures:
  """Steps of the config by this library."""
  config = load_config(args.config)
  size = {"size": args.size, "num_frames": args.num_frames}
  stage = make_stage(config, None, jnp.bfloat16, **size)
  unet = stage.unet.clone(remat=not args.no_remat, block_channels=args.channels)
  stage = dataclasses.replace(stage, unet=unet)
  frozen = {}
  if stage.text_encoder is not None:
    frozen["text_encoder"] = random_weights(stage.text_encoder, jnp.bfloat16)
  if config.objective == "lora":
    frozen[PRETRAINED] = random_weights(unet, jnp.bfloat16)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  task, tx = (
    make_task(config, stage, mesh, frozen),
    make_optimizer(config.train),
  )
  abstract = states.abstract_state(task.init_params, tx, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  train_step = make_train_step(
    shardings, loss_fn=task.loss, tx=tx, **step_settings(config.train)
  )
  frozen = sharding.place(frozen, sharding.param_shardings(frozen, mesh))
  if config.objective == "lora":
    state = states.init_state(task.init_params, tx, 0, shardings)
  else:
    weights = random_weights(unet, jnp.float32)
    state = states.state_from(weights, tx, shardings)

  def step(number: int) -> float:
    nonlocal state
    with jax.set_mesh(mesh):
      batch = sharding.to_global(make_batch(task, args, number), mesh)
      state, metrics = train_step(state, frozen, batch)
    return float(metrics["loss"])

  return _timed(step, args.steps, peers.peak_memory_of_jax)


def theirs(args: Training) -> Figures:
  """The same steps of diffusers' U-Net: AdamW and a moving average.

  It cannot compute activations again (gradient checkpointing), and its text is
  encoded beforehand.
  """
  device = peers.torch_device()
  with device:
    unet = diffusers.I2VGenXLUNet(block_out_channels=args.channels).train()
  average = copy.deepcopy(unet).requires_grad_(False)
  adam = torch.optim.AdamW(unet.parameters(), lr=1e-5, fused=True)
  width, height = args.size
  rows, context = args.batch_size, unet.config.cross_attention_dim
  shape = (rows, 4, args.num_frames, height // 8, width // 8)

  def step(number: int) -> float:
    with device, torch.autocast(device.type, torch.bfloat16):
      torch.manual_seed(number)
      prediction = unet(
        torch.randn(shape),
        torch.randint(1000, (rows,)),
        fps=torch.full((rows,), 8),
        image_latents=torch.randn(shape),
        image_embeddings=torch.randn(rows, context),
        encoder_hidden_states=torch.randn(rows, TOKENS, context),
      ).sample
      target = torch.randn(shape)
      loss = torch.nn.functional.mse_loss(prediction.float(), target)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
    adam.step()
    adam.zero_grad()
    with torch.no_grad():
      new = [*unet.parameters()]
      torch._foreach_lerp_([*average.parameters()], new, 0.01)
    return loss.item()

  return _timed(step, args.steps, peers.peak_memory_of_torch)


def _timed(
  step: Callable[[int], float], steps: int, peak_memory: Callable[[], str]
) -> Figures:
  times = []
  for number in range(1 + steps):
    start = time.perf_counter()
    loss = step(number)
    times.append(time.perf_counter() - start)
    note(f"  step {number + 1}: loss {loss:.4f}, {times[-1]:.2f} s")
  first, *others = times
  seconds = {"first step": first, "a step": statistics.median(others)}
  return Figures(seconds, peak_memory())


def main(argv: list[str] | None = None) -> None:
  args = arguments.parse(Training, argv, "python -m launch.benchmarks.training")
  contestants = {"ours": ours}
  if load_config(args.config).objective == "diffusion":
    contestants = {"diffusers": theirs} | contestants
  width, height = args.size
  print(
    f"Training steps of {args.config.partition(':')[2]}, {args.batch_size} "
    f"clips of {args.num_frames} frames of {width}x{height}, bfloat16, on "
    f"{peers.device_name()}"
  )
  for line in peers.lines(contestants, args):
    print(line, flush=True)


if __name__ == "__main__":
  sys.exit(exit_status(main))
