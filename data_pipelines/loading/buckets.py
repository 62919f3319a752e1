"""Buckets: the clips, and the frames of them, that a training step sees.

`Bucket.fits` decides which clips a bucket takes; if it comes to depend on
another member of `Bucket`, add that member to `Bucket.group`.
"""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from data_pipelines.shards.tfrecord import Entry, Index
from i2vgen_jax.errors import InputError


class Window(NamedTuple):
  """Frames start, start + stride, ... of a clip, and their true frame rate."""

  start: int
  stride: int
  num_frames: int
  fps: float | int

  def seconds(self, native_fps: float | int) -> Float[np.ndarray, "n"]:
    """Nominal times of the frames, from the first frame of the clip."""
    steps = self.start + self.stride * np.arange(self.num_frames)
    return steps / native_fps

  def nearest_frames(
    self, times: Float[np.ndarray, "f"], native_fps: float | int
  ) -> list[int]:
    """Numbers of the frames nearest in time to those of the window."""
    wanted = times[0] + self.seconds(native_fps)
    return np.abs(times[:, None] - wanted).argmin(0).tolist()


class Bucket(NamedTuple):
  """A kind of training step.

  Attributes:
    num_frames: number of frames in each clip; one frame may be a picture.
    fps: frame rate of the clips; only a label for one frame.
    weight: chance of the bucket, relative to the others.
    size: (width, height) of the frames, in pixels.
  """

  num_frames: int
  fps: float | int
  weight: float | int
  size: tuple[int, int]

  @property
  def ratio(self) -> float:
    """Width divided by height."""
    return self.size[0] / self.size[1]

  @property
  def num_pixels(self) -> int:
    """Number of pixels of a clip, to which its latents are in proportion."""
    return self.num_frames * self.size[0] * self.size[1]

  @property
  def group(self) -> tuple[int, float]:
    """Equal for buckets that take the same clips; see `fits`."""
    return self.num_frames, self.ratio

  def __str__(self) -> str:
    width, height = self.size
    return f"{self.num_frames} frames, {self.fps:g} fps, {width}x{height}"

  def fits(self, ratios: Sequence[float], rows: Index) -> Bool[np.ndarray, "n"]:
    """Whether the bucket takes each clip: of its shape, and long enough.

    Args:
      ratios: sorted aspect ratios of all buckets that draw from the same clips.
        A clip has the shape of the nearest ratio, compared as factors.
      rows: rows of a sidecar.
    """
    clips = Entry(*rows.T)
    between = np.sqrt(np.multiply(ratios[:-1], ratios[1:]))
    nearest = np.searchsorted(between, clips.width / clips.height)
    same_shape = nearest == ratios.index(self.ratio)
    return same_shape & (clips.num_frames >= self.num_frames)

  def draw_window(
    self, available: int, native_fps: float | int, rng: np.random.Generator
  ) -> Window:
    """Chooses frames at a stride of round(native fps / fps) and a random start.

    A clip too short for that is taken at the largest stride that fits. The
    window has the rate of the chosen frames; clips are never padded.

    Args:
      available: number of frames in the clip, at least `num_frames`.
      native_fps: frame rate of the clip.
      rng: draws the start.
    """
    steps = self.num_frames - 1
    if not steps:
      return Window(int(rng.integers(available)), 1, 1, self.fps)
    wanted = max(round(native_fps / self.fps), 1)
    stride = min(wanted, (available - 1) // steps)
    start = int(rng.integers(available - steps * stride))
    return Window(start, stride, self.num_frames, native_fps / stride)


def make_buckets(given: Sequence, size: tuple[int, int]) -> list[Bucket]:
  """Buckets from a config's tuples.

  Args:
    given: tuples (num_frames, fps, weight) or (num_frames, fps, weight,
      (width, height)).
    size: (width, height) of the buckets without a size.

  Raises:
    InputError: There are no buckets, or values are missing or not positive.
  """
  buckets = []
  with contextlib.suppress(TypeError, ValueError):
    for num_frames, fps, weight, *own in given:
      [(width, height)] = own or [size]
      buckets.append(Bucket(num_frames, fps, weight, (width, height)))
    if buckets and all(min(*b[:3], *b.size) > 0 for b in buckets):
      return buckets
  raise InputError(
    f"cannot draw from buckets {tuple(given)}; give at least one of"
    " (num_frames, fps, weight) or (num_frames, fps, weight, (width, height)),"
    " all positive"
  )
