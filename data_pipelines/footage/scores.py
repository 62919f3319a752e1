"""Scores of clips by classical image processing, without trained models.

A model of aesthetics is the user's own; see `load_hook`.
"""

import math
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from data_pipelines.media.video import Frame, Frames, Times
from i2vgen_jax.errors import InputError

Pixels = UInt8[np.ndarray, "..."]
Gray = UInt8[np.ndarray, "h w"]
Mask = Bool[np.ndarray, "h w"]
Flow = Float[np.ndarray, "y x 2"]
# Boxes (left, top, right, bottom) of letters, and the luma of each.
Boxes, Lumas = Int[np.ndarray, "n 4"], Float[np.ndarray, "n"]

# Seconds between two frames above which optical flow may lose the motion.
_MAX_GAP = 1 / 4

# Mean luma difference, in levels, that a box of this many pixels may have in
# still frames; optical flow would follow the noise of cameras and encoders in
# uniform areas. Measured: still pictures have at most 2.2 at crf 16 and 2.7 at
# crf 35; photos panned by 0.01 have 2.7 to 9.
_NOISE, _NOISE_BOX = 2.5, 9

# Shorter side, in pixels, at which each score is measured.
_FLOW_SIDE = 128
_SHARPNESS_SIDE = 256
# The first finds small captions, the second the letters of titles.
_TEXT_SIDES = (360, 120)
_SUBJECT_SIDE = 64


class Scores(NamedTuple):
  """Scores of a clip or picture.

  Attributes:
    motion: mean speed of all pixels, in shorter sides of the frame per second,
      including camera motion. Accurate to a few percent on photos panned by
      0.01 to 0.6; above 1 it saturates. 0 if only noise differs.
    sharpness: variance of the Laplacian of the luma (0 to 255) at a shorter
      side of 256 pixels. Photos have 200 to 1700, and 7 to 130 if they are out
      of focus by two pixels.
    text_share: share of the frame covered by still lines of text such as
      captions, titles and logos, 0 to 1. One line of captions has at least
      0.014, a scene without text 0. Touching letters, script and small print
      are missed; rows of bright pickets are mistaken for letters.
    subject_share: share of the frame covered by the main subject, 0 to 1. An
      estimate: the region that differs in colour from the border of the frame
      or moves differently from the rest.
    brightness: mean luma, 0 (black) to 1.
  """

  motion: float
  sharpness: float
  text_share: float
  subject_share: float
  brightness: float


def score(frames: Frames, times: Times) -> Scores:
  """Scores one shot by a few of its frames.

  Args:
    frames: frames of one shot, of any size.
    times: increasing times of the frames, in seconds. If no two frames are
      within a quarter second, as for a picture, motion is NaN.
  """
  pairs = _pairs(times)
  if not len(pairs):
    still = score(np.repeat(frames[:1], 2, axis=0), np.array([0, _MAX_GAP]))
    return still._replace(motion=math.nan)
  grays = [*map(_gray, frames)]
  flows = _flows(grays, times)
  texts = [_text_share(*grays[k : k + 2]) for k in pairs]
  subjects = list(map(_subject_share, frames[pairs], flows))
  return Scores(
    motion=_speed(flows),
    sharpness=float(np.median([_sharpness(gray) for gray in grays])),
    text_share=float(np.mean(texts)),
    subject_share=float(np.median(subjects)),
    brightness=float(np.mean([gray.mean() for gray in grays]) / 255),
  )


def motion(frames: Frames, times: Times) -> float:
  """The motion of `Scores` alone."""
  if not len(_pairs(times)):
    return math.nan
  return _speed(_flows([*map(_gray, frames)], times))


def load_hook(spec: str) -> Callable[[Frames], Any]:
  """Imports a function of the user's own, such as a score of aesthetics.

  Args:
    spec: `module:function`. The function takes the frames of a clip; a score
      returns a number.

  Raises:
    InputError: there is no such function.
  """
  try:
    hook = pkgutil.resolve_name(spec)
  except (ImportError, AttributeError, ValueError) as e:
    raise InputError(
      f"cannot load the function {spec}: {e}; give module:function, with"
      " the folder of the module on PYTHONPATH"
    ) from e
  if not callable(hook):
    raise InputError(f"{spec} is not a function; give module:function")
  return hook


def _resized(picture: Pixels, short_side: int) -> Pixels:
  height, width, *_ = picture.shape
  scale = short_side / min(height, width)
  size = round(width * scale), round(height * scale)
  method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
  return cv2.resize(picture, size, interpolation=method)


def _pairs(times: Times) -> Int[np.ndarray, "n"]:
  """Frames whose next one is near enough in time to measure motion."""
  return np.flatnonzero(np.diff(times) <= _MAX_GAP)


def _gray(frame: Frame) -> Gray:
  return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def _flows(grays: Sequence[Gray], times: Times) -> list[Flow]:
  """Velocity of every pixel, in shorter sides per second, of each pair."""
  gaps = np.diff(times)
  return [_flow(*grays[k : k + 2]) / gaps[k] for k in _pairs(times)]


def _speed(flows: Sequence[Flow]) -> float:
  return float(np.mean([np.linalg.norm(f, axis=-1).mean() for f in flows]))


def _flow(first: Gray, second: Gray) -> Flow:
  """Displacement of every pixel, in shorter sides."""
  small = _resized(first, _FLOW_SIDE), _resized(second, _FLOW_SIDE)
  differ = cv2.absdiff(*small).astype(np.float32)
  if cv2.blur(differ, (_NOISE_BOX, _NOISE_BOX)).max() < _NOISE:
    return np.zeros((*differ.shape, 2), np.float32)
  solver = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
  return solver.calc(*small, None) / _FLOW_SIDE


def _sharpness(gray: Gray) -> float:
  small = _resized(gray, _SHARPNESS_SIDE)
  return float(cv2.Laplacian(small, cv2.CV_32F).var())


# Text: bright thin strokes, in the picture or its negative.

# Least luma difference between a stroke and its surroundings.
_CONTRAST = 48
# Least luma of a stroke.
_BRIGHT = 170
# Greatest width of a stroke, in pixels at `_TEXT_SIDES`.
_STROKE = 13
# Least number of letters in a line.
_LETTERS = 5


def _text_share(first: Gray, second: Gray) -> float:
  large, small = (
    _text_mask(_resized(first, side), _resized(second, side)).astype(np.uint8)
    for side in _TEXT_SIDES
  )
  size = large.shape[::-1]
  small = cv2.resize(small, size, interpolation=cv2.INTER_NEAREST)
  return float((large | small).mean())


def _text_mask(first: Gray, second: Gray) -> Mask:
  """Boxes around lines of letters that both frames have in one place."""
  kernel = np.ones((_STROKE, _STROKE), np.uint8)
  mask = np.zeros(first.shape, bool)
  for pair in ((first, second), (255 - first, 255 - second)):
    darker = np.minimum(*pair)
    strokes = [cv2.morphologyEx(p, cv2.MORPH_TOPHAT, kernel) for p in pair]
    bright = (np.minimum(*strokes) > _CONTRAST) & (darker > _BRIGHT)
    for left, top, right, bottom in _lines(*_letters(bright, darker)):
      mask[top:bottom, left:right] = True
  return mask


def _lines(boxes: Boxes, lumas: Lumas) -> Iterator[list[int]]:
  """Boxes (left, top, right, bottom) of rows of similar letters."""
  if len(boxes) < _LETTERS:
    return
  left, top, right, bottom = boxes.T
  height = bottom - top
  tallest = np.maximum.outer(height, height)
  gap = np.maximum.outer(left, left) - np.minimum.outer(right, right)
  beside = (
    (gap < 0.8 * tallest)
    & (gap > -0.3 * tallest)
    & (tallest < 2 * np.minimum.outer(height, height))
    & (np.abs(np.subtract.outer(bottom, bottom)) < 0.35 * tallest)
    & (np.abs(np.subtract.outer(lumas, lumas)) < 40)
  )
  np.fill_diagonal(beside, True)
  group, previous = np.arange(len(boxes)), None
  while previous is None or (group != previous).any():
    previous = group
    group = np.where(beside, group, len(group)).min(1)
  for number in np.unique(group):
    line = boxes[group == number]
    if _is_line(line, lumas[group == number]):
      yield [*line[:, :2].min(0), *line[:, 2:].max(0)]


def _is_line(boxes: Boxes, lumas: Lumas) -> bool:
  """Whether there are enough letters with one baseline, size and luma."""
  _, top, _, bottom = boxes.T
  height = np.median(bottom - top)
  on_base = np.abs(bottom - np.median(bottom)) < 0.15 * height + 1
  thickness = bottom.max() - top.min()
  is_even = thickness < 2.2 * height and lumas.std() < 15
  return bool(len(boxes) >= _LETTERS and on_base.mean() > 0.6 and is_even)


def _letters(strokes: Mask, gray: Gray) -> tuple[Boxes, Lumas]:
  """Boxes and lumas of possible letters."""
  _, labels, stats, _ = cv2.connectedComponentsWithStats(strokes.view(np.uint8))
  left, top, width, height, area = stats.T
  # Not over the whole frame, most of which is background.
  lumas = np.bincount(labels[strokes], gray[strokes], len(area)) / area
  fill = area / (width * height)
  may = (height >= 6) & (height <= 60) & (fill > 0.15) & (fill < 0.95)
  may &= (width < 2.5 * height) & (height < 10 * width)
  may[0] = False  # the background
  boxes = np.stack([left, top, left + width, top + height], 1)
  return boxes[may], lumas[may]


# Speed, in shorter sides per second, that indicates the subject as much as a
# colour three standard deviations from that of the border.
_SPEED = 0.3


def _subject_share(frame: Frame, flow: Flow) -> float:
  small = _resized(frame, _SUBJECT_SIDE)
  own = np.linalg.norm(flow - np.median(flow, (0, 1)), axis=-1)
  own = cv2.resize(own.astype(np.float32), small.shape[1::-1])
  oddness = np.tanh(_unlike_border(small) / 6) + np.tanh(own / (2 * _SPEED))
  levels = np.rint(cv2.GaussianBlur(oddness, (0, 0), 2) * 127).astype(np.uint8)
  _, mask = cv2.threshold(levels, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
  _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
  return float(stats[1:, cv2.CC_STAT_AREA].max(initial=0) / mask.size)


def _unlike_border(picture: Frame) -> Float[np.ndarray, "h w"]:
  """Distance to the colours of the nearest side, in standard deviations."""
  lab = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).astype(np.float64)
  depth = len(lab) // 10
  sides = lab[:depth], lab[-depth:], lab[:, :depth], lab[:, -depth:]
  distances = []
  for side in sides:
    colours = side.reshape(-1, 3)
    # Five levels of deviation more: noise on a uniform side counts little.
    covariance = np.cov(colours.T) + 25 * np.eye(3)
    off = lab - colours.mean(0)
    squares = np.einsum("yxi,ij,yxj->yx", off, np.linalg.inv(covariance), off)
    distances.append(np.sqrt(squares))
  return np.min(distances, 0)
