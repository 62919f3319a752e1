"""The motion of an object in a clip, measured from its pixels.

The object is found in every frame by its colour in the first one; its place,
size and orientation are then tracked through the clip. Lengths are in units
of the frame's shorter side, x points right, y down, angles are in degrees
clockwise as seen on screen.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, UInt8

from i2vgen_jax.errors import InputError

NONE = "none"

# Distance in RGB of a pixel that counts as half covered by the object.
_COLOUR = 50.0
# Fraction of its first area at which the object counts as visible in a frame.
_VISIBLE = 0.15
# Improvement of the fit that a turn needs over no turn: round objects fit
# equally well at every angle.
_GAIN = 0.04
# Fit below which it is not the same object: true clips reach 0.8 under heavy
# noise and blur, random blobs of the object's colour about 0.3.
_SAME = 0.5
_TURNS = np.arange(-150, 151, 5)


@dataclasses.dataclass(frozen=True)
class Motion:
  """Change from the first to the last frame.

  Attributes:
    x: travel to the right, in shorter sides.
    y: travel down, in shorter sides.
    scale: ratio of the last to the first linear size.
    turn: rotation in degrees clockwise.
    visible: fraction of the frames in which the object was found.
    fit: intersection over union of the later outlines and the first one after
      it has been moved, scaled and turned; 1 is perfect.
  """

  x: float
  y: float
  scale: float
  turn: float
  visible: float
  fit: float


def measure(
  clip: UInt8[np.ndarray, "f h w 3"], mask: Bool[np.ndarray, "h w"]
) -> Motion:
  """Tracks the object that the mask selects in the first frame.

  Change is assumed to be uniform over time. Every frame of the later half
  gives an estimate of the whole change; their median is robust against single
  bad frames.

  Args:
    clip: at least two frames.
    mask: the object's pixels in the first frame.

  Raises:
    InputError: the mask selects no pixel, or all of them.
  """
  if not mask.any() or mask.all():
    raise InputError(
      f"the mask selects {mask.sum()} of {mask.size} pixels, which does not "
      "separate object and ground; give the object's pixels in the first frame"
    )
  cover = _coverage(clip, mask)
  rows, columns = np.nonzero(mask)
  reach = np.hypot(np.ptp(rows) + 1, np.ptp(columns) + 1) / 2
  tracks = [_locate(frame, 1.8 * reach) for frame in cover]
  centres = np.array([centre for centre, _ in tracks])
  areas = np.array([area for _, area in tracks])
  seen = areas > _VISIBLE * mask.sum()
  time = np.linspace(0, 1, len(clip))
  late = seen & (time >= 0.5)
  if not seen[0] or not late.any():
    return Motion(0.0, 0.0, 1.0, 0.0, float(seen.mean()), 0.0)
  sizes = np.sqrt(areas / areas[0])
  travel = (centres - centres[0])[late] / time[late, None] / min(mask.shape)
  growth = (sizes[late] - 1) / time[late]
  turn, fit = _turn(cover[seen], centres[seen], sizes[seen] * reach, time[seen])
  return Motion(
    x=float(np.median(travel[:, 0])),
    y=float(np.median(travel[:, 1])),
    scale=float(max(1 + np.median(growth), 0.1)),
    turn=turn,
    visible=float(seen.mean()),
    fit=fit,
  )


def classify(
  motion: Motion, motions: Mapping[str, tuple[float, float, float, float]]
) -> str:
  """Name of the nearest motion, or "none" if standing still is nearer.

  Distances are Euclidean in units of 0.20 shorter sides, a growth by 1.7 and
  a quarter turn. The result is "none" as well if the object is visible in less
  than half of the frames, or if its outline does not stay the same.

  Args:
    motion: the measured motion.
    motions: (x, y, scale, turn) of each motion by name, as in `Motion`.
  """
  if motion.visible < 0.5 or motion.fit < _SAME:
    return NONE
  names = [*motions, NONE]
  points = _units(np.array([*motions.values(), (0, 0, 1, 0)]))
  here = _units(np.array([motion.x, motion.y, motion.scale, motion.turn]))
  return names[int(np.argmin(np.linalg.norm(points - here, axis=-1)))]


def _units(change: Float[np.ndarray, "*n 4"]) -> Float[np.ndarray, "*n 4"]:
  x, y, scale, turn = np.moveaxis(change, -1, 0)
  parts = x / 0.20, y / 0.20, np.log(scale) / np.log(1.7), turn / 90
  return np.stack(parts, axis=-1)


def _coverage(
  clip: UInt8[np.ndarray, "f h w 3"], mask: Bool[np.ndarray, "h w"]
) -> Float[np.ndarray, "f h w"]:
  """Fraction of each pixel that the object covers, estimated from its colour.

  Parts of the ground that have the object's colour in the first frame are left
  out, since the ground does not move.
  """
  first = clip[0].astype(np.float64)
  # Pixels at the outline are mixtures; they are used only without others.
  near = _box_blur(mask[None].astype(np.float64))[0]
  inside = near > 0.999 if (near > 0.999).any() else mask
  outside = near < 0.001 if (near < 0.001).any() else ~mask
  channels = np.moveaxis(clip.astype(np.float64), -1, 0)
  blurred = np.stack([*map(_box_blur, channels)], axis=-1)
  distance = np.linalg.norm(blurred - np.median(first[inside], 0), axis=-1)
  cover = np.clip(1.5 - distance / _COLOUR, 0, 1)
  return cover * (1 - cover[0] * outside)


def _box_blur(x: Float[np.ndarray, "f h w"]) -> Float[np.ndarray, "f h w"]:
  """Mean of 3x3 pixels; the edge is replicated."""
  h, w = x.shape[1:]
  x = np.pad(x, ((0, 0), (1, 1), (1, 1)), mode="edge")
  return sum(x[:, i : i + h, j : j + w] for i in range(3) for j in range(3)) / 9


def _locate(
  cover: Float[np.ndarray, "h w"], radius: float
) -> tuple[Float[np.ndarray, "2"], float]:
  """Centre of mass (x, y) in pixels, and the area within the radius around it.

  Stray pixels would shift a plain mean, so the search starts at the median
  and uses only pixels within the radius.
  """
  y, x = np.indices(cover.shape)
  centre = np.array([_middle(cover.sum(0)), _middle(cover.sum(1))])
  for _ in range(5):
    near = cover * (np.hypot(x - centre[0], y - centre[1]) < radius)
    area = near.sum()
    if area > 0:
      centre = np.array([(near * x).sum(), (near * y).sum()]) / area
  return centre, float(area)


def _middle(weights: Float[np.ndarray, "n"]) -> float:
  """Index of the median of the weights."""
  total = np.cumsum(weights)
  return float(np.searchsorted(total, total[-1] / 2))


def _turn(cover, centres, radii, time) -> tuple[float, float]:
  """Turn in degrees at which the first outline fits the others, and the fit.

  All frames are fitted together: in the last frame alone, a bar that has
  turned left looks like one that has turned right.
  """
  first, *others = (
    _polar(*frame) for frame in zip(cover, centres, radii, strict=True)
  )

  def fit(turn):
    turned = [np.roll(first, round(turn * t), axis=0) for t in time[1:]]
    both = np.minimum(turned, others).sum()
    return float(both / np.maximum(turned, others).sum())

  still = fit(0)
  best, turn = max((fit(turn), float(turn)) for turn in _TURNS)
  return (turn, best) if best > still + _GAIN else (0.0, still)


def _polar(
  cover: Float[np.ndarray, "h w"], centre, radius: float
) -> Float[np.ndarray, "360 n"]:
  """Coverage at each degree clockwise and 24 radii, weighted by its area."""
  angle = np.deg2rad(np.arange(360))[:, None]
  steps = (np.arange(24) + 0.5) / 24
  x = np.rint(centre[0] + radius * steps * np.cos(angle)).astype(int)
  y = np.rint(centre[1] + radius * steps * np.sin(angle)).astype(int)
  h, w = cover.shape
  inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
  return cover[y.clip(0, h - 1), x.clip(0, w - 1)] * inside * steps
