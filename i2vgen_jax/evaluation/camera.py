"""The motion of the camera in a clip, measured from its pixels.

Each frame is aligned to the first one by the similarity transform that leaves
the least difference of brightness (Lucas & Kanade 1981, coarse to fine).
Lengths are in units of the frame's shorter side, x points right, y points down,
and angles are in degrees clockwise.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

NONE = "none"

# Standard deviations of the blur at each scale, as fractions of a shorter side.
_SCALES = (0.06, 0.03, 0.015)
_STEPS = 8
# Correlation of the aligned frames below which they do not show the same scene.
_SAME = 0.6
# Distance, in units of `_UNITS`, at which a clip has none of the moves.
_FAR = 0.75
# Bound of log(zoom): frames of nothing in common may be aligned at any scale.
_MOST = 5.0
# Differences of x, y, log(zoom) and roll that count as much as each other:
# those of a slow move.
_UNITS = np.array([0.08, 0.08, np.log(1.1), 8.0])


@dataclasses.dataclass(frozen=True)
class CameraMotion:
  """Change of the view from the first to the last frame.

  Attributes:
    x: travel of the view's centre to the right, in shorter sides.
    y: travel of the view's centre down, in shorter sides.
    zoom: ratio of the magnifications, above 1 if the picture grows, and from
      1/148 to 148.
    roll: rotation of the camera in degrees clockwise; the picture turns the
      other way.
    fit: mean correlation of the later frames with the aligned first one.
  """

  x: float
  y: float
  zoom: float
  roll: float
  fit: float


def measure(clip: UInt8[np.ndarray, "f h w 3"]) -> CameraMotion:
  """Aligns every frame to the first one.

  Change is assumed to be uniform over time. Every frame of the later half
  gives an estimate of the whole change; their median is robust against single
  bad frames.

  Args:
    clip: at least two frames.
  """
  gray = clip.astype(np.float64).mean(-1)
  side = min(gray.shape[1:])
  levels = [
    ndimage.gaussian_filter(gray, (0, scale * side, scale * side))
    for scale in _SCALES
  ]
  time = np.linspace(0, 1, len(clip))
  rates, fits = [], []
  pose = np.zeros(4)
  for k in range(1, len(clip)):
    # A uniform change goes on as it did so far.
    pose = pose * (time[k] / time[k - 1] if k > 1 else 1.0)
    for level in levels:
      pose = _align(level[0], level[k], pose)
    if time[k] >= 0.5:
      rates.append(pose / time[k])
      fits.append(_correlation(levels[-1][0], levels[-1][k], pose))
  x, y, log_side, roll = np.median(rates, axis=0)
  return CameraMotion(
    x=float(x),
    y=float(y),
    zoom=float(np.exp(np.clip(-log_side, -_MOST, _MOST))),
    roll=float(np.rad2deg(roll)),
    fit=float(np.mean(fits)),
  )


def classify(
  motion: CameraMotion,
  moves: Mapping[str, tuple[float, float, float, float]],
) -> str:
  """Name of the nearest move, or "none" if all are far.

  Distances are Euclidean in units of the change of a slow move: 0.08 shorter
  sides, a zoom by 1.1, a roll by 8 degrees. The result is "none" as well if
  the later frames do not show the scene of the first one.

  Args:
    motion: the measured motion.
    moves: (x, y, zoom, roll) of each move by name, as in `CameraMotion`.
  """
  if motion.fit < _SAME:
    return NONE
  names = list(moves)
  x, y, zoom, roll = np.array([moves[name] for name in names]).T
  points = np.stack([x, y, np.log(zoom), roll], axis=-1)
  here = np.array([motion.x, motion.y, np.log(motion.zoom), motion.roll])
  distances = np.linalg.norm((points - here) / _UNITS, axis=-1)
  nearest = int(np.argmin(distances))
  return names[nearest] if distances[nearest] < _FAR else NONE


def _positions(
  shape: tuple[int, ...], pose: Float[np.ndarray, "4"]
) -> tuple[Float[np.ndarray, "2 h w"], Float[np.ndarray, "2 h w"]]:
  """Where a view's pixels lie in the first frame, in pixels (x, y).

  Returns:
    The positions, and the view's pixels relative to its centre after zoom and
    roll, from which the derivatives are formed.
  """
  side = min(shape)
  middle = (np.array(shape[::-1]) - 1) / 2
  y, x = np.indices(shape)
  centred = np.stack([x - middle[0], y - middle[1]])
  cos, sin = np.exp(pose[2]) * np.array([np.cos(pose[3]), np.sin(pose[3])])
  turned = np.einsum("ij,jhw->ihw", [[cos, -sin], [sin, cos]], centred)
  return turned + (middle + pose[:2] * side)[:, None, None], turned


def _sample(image: Float[np.ndarray, "h w"], at: Float[np.ndarray, "2 h w"]):
  """Bilinear values at (x, y), and which positions lie inside."""
  h, w = image.shape
  inside = (at[0] >= 0) & (at[0] <= w - 1) & (at[1] >= 0) & (at[1] <= h - 1)
  return ndimage.map_coordinates(
    image, at[::-1], order=1, mode="nearest"
  ), inside


def _align(
  first: Float[np.ndarray, "h w"],
  frame: Float[np.ndarray, "h w"],
  pose: Float[np.ndarray, "4"],
) -> Float[np.ndarray, "4"]:
  """Gauss-Newton steps from a pose towards the least squared difference.

  A pose is (x, y, log of the view's side, roll in radians). A step that does
  not help ends the search.
  """
  slope_y, slope_x = np.gradient(first)
  side = min(first.shape)
  best, kept = np.inf, pose
  for _ in range(_STEPS):
    at, turned = _positions(first.shape, pose)
    value, inside = _sample(first, at)
    if inside.mean() < 0.2:
      break
    error = (value - frame) * inside
    # Large differences, as of objects that move by themselves, count less.
    weight = inside / (1 + (error / 20.0) ** 2)
    loss = (weight * error**2).sum() / weight.sum()
    if loss > best:
      break
    best, kept = loss, pose
    gx, gy = _sample(slope_x, at)[0], _sample(slope_y, at)[0]
    columns = np.stack(
      [
        gx * side,
        gy * side,
        gx * turned[0] + gy * turned[1],
        gy * turned[0] - gx * turned[1],
      ]
    ).reshape(4, -1)
    weighted = columns * weight.ravel()
    normal = weighted @ columns.T
    # A little damping: a picture without detail says nothing about a direction.
    normal += 1e-3 * np.diag(np.diag(normal)) + 1e-6 * np.eye(4)
    pose = pose - np.linalg.solve(normal, weighted @ error.ravel())
  return kept


def _correlation(
  first: Float[np.ndarray, "h w"],
  frame: Float[np.ndarray, "h w"],
  pose: Float[np.ndarray, "4"],
) -> float:
  value, inside = _sample(first, _positions(first.shape, pose)[0])
  if inside.mean() < 0.2:
    return 0.0
  a, b = value[inside], frame[inside]
  a, b = a - a.mean(), b - b.mean()
  return float((a * b).sum() / (np.sqrt((a**2).sum() * (b**2).sum()) + 1e-9))
