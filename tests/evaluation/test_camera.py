"""The measurement of camera motion, on true clips and spoiled ones."""

import numpy as np
import pytest
from scipy import ndimage

from data_pipelines.procedural import camera as world
from data_pipelines.procedural.build import numbered_clip
from data_pipelines.procedural.photographs import Photographs
from i2vgen_jax.evaluation import camera


@pytest.fixture(scope="module")
def clips(photographs):
  """One clip of each move."""
  pool = Photographs(photographs, "train")
  found = {}
  for number in range(200):
    rng_only = numbered_clip("camera", pool, 0, number, "train", size=(12, 8))
    if rng_only.motion not in found:
      found[rng_only.motion] = numbered_clip(
        "camera", pool, 0, number, "train", size=(96, 64)
      )
  return found


@pytest.mark.parametrize("move", world.MOVES)
def test_true_clips(clips, move):
  measured = camera.measure(clips[move].frames)
  x, y, zoom, roll = world.MOVES[move]
  assert measured.x == pytest.approx(x, abs=0.01)
  assert measured.y == pytest.approx(y, abs=0.01)
  assert measured.zoom == pytest.approx(zoom, rel=0.02)
  assert measured.roll == pytest.approx(roll, abs=0.6)
  assert measured.fit > 0.97
  assert camera.classify(measured, world.MOVES) == move


def test_noise_and_blur_do_not_change_the_move(clips):
  rng = np.random.default_rng(0)
  for move, clip in clips.items():
    blurred = ndimage.gaussian_filter(
      clip.frames.astype(float), (0, 1.2, 1.2, 0)
    )
    noisy = blurred + rng.normal(0, 12, blurred.shape)
    spoiled = np.clip(noisy, 0, 255).astype(np.uint8)
    measured = camera.measure(spoiled)
    assert camera.classify(measured, world.MOVES) == move


def test_a_reversed_clip_has_the_opposite_move(clips):
  measured = camera.measure(clips["pans left slowly"].frames[::-1])
  assert camera.classify(measured, world.MOVES) == "pans right slowly"
  measured = camera.measure(clips["zooms in slowly"].frames[::-1])
  assert camera.classify(measured, world.MOVES) == "zooms out slowly"


def test_another_scene_is_none(clips):
  first = clips["stays still"].frames
  other = clips["stays still"].frames[:, ::-1, ::-1]
  cut = np.concatenate([first[:1], other[1:]])
  assert camera.classify(camera.measure(cut), world.MOVES) == camera.NONE
  noise = np.random.default_rng(0).integers(0, 256, first.shape, np.uint8)
  assert camera.classify(camera.measure(noise), world.MOVES) == camera.NONE


def test_half_a_move_between_two_names_is_none():
  far = camera.CameraMotion(x=0.6, y=0.4, zoom=1.0, roll=0.0, fit=1.0)
  assert camera.classify(far, world.MOVES) == camera.NONE


def test_a_picture_without_detail_stays_still():
  gray = np.full((4, 32, 48, 3), 128, np.uint8)
  measured = camera.measure(gray)
  assert (measured.x, measured.y, measured.roll) == (0, 0, 0)
  assert measured.zoom == 1


def test_frames_with_nothing_in_common_have_a_finite_zoom():
  zooms = []
  for seed in range(20, 50):
    rng = np.random.default_rng(seed)
    clip = np.full((8, 32, 48, 3), 100, np.uint8)
    clip[0] += rng.integers(0, 3, (32, 48, 1), np.uint8)
    clip[1:] += rng.integers(0, 30, (7, 32, 48, 1), np.uint8)
    zooms.append(camera.measure(clip).zoom)
  assert max(zooms) == pytest.approx(np.exp(5))
  assert min(zooms) > 0
