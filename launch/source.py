"""The input of a run: a photo, or a clip to work over."""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data_pipelines.media import pictures, video
from i2vgen_jax import preprocessing
from i2vgen_jax.errors import InputError
from i2vgen_jax.stage import Settings

Frames = UInt8[np.ndarray, "f h w 3"]


@dataclasses.dataclass(frozen=True)
class Source:
  """Decoded frames; a photo is one frame that has no rate."""

  frames: Frames
  fps: float | None = None

  @classmethod
  def of_photo(cls, path: Path) -> "Source":
    """Raises InputError unless the file is a picture."""
    return cls(preprocessing.load_picture(path)[None])

  @classmethod
  def of_clip(cls, path: Path, num_frames: int | None) -> "Source":
    """The first `num_frames` frames of a video, or a picture.

    Raises:
      InputError: neither of them, or the video has fewer frames.
    """
    if pictures.is_picture(path):
      return cls.of_photo(path)
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
    """The frames as a network of this size sees them."""
    crop = preprocessing.center_crop_wide
    return np.stack([crop(frame, width, height) for frame in self.frames])

  def clip(self, settings: Settings) -> Frames:
    """What the refine stage works over: a photo is held still.

    Cropped to the shape of the result, but not enlarged: the stage itself
    does that, more smoothly.
    """
    height, width = self.frames.shape[1:3]
    scale = min(width / settings.size[0], height / settings.size[1], 1)
    shape = (max(round(side * scale), 1) for side in settings.size)
    frames = self.cropped(*shape)
    if len(frames) == 1:
      frames = np.repeat(frames, settings.num_frames, axis=0)
    return frames
