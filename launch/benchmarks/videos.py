"""A video by the released model, diffusers' pipeline beside ours.

    python -m launch.benchmarks.videos

It needs the extra `test`, and at the released size a GPU of 16 GB. Without
`--weights` it writes random ones, 5 GB, to a temporary folder.
"""

import dataclasses
import functools
import math
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image

import i2vgen_jax
from i2vgen_jax.cascade import BUNDLED
from launch import arguments
from launch.arguments import Count, Size, number
from launch.benchmarks import peers
from launch.benchmarks.peers import Figures
from launch.cli import exit_status
from launch.progress import note

# The networks of the public weights, where they differ from the defaults.
UNET: dict[str, Any] = {}
VAE = {
  "block_out_channels": (128, 256, 512, 512),
  "down_block_types": ("DownEncoderBlock2D",) * 4,
  "up_block_types": ("UpDecoderBlock2D",) * 4,
  "layers_per_block": 2,
}
TEXT = {
  "hidden_size": 1024,
  "intermediate_size": 4096,
  "num_hidden_layers": 23,
  "num_attention_heads": 16,
  "projection_dim": 1024,
}
VISION = {
  "hidden_size": 1280,
  "intermediate_size": 5120,
  "num_hidden_layers": 32,
  "num_attention_heads": 16,
  "patch_size": 14,
  "image_size": 224,
  "projection_dim": 1024,
}

# Number of steps of the video that is made first.
_FEW = 3
Steps = number(int, "N", _FEW + 1, math.inf)

Contestant = Literal["diffusers", "compiled", "ours"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Videos:
  """Times videos of a picture by diffusers, eager and compiled, and by ours.

  For example: python -m launch.benchmarks.videos --contestants diffusers ours

  Attributes:
    weights: Folder in diffusers' layout; random weights by default.
    size: Size of the video, in pixels.
    num_frames: Number of frames.
    steps: Number of solver steps.
    contestants: What is timed, in this order. `compiled` is diffusers with
      torch.compile.
  """

  weights: Path | None = None
  size: Size = (1280, 704)
  num_frames: Count = 16
  steps: Steps = 50
  contestants: tuple[Contestant, ...] = ("diffusers", "compiled", "ours")


def write_weights(folder: Path) -> None:
  """Random weights in bfloat16, in diffusers' layout."""
  words = transformers.CLIPTokenizer.from_pretrained(
    BUNDLED / "tokenizer", pad_token="<|endoftext|>"
  )
  side = VISION["image_size"]
  torch.set_default_dtype(torch.bfloat16)
  with peers.torch_device():
    networks = {
      "vae": diffusers.AutoencoderKL(latent_channels=4, **VAE),
      "unet": diffusers.I2VGenXLUNet(**UNET),
      "text_encoder": transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
          hidden_act="gelu",
          bos_token_id=words.bos_token_id,
          eos_token_id=words.eos_token_id,
          pad_token_id=words.pad_token_id,
          **TEXT,
        )
      ),
      "image_encoder": transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(hidden_act="gelu", **VISION)
      ),
    }
  torch.set_default_dtype(torch.float32)
  diffusers.I2VGenXLPipeline(
    tokenizer=words,
    feature_extractor=transformers.CLIPImageProcessor(
      crop_size={"width": side, "height": side}
    ),
    scheduler=diffusers.DDIMScheduler(
      beta_schedule="squaredcos_cap_v2",
      rescale_betas_zero_snr=True,
      prediction_type="v_prediction",
      steps_offset=1,
      clip_sample=False,
    ),
    **networks,
  ).save_pretrained(folder)
  del networks
  torch.cuda.empty_cache()


def by_diffusers(args: Videos, compiled: bool = False) -> Figures:
  """diffusers' pipeline, in bfloat16, with its U-Net compiled or not."""
  pipe = diffusers.I2VGenXLPipeline.from_pretrained(
    args.weights, torch_dtype=torch.bfloat16, local_files_only=True
  ).to(peers.torch_device())
  # The pipeline looks for the norm where transformers 4 had it.
  pipe.text_encoder.text_model = types.SimpleNamespace(
    final_layer_norm=pipe.text_encoder.final_layer_norm
  )
  pipe.set_progress_bar_config(disable=True)
  if compiled:
    pipe.unet.compile()
  width, height = args.size

  def video(steps: int) -> Any:
    return pipe(
      "a red kite",
      Image.fromarray(_picture(args)),
      width=width,
      height=height,
      num_frames=args.num_frames,
      num_inference_steps=steps,
      output_type="np",
    ).frames

  return _timed(video, args.steps, peers.peak_memory_of_torch)


def by_ours(args: Videos) -> Figures:
  """This library, in bfloat16."""
  cascade = i2vgen_jax.load(args.weights, "bfloat16")

  def video(steps: int) -> Any:
    return cascade(
      _picture(args),
      "a red kite",
      size=args.size,
      num_frames=args.num_frames,
      num_steps=steps,
    )

  return _timed(video, args.steps, peers.peak_memory_of_jax)


def _picture(args: Videos) -> np.ndarray:
  width, height = args.size
  rng = np.random.default_rng(0)
  return rng.integers(256, size=(height, width, 3), dtype=np.uint8)


def _timed(
  video: Callable[[int], Any], steps: int, peak_memory: Callable[[], str]
) -> Figures:
  """Times of videos of few steps and of all, and from them of one step."""
  times = []
  for count in (_FEW, _FEW, steps):
    start = time.perf_counter()
    video(count)
    times.append(time.perf_counter() - start)
    note(f"  {count} steps: {times[-1]:.1f} s")
  first, short, whole = times
  seconds = {
    "first call": first,
    "a step": (whole - short) / (steps - _FEW),
    "the video": whole,
  }
  return Figures(seconds, peak_memory())


CONTESTANTS: dict[Contestant, Callable[[Videos], Figures]] = {
  "diffusers": by_diffusers,
  "compiled": functools.partial(by_diffusers, compiled=True),
  "ours": by_ours,
}


def main(argv: list[str] | None = None) -> None:
  args = arguments.parse(Videos, argv, "python -m launch.benchmarks.videos")
  with tempfile.TemporaryDirectory() as folder:
    if args.weights is None:
      note("writing random weights ...")
      args = dataclasses.replace(args, weights=Path(folder) / "weights")
      write_weights(args.weights)
    width, height = args.size
    print(
      f"Videos of {args.num_frames} frames of {width}x{height} in {args.steps} "
      f"steps, with guidance, bfloat16, on {peers.device_name()}"
    )
    chosen = {name: CONTESTANTS[name] for name in args.contestants}
    for line in peers.lines(chosen, args):
      print(line, flush=True)


if __name__ == "__main__":
  sys.exit(exit_status(main))
