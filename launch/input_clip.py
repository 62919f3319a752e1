"""The input of a run: a photo, or a clip that the refine stage repairs."""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data_pipelines.media import pictures, video
from i2vgen_jax import preprocessing
from i2vgen_jax.errors import InputError
from i2vgen_jax.stage import Sampling

Frames = UInt8[np.ndarray, "f h w 3"]


@dataclasses.dataclass(frozen=True)
class InputClip:
  """Decoded frames; a photo is one frame without a frame rate."""

  frames: Frames
  fps: float | None = None

  @classmethod
  def read(
    cls, path: Path, num_frames: int | None, only_photo: bool
  ) -> "InputClip":
    """A photo, or the first `num_frames` frames of a video.

    Raises:
      InputError: the file is neither or, if `only_photo`, not a picture; or the
        video has fewer frames.
    """
    if only_photo or pictures.is_picture(path):
      return cls(preprocessing.load_picture(path)[None])
    frames, times = video.decode_mp4(
      path, lambda times: range(len(times))[:num_frames]
    )
    if len(frames) < (num_frames or 1):
      raise InputError(
        f"video {path} has {len(frames)} frames, fewer than the {num_frames} "
        "asked for; ask for no more"
      )
    steady = len(frames) > 1 and times[-1] > 0
    return cls(frames, float((len(times) - 1) / times[-1]) if steady else None)

  def cropped(self, width: int, height: int) -> Frames:
    """The frames as a stage of this size sees them."""
    crop = preprocessing.center_crop_wide
    return np.stack([crop(frame, width, height) for frame in self.frames])

  def to_repair(self, sampling: Sampling) -> Frames:
    """The clip that a refine stage starts from; a photo is held still.

    Cropped to the shape of the result, but not enlarged: the stage itself
    does that, more smoothly.
    """
    height, width = self.frames.shape[1:3]
    scale = min(width / sampling.size[0], height / sampling.size[1], 1)
    frames = self.cropped(*(max(round(n * scale), 1) for n in sampling.size))
    if len(frames) == 1:
      frames = np.repeat(frames, sampling.num_frames, axis=0)
    return frames
