"""Five lines to a video.

import i2vgen_jax

pipe = i2vgen_jax.load("ali-vilab/i2vgen-xl")
frames = pipe("photo.jpg", "a sailing boat in the evening sun", seed=0)
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8
from PIL import Image, ImageOps

from i2vgen_jax import interop
from i2vgen_jax.cascade import BUNDLED, Cascade
from i2vgen_jax.errors import InputError
from i2vgen_jax.programs import Progress

Picture = str | Path | Image.Image | np.ndarray


def load(
  path: str | Path = BUNDLED,
  *,
  dtype: Any = None,
  mesh: Mesh | None = None,
  size: tuple[int, int] | None = None,
  choices: Mapping[str, Any] | None = None,
) -> "Pipeline":
  """Weights in any form, ready to make videos.

  Args:
    path: a cascade folder of ours, a diffusers folder, a folder with the
      original files, or `owner/name` on the Hub; without it the small cascade
      of this package.
    dtype: of weights and computation, as `jax.numpy.bfloat16`; None keeps what
      is stored.
    mesh: splits large weights over its devices; see `sharding.make_mesh`.
    size: (width, height) of the videos; None is that of the weights.
    choices: see `interop.choices.Choices`.

  Raises:
    InputError: no weights there, or they are damaged, or of another model.
  """
  cascade = interop.load_cascade(path, dtype, mesh=mesh, choices=choices)
  return Pipeline(cascade, size)


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """A cascade that takes pictures and prompts.

  Attributes:
    cascade: the networks.
    size: (width, height) of the videos; None is that of the weights.
  """

  cascade: Cascade
  size: tuple[int, int] | None = None

  def __call__(
    self,
    image: Picture | Sequence[Picture],
    prompt: str | Sequence[str] = "",
    *,
    seed: int = 0,
    negative_prompt: str | None = None,
    size: tuple[int, int] | None = None,
    num_frames: int | None = None,
    fps: float | int | None = None,
    num_steps: int | None = None,
    guidance_scale: float | int | None = None,
    progress: Progress | None = None,
  ) -> UInt8[np.ndarray, "b f h w 3"]:
    """Videos that begin with the pictures.

    Args:
      image: one picture or several: a path, a PIL image or uint8[h w 3].
      prompt: one for all pictures, or one for each.
      seed: the same seed and settings give the same videos, and a picture
        the same one, whatever stands beside it.
      negative_prompt: what the video shall not be; None is as stored, and so
        is every argument below.
      size: (width, height).
      num_frames: of each video.
      fps: as the network is told.
      num_steps: denoising steps of the first stage.
      guidance_scale: weight of the conditions; 1 is off.
      progress: called with the denoiser evaluations done in a stage.

    Returns:
      Frames of all videos, b of them.

    Raises:
      InputError: a picture cannot be read, or a setting not be met.
    """
    several = isinstance(image, list | tuple)
    images = [_pixels(one) for one in (image if several else [image])]
    prompts = [prompt] * len(images) if isinstance(prompt, str) else [*prompt]
    stages = [n for n in ("base", "refine") if getattr(self.cascade, n)]
    plan = self.cascade.plan(
      stages,
      size=size or self.size,
      num_frames=num_frames,
      fps=fps,
      num_steps=num_steps,
      guidance_scale=guidance_scale,
      negative_prompt=negative_prompt,
    )
    for name, settings in plan.items():
      self.cascade.check(name, settings)
    if "base" not in plan:
      raise InputError(
        f"no base stage in {self.cascade.folder}: a refine stage works over a "
        "clip; use cascade.run_refine"
      )
    run = {"seed": seed, "progress": progress}
    clips = self.cascade.run_base(images, prompts, settings=plan["base"], **run)
    if "refine" in plan:
      clips = self.cascade.run_refine(
        clips, prompts, settings=plan["refine"], **run
      )
    return clips


def _pixels(image: Picture) -> UInt8[np.ndarray, "h w 3"]:
  """RGB as it is meant to be seen: cameras store turned pictures."""
  if isinstance(image, str | Path):
    try:
      with Image.open(image) as file:
        return np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    except (OSError, Image.DecompressionBombError) as e:
      raise InputError(
        f"cannot read a picture from {image}: {e}; give a photo"
      ) from e
  if isinstance(image, Image.Image):
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
  array = np.asarray(image)
  if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
    raise InputError(
      f"a picture is uint8[h w 3], not {array.dtype}{list(array.shape)}"
    )
  return array
