"""The camera world: a camera moves over a still photograph.

The first frame shows the view at the start, and the caption names the move,
whose path depends on its name alone. Together they determine the clip, apart
from the borders that come into view.

Lengths are in units of the frame's shorter side; x points right, y points
down, and angles grow clockwise on the screen.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

# Change of the view over the whole clip: travel (x, y), zoom (above 1 the
# picture grows), and roll in degrees; a camera that rolls clockwise turns the
# picture counterclockwise.
MOVES = {
  "pans left slowly": (-0.08, 0.0, 1.0, 0.0),
  "pans left quickly": (-0.18, 0.0, 1.0, 0.0),
  "pans right slowly": (0.08, 0.0, 1.0, 0.0),
  "pans right quickly": (0.18, 0.0, 1.0, 0.0),
  "tilts up slowly": (0.0, -0.08, 1.0, 0.0),
  "tilts up quickly": (0.0, -0.18, 1.0, 0.0),
  "tilts down slowly": (0.0, 0.08, 1.0, 0.0),
  "tilts down quickly": (0.0, 0.18, 1.0, 0.0),
  "zooms in slowly": (0.0, 0.0, 1.1, 0.0),
  "zooms in quickly": (0.0, 0.0, 1.24, 0.0),
  "zooms out slowly": (0.0, 0.0, 1 / 1.1, 0.0),
  "zooms out quickly": (0.0, 0.0, 1 / 1.24, 0.0),
  "rolls clockwise": (0.0, 0.0, 1.0, 8.0),
  "rolls counterclockwise": (0.0, 0.0, 1.0, -8.0),
  "stays still": (0.0, 0.0, 1.0, 0.0),
}
# Gerund and noun of each verb, and adjective of each pace.
_VERBS = {
  "pans": ("panning", "pan"),
  "tilts": ("tilting", "tilt"),
  "zooms": ("zooming", "zoom"),
  "rolls": ("rolling", "roll"),
}
_PACES = {"slowly": "slow", "quickly": "quick", "": ""}
_STILL = (
  "the camera stays still",
  "the camera does not move",
  "a still camera",
  "static camera",
)
# Subjects of a caption. They are drawn regardless of the photograph: nothing
# says what it shows, and the denoiser has to read the move beside any subject.
_SUBJECTS = (
  "beach", "bird", "boat", "bridge", "building", "camp", "car", "castle",
  "cat", "church", "city", "cloud", "coast", "dog", "field", "fish", "flower",
  "forest", "garden", "girl", "hill", "horse", "house", "lake", "leaf", "man",
  "market", "monkey", "mountain", "ocean", "park", "person", "photo",
  "picture", "plane", "plant", "portrait", "river", "road", "room", "sea",
  "ship", "sky", "square", "street", "sunset", "table", "tower", "town",
  "train", "tree", "valley", "village", "wall", "water", "waterfall", "woman",
)  # fmt: skip
# One subject in five is a word that the vocabulary lacks.
_UNKNOWN = 0.2
# Samples per pixel along each axis, averaged after the affine transform.
_SUPERSAMPLING = 2


@dataclasses.dataclass(frozen=True)
class Shot:
  """Parameters of a clip.

  Attributes:
    move: one of MOVES.
    side: shorter side of the first view, as a fraction of the largest view
      that keeps the whole move inside the photograph.
    place: position of the first view on each axis, as a fraction of the
      positions from which the move stays inside the photograph.
  """

  move: str
  side: float
  place: tuple[float, float]


def sample_shot(rng: np.random.Generator) -> Shot:
  """Draws a move uniformly, and the view that it starts from."""
  move = str(rng.choice(list(MOVES)))
  # Most photographs are seen whole; closer views give more pictures.
  side = float(1 - 0.6 * rng.uniform() ** 2)
  return Shot(move, side, tuple(rng.uniform(size=2).tolist()))


def phrases(move: str) -> tuple[str, ...]:
  """Sentences that say a move."""
  verb, way, pace = (*move.split(), "")[:3]
  if verb not in _VERBS:
    return _STILL
  gerund, noun = _VERBS[verb]
  ways = (
    f"the camera {verb} {way} {pace}",
    f"the camera {pace} {verb} {way}",
    f"camera {verb} {way} {pace}",
    f"{gerund} {way} {pace}",
    f"{_PACES[pace]} camera {noun} {way}",
  )
  return tuple(" ".join(text.split()) for text in ways)


# Every word of every caption, apart from unknown subjects.
WORDS = frozenset(
  word
  for text in (
    *(phrase for move in MOVES for phrase in phrases(move)),
    *_SUBJECTS,
    "and a in the near on with of photograph",
  )
  for word in text.split()
)


def _subject(rng: np.random.Generator) -> str:
  if rng.uniform() < _UNKNOWN:
    letters = rng.integers(ord("a"), ord("z") + 1, rng.integers(3, 10))
    return "".join(map(chr, letters))
  return str(rng.choice(_SUBJECTS))


def caption(shot: Shot, rng: np.random.Generator) -> str:
  """One of the ways to say the move, half of the time after a subject."""
  phrase = str(rng.choice(phrases(shot.move)))
  if rng.uniform() < 0.5:
    return phrase
  first, second = _subject(rng), _subject(rng)
  place = str(rng.choice(["and a", "in the", "near the", "on a", "with a"]))
  subject = first if rng.uniform() < 0.5 else f"{first} {place} {second}"
  article = str(rng.choice(["a", "the", "a photo of a"]))
  return f"{article} {subject}, {phrase}"


def course(
  shot: Shot, num_frames: int
) -> tuple[
  Float[np.ndarray, "f 2"], Float[np.ndarray, "f"], Float[np.ndarray, "f"]
]:
  """Centre, shorter side and angle of the view, relative to the first view.

  Returns:
    Centres and sides in shorter sides of the first view, and angles in radians.
  """
  time = np.arange(num_frames) / max(num_frames - 1, 1)
  *travel, zoom, roll = MOVES[shot.move]
  # A constant rate of zoom is a constant ratio between frames.
  return time[:, None] * np.array(travel), zoom**-time, np.deg2rad(roll) * time


def render(
  shot: Shot,
  photograph: UInt8[np.ndarray, "H W 3"],
  size: tuple[int, int],
  num_frames: int = 8,
) -> UInt8[np.ndarray, "f h w 3"]:
  """Renders a clip.

  Args:
    shot: parameters of the clip.
    photograph: the still picture, of any size.
    size: (width, height) of the frames in pixels.
    num_frames: number of frames, evenly spaced over the clip.
  """
  frame = np.array(size) / min(size)
  centres, sides, angles = course(shot, num_frames)
  # Half extent of the upright box around each rotated view.
  cos, sin = np.abs(np.cos(angles)), np.abs(np.sin(angles))
  turned = np.stack([[cos, sin], [sin, cos]]).transpose(2, 0, 1)
  half = sides[:, None] * (turned @ (frame / 2))
  low, high = (centres - half).min(0), (centres + half).max(0)
  room = np.array([photograph.shape[1], photograph.shape[0]])
  unit = shot.side * (room / (high - low)).min()  # pixels per shorter side
  origin = -low * unit + np.array(shot.place) * (room - (high - low) * unit)

  # First the photograph is reduced to about the density of the samples, so
  # that the bicubic transform does not skip pixels.
  samples = np.array(size) * _SUPERSAMPLING
  picture = Image.fromarray(photograph)
  shrink = max(math.floor(unit * sides.min() / samples.min()), 1)
  picture = picture.reduce(shrink)
  frames = []
  for centre, side, angle in zip(centres, sides, angles, strict=True):
    step = unit * side / samples.min() / shrink  # photograph pixels per sample
    cos, sin = step * np.cos(angle), step * np.sin(angle)
    x, y = (origin + centre * unit) / shrink
    w, h = samples / 2
    matrix = (cos, -sin, x - cos * w + sin * h)
    matrix += (sin, cos, y - sin * w - cos * h)
    view = picture.transform(
      tuple(samples.tolist()),
      Image.Transform.AFFINE,
      matrix,
      Image.Resampling.BICUBIC,
    )
    frames.append(np.asarray(view.reduce(_SUPERSAMPLING)))
  return np.stack(frames)
