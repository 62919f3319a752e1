"""Time of a U-Net evaluation on this CPU, diffusers' beside ours.

    python -m launch.benchmarks.denoising

Public variant (c) with random weights, float32, needs 15 GB at full width and
the extra `test`. Each has a process of its own, and they take turns on all
cores: in one process, torch slows ours. The medians and their ratio are
printed. Ratios are more reliable than times.
"""

import contextlib
import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import diffusers
import jax
import numpy as np
import torch

from i2vgen_jax.models.unet import I2VGenUNet
from launch import arguments
from launch.arguments import Count, Size
from launch.benchmarks import peers
from launch.cli import exit_status
from launch.progress import note

TOKENS = 77


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising:
  """Times one evaluation of the released U-Net.

  For example: python -m launch.benchmarks.denoising --size 128x128

  Attributes:
    size: Size of the frames, in pixels.
    num_frames: Number of frames.
    repeats: Number of evaluations by each.
    channels: Width of each level, a multiple of 64.
  """

  size: Size = (128, 128)
  num_frames: Count = 16
  repeats: Count = 5
  channels: tuple[int, int, int, int] = (320, 640, 1280, 1280)


@functools.cache
def ours(args: Denoising) -> Callable[[], object]:
  """A function that evaluates our U-Net once."""
  jax.config.update("jax_platforms", "cpu")
  unet = I2VGenUNet(block_channels=args.channels)
  width, height = args.size
  rng = np.random.default_rng(0)

  def draw(*shape: int) -> np.ndarray:
    return rng.normal(size=shape, scale=0.02).astype(np.float32)

  latents = draw(1, args.num_frames, height // 8, width // 8, 4)
  feed = {
    "fps": np.full(1, 8.0, np.float32),
    "image_latents": latents[:, 0],
    "image_embeds": draw(1, unet.context_dim),
    "text_context": draw(1, TOKENS, unet.context_dim),
  }
  timesteps = np.full(1, 500.0, np.float32)
  shapes = jax.eval_shape(
    lambda: unet.init(jax.random.key(0), latents, timesteps, **feed)
  )
  params = jax.device_put(jax.tree.map(lambda x: draw(*x.shape), shapes))
  evaluate = jax.jit(unet.apply)
  return lambda: jax.block_until_ready(
    evaluate(params, latents, timesteps, **feed)
  )


@functools.cache
def theirs(args: Denoising) -> Callable[[], object]:
  """A function that evaluates diffusers' U-Net once."""
  unet = diffusers.I2VGenXLUNet(block_out_channels=args.channels).eval()
  width, height = args.size
  size = (height // 8, width // 8)
  feed = {
    "sample": torch.randn(1, 4, args.num_frames, *size),
    "timestep": torch.tensor([500]),
    "fps": torch.tensor([8]),
    "image_latents": torch.randn(1, 4, args.num_frames, *size),
    "image_embeddings": torch.randn(1, unet.config.cross_attention_dim),
    "encoder_hidden_states": torch.randn(
      1, TOKENS, unet.config.cross_attention_dim
    ),
  }

  def evaluate() -> object:
    with torch.inference_mode():
      return unet(**feed)

  return evaluate


def seconds(
  make: Callable[[Denoising], Callable[[], object]], args: Denoising
) -> float:
  """Duration of one evaluation by the U-Net that this process has made."""
  evaluate = make(args)
  start = time.perf_counter()
  evaluate()
  return time.perf_counter() - start


def lines(args: Denoising) -> Iterator[str]:
  """The table."""
  both = {"diffusers": theirs, "ours": ours}
  with contextlib.ExitStack() as stack:
    pools = {name: stack.enter_context(peers.process()) for name in both}

    def measure(name: str) -> float:
      return pools[name].submit(seconds, both[name], args).result()

    for name in both:
      note(f"first evaluation of {name}: {measure(name):.1f} s")
    # In turn, so that other work on the machine slows both.
    times = [
      {name: measure(name) for name in both} for _ in range(args.repeats)
    ]
  medians = {
    name: statistics.median(each[name] for each in times) for name in both
  }
  width, height = args.size
  yield (
    f"U-Net of variant (c), {args.num_frames} frames of {width}x{height}, "
    f"float32, median of {args.repeats}"
  )
  for name, median in medians.items():
    speed = medians["diffusers"] / median
    yield f"  {name:12}{median:8.2f} s{speed:8.2f} of diffusers' speed"


def main(argv: list[str] | None = None) -> None:
  args = arguments.parse(
    Denoising, argv, "python -m launch.benchmarks.denoising"
  )
  print("\n".join(lines(args)))


if __name__ == "__main__":
  sys.exit(exit_status(main))
