"""The tracker, on squares pushed by hand and on the procedural world."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from data_pipelines.procedural import world
from i2vgen_jax.errors import InputError
from i2vgen_jax.evaluation import motion

GREEN = (40, 170, 60)


def ground(size=80, frames=5):
  """Stripes of two grays."""
  stripes = np.where(np.arange(size) // 8 % 2, 110, 150).astype(np.uint8)
  return np.tile(stripes[None, None, :, None], (frames, size, 1, 3))


def paint(clip, frame, left, top, patch):
  """Colours the pixels that a boolean patch selects; returns the mask."""
  mask = np.zeros(clip.shape[1:3], bool)
  h, w = patch.shape
  mask[top : top + h, left : left + w] = patch
  clip[frame][mask] = GREEN
  return mask


def travelling(x_per_frame, y_per_frame):
  clip = ground()
  square = np.ones((16, 16), bool)
  masks = [
    paint(clip, k, 30 + k * x_per_frame, 30 + k * y_per_frame, square)
    for k in range(5)
  ]
  return clip, masks[0]


@pytest.mark.parametrize(
  ("x", "y", "name"),
  [
    (4, 0, "moves right slowly"),
    (-4, 0, "moves left slowly"),
    (0, 4, "moves down slowly"),
    (0, -4, "moves up slowly"),
    (8, 0, "moves right quickly"),
    (-7, 0, "moves left quickly"),
    (0, 8, "moves down quickly"),
    (0, -7, "moves up quickly"),
    (1, 0, "none"),
    (0, 0, "none"),
  ],
)
def test_moving_square(x, y, name):
  """Four steps of x pixels in a frame of 80."""
  measured = motion.measure(*travelling(x, y))
  assert measured.x == pytest.approx(4 * x / 80, abs=0.004)
  assert measured.y == pytest.approx(4 * y / 80, abs=0.004)
  # Pixels at the outline count more over one gray than over the other.
  assert measured.scale == pytest.approx(1, abs=0.03)
  assert measured.turn == 0 and measured.visible == 1
  assert measured.fit > 0.9
  assert motion.classify(measured, world.MOTIONS) == name


@pytest.mark.parametrize(
  ("sides", "name"),
  [
    ((20, 24, 27, 31, 34), "grows"),
    ((34, 30, 27, 23, 20), "shrinks"),
    ((20, 20, 21, 21, 22), "none"),
  ],
)
def test_growing_square(sides, name):
  clip = ground()
  masks = [
    paint(clip, k, 40 - side // 2, 40 - side // 2, np.ones((side, side), bool))
    for k, side in enumerate(sides)
  ]
  measured = motion.measure(clip, masks[0])
  assert measured.scale == pytest.approx(sides[-1] / sides[0], rel=0.05)
  assert abs(measured.x) < 0.02 and abs(measured.y) < 0.02
  assert motion.classify(measured, world.MOTIONS) == name


@pytest.mark.parametrize(
  ("quarters", "turn", "name"),
  [(-1, 90, "turns clockwise"), (1, -90, "turns counterclockwise")],
)
def test_turned_corner(quarters, turn, name):
  """numpy's rot90 turns counterclockwise as printed, first row on top."""
  corner = np.zeros((25, 25), bool)
  corner[2:22, 5:11] = True
  corner[16:22, 5:20] = True
  clip = ground(frames=2)
  mask = paint(clip, 0, 25, 25, corner)
  paint(clip, 1, 25, 25, np.rot90(corner, quarters))
  measured = motion.measure(clip, mask)
  assert measured.turn == pytest.approx(turn, abs=5)
  assert measured.scale == pytest.approx(1, abs=0.02)
  assert motion.classify(measured, world.MOTIONS) == name


def test_single_bad_frame_is_ignored():
  clip, mask = travelling(4, 0)
  clip[3] = np.random.default_rng(0).integers(0, 256, clip[3].shape)
  measured = motion.measure(clip, mask)
  assert measured.x == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("share", [0, 0.3, 0.5])
def test_an_object_that_dissolves_has_no_motion(share):
  """Its colour is there, on random pixels of every later frame."""
  clip, mask = travelling(4, 0)
  clip[1:] = ground(frames=4)
  scattered = np.random.default_rng(0).random((4, 80, 80)) < share
  clip[1:][scattered] = GREEN
  assert motion.classify(motion.measure(clip, mask), world.MOTIONS) == "none"


def test_noise_alone_and_a_single_frame_have_no_motion():
  clip, mask = travelling(4, 0)
  noise = np.random.default_rng(0).integers(0, 256, clip.shape, np.uint8)
  assert motion.classify(motion.measure(noise, mask), world.MOTIONS) == "none"
  assert (
    motion.classify(motion.measure(clip[:1], mask), world.MOTIONS) == "none"
  )


@pytest.mark.parametrize("value", [True, False])
def test_a_mask_without_object_or_ground_is_refused(value):
  clip, mask = travelling(0, 0)
  with pytest.raises(InputError, match="the mask selects"):
    motion.measure(clip, np.full_like(mask, value))


def scenes(count, seed):
  rng = np.random.default_rng(seed)
  sides = ("train", "test")
  return [world.sample_scene(rng, sides[k % 2]) for k in range(count)]


def test_scenes_change_as_their_motion_says():
  for scene in scenes(100, seed=1):
    centres, diameters, angles = world.course(scene, (96, 64), 8)
    change = (
      *(centres[-1] - centres[0]),
      diameters[-1] / diameters[0],
      np.rad2deg(angles[-1] - angles[0]),
    )
    assert world.MOTIONS[scene.motion] == pytest.approx(change, abs=1e-6)


def degrade(clip, seed):
  """To 64 pixels, blurred by 1 pixel, with 8 levels of noise."""
  small = [
    Image.fromarray(frame)
    .resize((64, 64), Image.Resampling.BOX)
    .filter(ImageFilter.GaussianBlur(1))
    for frame in clip
  ]
  noise = np.random.default_rng(seed).normal(0, 8, (len(clip), 64, 64, 3))
  return np.clip(np.rint(np.stack(small) + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("degraded", [False, True])
def test_true_clips_are_classified(degraded):
  wrong = []
  drawn = scenes(100, seed=2)
  assert {scene.motion for scene in drawn} == set(world.MOTIONS)
  for k, scene in enumerate(drawn):
    mask = world.object_mask(scene, (64, 64))[0]
    if degraded:
      clip = degrade(world.render(scene, (128, 128)), seed=k)
    else:
      clip = world.render(scene, (64, 64))
    measured = motion.measure(clip, mask)
    if motion.classify(measured, world.MOTIONS) != scene.motion:
      wrong.append((scene, measured))
  assert len(wrong) <= 1, wrong


def test_still_true_clips_have_no_motion():
  for scene in scenes(30, seed=3):
    clip = world.render(scene, (64, 64))[:1].repeat(8, axis=0)
    mask = world.object_mask(scene, (64, 64))[0]
    measured = motion.measure(degrade(clip, seed=4), mask)
    assert motion.classify(measured, world.MOTIONS) == "none"
