"""Which clips, and which frames of them, a training step sees."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from data_pipelines.shards.tfrecord import Entry, Index
from i2vgen_jax.errors import InputError


class Bucket(NamedTuple):
  """A kind of step: what its clips look like and how often it is drawn.

  A bucket of one frame takes still pictures; its fps is only a label then.
  """

  num_frames: int
  fps: float | int
  weight: float | int
  size: tuple[int, int]

  @property
  def ratio(self) -> float:
    """Width to height."""
    return self.size[0] / self.size[1]

  def __str__(self) -> str:
    width, height = self.size
    return f"{self.num_frames} frames, {self.fps:g} fps, {width}x{height}"


class Window(NamedTuple):
  """The frames start, start + stride, ... of a clip, and their true rate."""

  start: int
  stride: int
  num_frames: int
  fps: float | int

  def seconds(self, native_fps: float | int) -> Float[np.ndarray, "n"]:
    """When its frames are due, from the first frame of the clip."""
    steps = self.start + self.stride * np.arange(self.num_frames)
    return steps / native_fps


def make_buckets(given: Sequence, size: tuple[int, int]) -> list[Bucket]:
  """Buckets from a config's tuples.

  Args:
    given: (num_frames, fps, weight) or (num_frames, fps, weight, (width,
      height)) each.
    size: (width, height) of those that name none.

  Raises:
    InputError: no buckets, or values that are missing or not positive.
  """
  try:
    buckets = [_bucket(size, *numbers) for numbers in given]
    positive = all(min(*b[:3], *b.size) > 0 for b in buckets)
  except (TypeError, ValueError):
    buckets, positive = [], False
  if not buckets or not positive:
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
  size: Sequence[int] | None = None,
) -> Bucket:
  width, height = default if size is None else size
  return Bucket(num_frames, fps, weight, (width, height))


def fits(
  bucket: Bucket, ratios: Sequence[float], index: Index
) -> Bool[np.ndarray, "n"]:
  """Which clips a bucket takes: those of its shape that are long enough.

  Args:
    bucket: what is asked for.
    ratios: width to height of all buckets that draw from the same clips,
      rising. A clip has the shape of the one that is nearest, as a factor.
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
  """Chooses frames at a stride of round(native / wanted), random start.

  A clip too short for that is taken at the largest stride that fits. The
  window says the rate that its frames really have; nothing is ever padded.

  Args:
    available: frames in the clip, at least `bucket.num_frames`.
    native_fps: rate of the clip.
    bucket: frames and rate wanted.
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
  """The frames whose times come nearest to the window's even ones."""
  wanted = times[0] + window.seconds(native_fps)
  return np.abs(times[:, None] - wanted).argmin(0).tolist()
