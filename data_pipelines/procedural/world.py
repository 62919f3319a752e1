"""The object world: an object moves over a textured ground or a photograph.

The camera does not move. The first frame shows the shape, colour, position,
size and orientation of the object and the whole ground; the caption names the
motion, whose trajectory depends on its name alone. The first frame and the
caption therefore determine the clip, and a generated video can be compared
with the true one.

Lengths are in units of the frame's shorter side; x points right, y points
down, and angles grow clockwise on the screen. Frames are computed from signed
distances, so that a scene can be rendered at any size and aspect ratio.
"""

import dataclasses
import zlib
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8

from data_pipelines.procedural import drawing

Split = Literal["train", "test"]

MARGIN = 0.02

# Change over the whole clip, for any number of frames: travel (x, y),
# size ratio, and turn in degrees clockwise.
MOTIONS = {
  "moves left slowly": (-0.16, 0.0, 1.0, 0.0),
  "moves left quickly": (-0.32, 0.0, 1.0, 0.0),
  "moves right slowly": (0.16, 0.0, 1.0, 0.0),
  "moves right quickly": (0.32, 0.0, 1.0, 0.0),
  "moves up slowly": (0.0, -0.16, 1.0, 0.0),
  "moves up quickly": (0.0, -0.32, 1.0, 0.0),
  "moves down slowly": (0.0, 0.16, 1.0, 0.0),
  "moves down quickly": (0.0, 0.32, 1.0, 0.0),
  "grows": (0.0, 0.0, 1.7, 0.0),
  "shrinks": (0.0, 0.0, 1 / 1.7, 0.0),
  "turns clockwise": (0.0, 0.0, 1.0, 60.0),
  "turns counterclockwise": (0.0, 0.0, 1.0, -60.0),
}
_TURNS = [name for name, (*_, turn) in MOTIONS.items() if turn]

# Diameters in the first frame: large enough when it is smallest, and small
# enough when it is largest.
_DIAMETERS = {"grows": (0.24, 0.28), "shrinks": (0.40, 0.47)}

# Weight of rotations in the training split, relative to any other motion: a
# denoiser needs more examples to rotate each outline than to translate it.
_TURN_WEIGHT = 4

COLOURS = {
  "red": (224, 40, 44),
  "green": (36, 168, 60),
  "blue": (44, 84, 228),
  "yellow": (246, 218, 40),
  "orange": (246, 134, 24),
  "purple": (134, 48, 190),
  "cyan": (36, 204, 222),
  "pink": (248, 108, 182),
}
TINTS = {
  "gray": (128, 128, 128),
  "sand": (192, 180, 152),
  "slate": (104, 116, 130),
  "olive": (124, 128, 98),
  "mauve": (158, 136, 152),
  "sage": (140, 164, 148),
}
SHAPES = tuple(drawing.SHAPES)
_ROUND = ("disc", "ring")  # a rotation would not be visible
GROUNDS = tuple(drawing.GROUNDS)
# The ground that is a photograph, and has no tint.
PHOTOGRAPH = "photograph"
# Every word of every caption.
_TEXTS = (*MOTIONS, *COLOURS, *TINTS, *SHAPES, *GROUNDS, PHOTOGRAPH)
WORDS = frozenset(" ".join((*_TEXTS, "a an over")).split())


@dataclasses.dataclass(frozen=True)
class Scene:
  """Parameters of a clip.

  Attributes:
    shape: one of SHAPES; round ones never rotate.
    colour: one of COLOURS.
    motion: one of MOTIONS.
    ground: one of GROUNDS, or PHOTOGRAPH.
    tint: one of TINTS; not used by a photograph, nor are the four fields
      after `place`.
    diameter: diameter of the object's circumcircle in the first frame.
    angle: orientation in the first frame, in radians clockwise.
    place: start position on each axis, as a fraction of the positions from
      which the object stays in the frame.
    wavelength: wavelength of the ground's pattern.
    ground_angle: angle of the pattern, in radians.
    ground_shift: origin of the pattern, (x, y).
    contrast: luma difference of the ground's two tones, out of 255.
  """

  shape: str
  colour: str
  motion: str
  ground: str
  tint: str
  diameter: float
  angle: float
  place: tuple[float, float]
  wavelength: float
  ground_angle: float
  ground_shift: tuple[float, float]
  contrast: float


def sample_scene(
  rng: np.random.Generator, split: Split, *, photograph: bool = False
) -> Scene:
  """Draws a scene whose combination belongs to the split.

  All choices are uniform, except for rotations in the training split.

  Args:
    rng: source of all choices.
    split: side of the held-out combinations.
    photograph: whether the ground is a photograph.
  """
  heavy = _TURN_WEIGHT if split == "train" else 1
  weights = np.array([heavy if m in _TURNS else 1 for m in MOTIONS])

  def pick(names, p=None):
    return str(rng.choice(list(names), p=p))

  while True:
    motion = pick(MOTIONS, weights / weights.sum())
    ground = PHOTOGRAPH if photograph else pick(GROUNDS)
    turning = motion in _TURNS
    shape = pick(s for s in SHAPES if not (turning and s in _ROUND))
    # About one combination in six is held out for testing.
    key = f"{shape}/{ground}/{motion}".encode()
    if (zlib.crc32(key) % 6 == 0) == (split == "test"):
      break
  return Scene(
    shape=shape,
    colour=pick(COLOURS),
    motion=motion,
    ground=ground,
    tint=pick(TINTS),
    diameter=rng.uniform(*_DIAMETERS.get(motion, (0.28, 0.40))),
    angle=float(rng.integers(8) * np.pi / 4),
    place=tuple(rng.uniform(size=2).tolist()),
    wavelength=rng.uniform(0.28, 0.48),
    ground_angle=rng.uniform(0, 2 * np.pi),
    ground_shift=tuple(rng.uniform(size=2).tolist()),
    contrast=rng.uniform(24, 44),
  )


def rng_of(seed: int, number: int, split: Split) -> np.random.Generator:
  """The source of all choices of a clip."""
  side = ("train", "test").index(split)
  return np.random.default_rng((seed, number, side))


def numbered_scene(seed: int, number: int, split: Split) -> Scene:
  """Scene `number` of the endless sequence of a seed and split."""
  return sample_scene(rng_of(seed, number, split), split)


def caption(scene: Scene) -> str:
  """A sentence that names the object, its motion and the ground."""
  article = "an" if scene.colour[0] in "aeiou" else "a"
  subject = f"{article} {scene.colour} {scene.shape}"
  kind = "a" if scene.ground == PHOTOGRAPH else scene.tint
  return f"{subject} {scene.motion} over {kind} {scene.ground}"


def still_caption(scene: Scene) -> str:
  """The caption of a single frame, without the motion."""
  return caption(scene).replace(f" {scene.motion}", "")


def course(
  scene: Scene, size: tuple[int, int], num_frames: int = 8
) -> tuple[drawing.Field, drawing.Field, drawing.Field]:
  """Centre (x, y), diameter and angle of the object in every frame.

  Args:
    scene: parameters of the clip.
    size: (width, height) in pixels; only their ratio matters.
    num_frames: number of frames, evenly spaced over the clip.

  Returns:
    Centres [f 2] and diameters [f] in shorter sides, and angles [f] in radians
    clockwise.
  """
  time = np.arange(num_frames) / max(num_frames - 1, 1)
  *travel, scale, turn = MOTIONS[scene.motion]
  room = np.array(size) / min(size)
  border = scene.diameter * max(scale, 1) / 2 + MARGIN
  low = border - np.minimum(travel, 0)
  high = room - border - np.maximum(travel, 0)
  start = low + np.array(scene.place) * (high - low)
  centres = start + time[:, None] * np.array(travel)
  diameters = scene.diameter * (1 + (scale - 1) * time)
  angles = scene.angle + np.deg2rad(turn) * time
  return centres, diameters, angles


def _axes(
  size: tuple[int, int], origin: Float[np.ndarray, "2"], angle: float
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
  """Coordinates of all pixels along and across a direction."""
  width, height = size
  pixel = 1 / min(size)
  x = (np.arange(width) + 0.5) * pixel - origin[0]
  y = (np.arange(height)[:, None] + 0.5) * pixel - origin[1]
  cos, sin = np.cos(angle), np.sin(angle)
  return cos * x + sin * y, cos * y - sin * x


def _ground(scene: Scene, size: tuple[int, int]) -> Float[np.ndarray, "h w 3"]:
  axes = _axes(size, np.array(scene.ground_shift), scene.ground_angle)
  pattern = drawing.GROUNDS[scene.ground]
  tone = pattern(*axes, scene.wavelength, 1 / min(size))
  luma = (tone[..., None] - 0.5) * scene.contrast
  return np.array(TINTS[scene.tint]) + luma


def _coverage(
  scene: Scene, size: tuple[int, int], num_frames: int
) -> Float[np.ndarray, "f h w"]:
  """Share of each pixel that the object covers."""
  outline, covered = drawing.SHAPES[scene.shape], []
  path = course(scene, size, num_frames)
  for centre, diameter, angle in zip(*path, strict=True):
    along, across = _axes(size, centre, angle)
    radius = diameter / 2
    distance = outline(along / radius, across / radius) * radius
    covered.append(drawing.edge(distance, 1 / min(size)))
  return np.stack(covered).astype(np.float32)


def object_mask(
  scene: Scene, size: tuple[int, int], num_frames: int = 8
) -> Bool[np.ndarray, "f h w"]:
  """Pixels that the object covers by more than half."""
  return _coverage(scene, size, num_frames) > 0.5


def render(
  scene: Scene,
  size: tuple[int, int],
  num_frames: int = 8,
  photograph: UInt8[np.ndarray, "h w 3"] | None = None,
) -> UInt8[np.ndarray, "f h w 3"]:
  """Renders a clip.

  Args:
    scene: parameters of the clip.
    size: (width, height) in pixels, with any aspect ratio.
    num_frames: number of frames, evenly spaced over the clip.
    photograph: the ground of a scene over a photograph, of this size.
  """
  alpha = _coverage(scene, size, num_frames)[..., None]
  ground = _ground(scene, size) if photograph is None else photograph
  ground = ground.astype(np.float32)
  colour = np.array(COLOURS[scene.colour], np.float32)
  return np.rint(ground + alpha * (colour - ground)).astype(np.uint8)
