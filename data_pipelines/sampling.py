"""Which frames of a clip a training step sees."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Bucket(NamedTuple):
  """A kind of step: what its clips look like and how often it is drawn.

  A bucket of one frame takes still pictures; its fps is only a label then.
  """

  num_frames: int
  fps: float | int
  weight: float | int


class Window(NamedTuple):
  """The frames start, start + stride, ... of a clip, and their true rate."""

  start: int
  stride: int
  num_frames: int
  fps: float | int


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
  steps = window.start + window.stride * np.arange(window.num_frames)
  wanted = times[0] + steps / native_fps
  return np.abs(times[:, None] - wanted).argmin(0).tolist()
