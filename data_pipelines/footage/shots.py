"""Detection of the shots in an edited video."""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32
from scenedetect.common import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from data_pipelines.media.video import Frame
from i2vgen_jax.errors import InputError

Thumb = Float32[np.ndarray, "p"]

# Frames dropped on both sides of a cut, because encoders smear it and detectors
# may be off by a frame. The first and last frames of a video are dropped too,
# because the detector needs neighbours to find a cut there.
TRIM = 2
# Shorter shots are dropped.
MIN_SECONDS = 0.5

# Frames of lower mean luma, of 255, are black. Fades end at 0; the darkest
# frames of Big Buck Bunny outside its fades have 23.
_BLACK = 5
# Smallest ratio of the lumas of successive frames in a fade.
_FADES_BY = 1.01
# Number of frames that a flash or a passer-by may hide the picture.
_HIDDEN = 4
# Thumbnails of smaller mean difference, in levels, show the same picture.
# Across the cuts of Big Buck Bunny it is at least 22.8.
_SAME = 10
# Difference, in levels, of a thumbnail pixel that shows another picture.
_CHANGED = 16
# Half lengths, in seconds, of the dissolves that are searched for.
_HALF_DISSOLVES = (1 / 6, 1 / 2, 1)


class Shot(NamedTuple):
  """Frames from `start` up to, but not including, `stop`."""

  start: int
  stop: int


def find_shots(
  frames: Iterable[Frame], fps: float | int, times: Sequence[float] = ()
) -> list[Shot]:
  """Finds the ranges of frames that belong to a single shot.

  Frames next to cuts, dissolves, fades to and from black with the black
  between them, and remaining shots shorter than `MIN_SECONDS` are dropped. A
  flash or an object that hides the picture for a moment does not end a shot.

  Args:
    frames: all frames in order, RGB, of one size; a shorter side of about 180
      pixels is sufficient. They are processed one by one and not kept.
    fps: frames per second.
    times: seconds of the frames, complete after the last one. A recording of
      variable rate may have far fewer frames per second than `fps`.

  Returns:
    The shots in order; frame numbers count from the first given frame.

  Raises:
    InputError: fps is not positive.
  """
  if not fps > 0:
    raise InputError(f"fps must be positive, got {fps}")
  # With the default minimum of 15 frames between cuts, the second of two close
  # cuts would stay inside a shot, like that of Big Buck Bunny at 9584.
  detector = AdaptiveDetector(min_scene_len=1)
  watch = _Watch(fps)
  for number, frame in enumerate(frames):
    bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    found = detector.process_frame(FrameTimecode(number, fps=float(fps)), bgr)
    watch.look(frame, [cut.frame_num for cut in found])
  usable = watch.usable()
  edges = np.flatnonzero(np.diff(usable, prepend=False, append=False))
  shots = [Shot(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
  if times and times[-1] > times[0]:
    fps = min(fps, (len(times) - 1) / (times[-1] - times[0]))
  return [shot for shot in shots if shot.stop - shot.start >= MIN_SECONDS * fps]


class _Watch:
  """Finds cuts, dissolves and fades; keeps two seconds of thumbnails."""

  def __init__(self, fps: float | int):
    self._halves = [max(round(half * fps), 2) for half in _HALF_DISSOLVES]
    self._recent: deque[Thumb] = deque(maxlen=2 * self._halves[-1] + 1)
    self._lumas: list[float] = []
    self._undecided: list[int] = []
    self._cuts: list[int] = []
    self._dissolves: list[Shot] = []

  def look(self, frame: Frame, cuts: list[int]) -> None:
    """Adds the next frame and the cuts that the detector reports with it."""
    small = cv2.resize(frame, (32, 18), interpolation=cv2.INTER_AREA)
    self._recent.append(small.ravel().astype(np.float32))
    self._lumas.append(float(small.mean()))
    number = len(self._lumas) - 1
    for half in self._halves:
      seen = list(self._recent)[-1 - 2 * half :]
      if len(seen) > 2 * half and _blends(seen[0], seen[half], seen[-1]):
        # Only the middle, because a span longer than the dissolve has the same
        # middle frame; the middles of one dissolve together cover it.
        middle, reach = number - half, half // 2 + TRIM
        self._dissolves.append(Shot(max(middle - reach, 0), middle + reach + 1))
    self._undecided += cuts
    # A cut is confirmed once the frames after it are known.
    while self._undecided and number >= self._undecided[0] + _HIDDEN:
      cut = self._undecided.pop(0)
      if not self._comes_back(number - cut + 1):
        self._cuts.append(cut)

  def _comes_back(self, ago: int) -> bool:
    """Whether the picture before a cut is back right after it."""
    seen = list(self._recent)
    before, after = seen[:-ago][-_HIDDEN:], seen[-ago:]
    return any(np.abs(a - b).mean() < _SAME for a in before for b in after)

  def usable(self) -> Bool[np.ndarray, "n"]:
    """Whether each frame belongs to exactly one shot."""
    lumas = np.array(self._lumas)
    usable = ~(_fades(lumas) | _fades(lumas[::-1])[::-1])
    for cut in [0, *self._cuts, *self._undecided, len(usable)]:
      usable[max(cut - TRIM, 0) : cut + TRIM] = False
    for start, stop in self._dissolves:
      usable[start:stop] = False
    return usable


def _blends(before: Thumb, middle: Thumb, after: Thumb) -> bool:
  """Whether a picture is the mean of two different ones, as in a dissolve.

  With motion the middle is not the mean, and a change of light or a title that
  appears keeps the structure of the picture.
  """
  change = np.abs(after - before)
  changed = change > _CHANGED
  if change.mean() < 20 or changed.mean() < 0.5:
    return False
  off = np.abs(middle - (before + after) / 2)
  # The median ignores objects that move in one of the pictures.
  evenly = np.median(off[changed] / change[changed]) < 0.15
  return bool(evenly) and _likeness(before, after) < 0.6


def _likeness(a: Thumb, b: Thumb) -> float:
  """Correlation, or 1 if one of the pictures is too uniform."""
  a, b = a - a.mean(), b - b.mean()
  size = np.linalg.norm(a) * np.linalg.norm(b)
  return float(a @ b / size) if size > 100**2 else 1.0


def _fades(lumas: Float[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
  """Black frames and the brightening ones after them."""
  fades = lumas < _BLACK
  for k in range(1, len(lumas)):
    fades[k] |= fades[k - 1] and lumas[k] > _FADES_BY * lumas[k - 1]
  return fades
