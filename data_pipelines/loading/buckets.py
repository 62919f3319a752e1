"""Buckets: the clips, and the frames of them, that a training step sees.

The rule which clips a bucket takes is `fits`; a rule that depends on another
member of `Bucket` adds it to `Bucket.group`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from data_pipelines.shards.tfrecord import Entry, Index
from i2vgen_jax.errors import InputError


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
  def group(self) -> tuple[int, float]:
    """Equal for buckets that take the same clips; see `fits`."""
    return self.num_frames, self.ratio

  def __str__(self) -> str:
    width, height = self.size
    return f"{self.num_frames} frames, {self.fps:g} fps, {width}x{height}"


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


def make_buckets(given: Sequence, size: tuple[int, int]) -> list[Bucket]:
  """Buckets from a config's tuples.

  Args:
    given: tuples (num_frames, fps, weight) or (num_frames, fps, weight,
      (width, height)).
    size: (width, height) of the buckets without a size.

  Raises:
    InputError: There are no buckets, or values are missing or not positive.
  """
  try:
    buckets = [_bucket(size, *numbers) for numbers in given]
    valid = buckets and all(min(*b[:3], *b.size) > 0 for b in buckets)
  except (TypeError, ValueError):
    valid = False
  if not valid:
    raise InputError(
      f"cannot draw from buckets {tuple(given)}; give at least one of"
      " (num_frames, fps, weight) or (num_frames, fps, weight, (width,"
      " height)), all positive"
    )
  return buckets


def _bucket(
  default: tuple[int, int],
  num_frames: int,
  fps: float | int,
  weight: float | int,
  *size: Sequence[int],
) -> Bucket:
  [(width, height)] = size or [default]
  return Bucket(num_frames, fps, weight, (width, height))


def fits(
  bucket: Bucket, ratios: Sequence[float], index: Index
) -> Bool[np.ndarray, "n"]:
  """Whether a bucket takes each clip: those of its shape that are long enough.

  Args:
    bucket: the bucket.
    ratios: sorted aspect ratios of all buckets that draw from the same clips.
      A clip has the shape of the nearest ratio, compared as factors.
    index: rows of a sidecar.
  """
  clips = Entry(*index.T)
  between = np.sqrt(np.multiply(ratios[:-1], ratios[1:]))
  nearest = np.searchsorted(between, clips.width / clips.height)
  same_shape = nearest == ratios.index(bucket.ratio)
  return same_shape & (clips.num_frames >= bucket.num_frames)


def draw_window(
  available: int, native_fps: float, bucket: Bucket, rng: np.random.Generator
) -> Window:
  """Chooses frames at a stride of round(native fps / fps) and a random start.

  A clip too short for that is taken at the largest stride that fits. The
  window has the rate of the chosen frames; clips are never padded.

  Args:
    available: number of frames in the clip, at least `bucket.num_frames`.
    native_fps: frame rate of the clip.
    bucket: wanted number of frames and frame rate.
    rng: draws the start.
  """
  count = bucket.num_frames
  if count == 1:
    return Window(int(rng.integers(available)), 1, 1, bucket.fps)
  wanted = max(round(native_fps / bucket.fps), 1)
  stride = min(wanted, (available - 1) // (count - 1))
  start = int(rng.integers(available - (count - 1) * stride))
  return Window(start, stride, count, native_fps / stride)


def nearest_frames(
  times: Float[np.ndarray, "f"], window: Window, native_fps: float
) -> list[int]:
  """Numbers of the frames nearest in time to those of the window."""
  wanted = times[0] + window.seconds(native_fps)
  return np.abs(times[:, None] - wanted).argmin(0).tolist()
