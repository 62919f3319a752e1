"""Properties of the procedural world, measured on rendered frames."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation
from skimage.color import rgb2hsv
from skimage.transform import rotate

from data_pipelines.procedural import world

SIZES = [(64, 64), (112, 64), (48, 80)]
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def scenes(number, split="train", **fixed):
  found, candidate = [], 0
  while len(found) < number:
    scene = world.numbered_scene(1, candidate, split)
    candidate += 1
    if all(getattr(scene, key) in value for key, value in fixed.items()):
      found.append(scene)
  return found


def centroid(mask):
  rows, columns = np.nonzero(mask)
  return np.array([columns.mean(), rows.mean()])


def overlap(a, b):
  return (a & b).sum() / (a | b).sum()


def test_there_are_twelve_motions():
  assert len(set(world.MOTIONS)) == 12


def test_splits_are_disjoint_and_cover_all_words():
  sides = {split: scenes(400, split) for split in ("train", "test")}
  triples = {
    split: {(s.shape, s.ground, s.motion) for s in drawn}
    for split, drawn in sides.items()
  }
  assert not triples["train"] & triples["test"]
  for drawn in sides.values():
    assert {s.motion for s in drawn} == set(world.MOTIONS)
    assert {s.shape for s in drawn} == set(world.SHAPES)
    assert {s.ground for s in drawn} == set(world.GROUNDS)
    assert {s.colour for s in drawn} == set(world.COLOURS)


def test_a_numbered_scene_is_always_the_same():
  first, again = (world.numbered_scene(5, 7, "test") for _ in range(2))
  assert first == again
  assert first != world.numbered_scene(6, 7, "test")
  assert first != world.numbered_scene(5, 8, "test")
  np.testing.assert_array_equal(
    world.render(first, (32, 32)), world.render(again, (32, 32))
  )


def test_captions_name_object_motion_and_ground():
  for scene in scenes(20):
    words = world.caption(scene)
    for name in (scene.shape, scene.colour, scene.motion, scene.ground):
      assert name in words
    assert scene.motion not in world.still_caption(scene)
  assert world.caption(scenes(1, colour=["orange"])[0]).startswith("an ")
  assert world.caption(scenes(1, colour=["red"])[0]).startswith("a red")


@pytest.mark.parametrize("size", SIZES)
def test_the_object_stays_in_the_frame(size):
  for scene in scenes(120):
    masks = world.object_mask(scene, size)
    edges = [masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]]
    assert not any(edge.any() for edge in edges)
    assert masks.sum((1, 2)).min() > 0.008 * min(size) ** 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("heading", DIRECTIONS)
def test_objects_move_by_the_distance_in_their_caption(heading, size):
  size = (2 * size[0], 2 * size[1])  # masks are whole pixels
  for pace, share in (("slowly", 0.16), ("quickly", 0.32)):
    for scene in scenes(6, motion=[f"moves {heading} {pace}"]):
      masks = world.object_mask(scene, size, 8)
      path = np.stack([centroid(mask) for mask in masks])
      expected = np.array(DIRECTIONS[heading]) * share * min(size)
      np.testing.assert_allclose(path[-1] - path[0], expected, atol=1)
      steps = np.diff(path, axis=0)
      np.testing.assert_allclose(steps, expected / 7 + 0 * steps, atol=1.2)


@pytest.mark.parametrize(
  ("motion", "ratio"), [("grows", 1.7), ("shrinks", 1 / 1.7)]
)
def test_objects_change_size_in_place(motion, ratio):
  for scene in scenes(10, motion=[motion]):
    masks = world.object_mask(scene, (256, 256), 8)  # whole pixels
    lengths = np.sqrt(masks.sum((1, 2)))
    np.testing.assert_allclose(lengths[-1] / lengths[0], ratio, rtol=0.05)
    drift = centroid(masks[-1]) - centroid(masks[0])
    np.testing.assert_allclose(drift, 0, atol=1.5)


@pytest.mark.parametrize(
  ("motion", "clockwise"),
  [("turns clockwise", True), ("turns counterclockwise", False)],
)
def test_objects_rotate_by_60_degrees_in_the_named_direction(motion, clockwise):
  for scene in scenes(12, motion=[motion]):
    assert scene.shape not in ("disc", "ring")
    first, second, _, last = world.object_mask(scene, (256, 256), 4)

    def turned(degrees, mask=first):
      centre = centroid(mask)
      # skimage turns counterclockwise.
      return rotate(mask.astype(float), degrees, center=centre) > 0.5

    sign = -1 if clockwise else 1
    right, wrong = (overlap(turned(s * sign * 20), second) for s in (1, -1))
    assert right > 0.9 and right > wrong + 0.05
    assert overlap(turned(sign * 60), last) > 0.9


def test_the_ground_does_not_move():
  for scene in scenes(10):
    frames = world.render(scene, (64, 64)).astype(int)
    masks = world.object_mask(scene, (64, 64))
    near = binary_dilation(masks[0] | masks[-1], np.ones((7, 7)))
    assert near.mean() < 0.7
    np.testing.assert_array_equal(frames[0][~near], frames[-1][~near])


def test_objects_are_vivid_and_grounds_muted():
  for scene in scenes(60):
    frame = world.render(scene, (96, 96), 1)[0]
    inside = world.object_mask(scene, (96, 96), 1)[0]
    assert np.median(rgb2hsv(frame)[inside][:, 1]) > 0.5
    ground = frame[~inside]
    assert np.median(rgb2hsv(ground)[:, 1]) < 0.3


def test_renderings_of_two_sizes_match():
  for scene in scenes(30):
    large = world.render(scene, (128, 128), 2).astype(float)
    small = world.render(scene, (64, 64), 2).astype(float)
    averaged = large.reshape(2, 64, 2, 64, 2, 3).mean((2, 4))
    assert np.abs(averaged - small).mean() < 1.5


def test_one_frame_is_the_first_of_many():
  for scene in scenes(5):
    many = world.render(scene, (64, 48), 8)
    one = world.render(scene, (64, 48), 1)
    np.testing.assert_array_equal(one[0], many[0])


def test_only_training_draws_rotations_more_often():
  def share(split):
    drawn = scenes(600, split)
    return sum(s.motion.startswith("turns") for s in drawn) / len(drawn)

  # 2 of 12 motions, of weight 4 in training; a sixth is held out by a hash.
  assert share("train") == pytest.approx(8 / 18, abs=0.08)
  assert share("test") == pytest.approx(2 / 12, abs=0.12)
