"""The camera world, on a photograph whose colours are its coordinates."""

import numpy as np
import pytest

from data_pipelines.procedural import camera

SIZE = (96, 64)
# Red is x and green is y, both from 0 to 255; blue marks the inside.
RAMP = np.stack(
  np.broadcast_arrays(
    np.linspace(0, 255, 1024)[None], np.linspace(0, 255, 1024)[:, None], 255
  ),
  axis=-1,
).astype(np.uint8)


def shots(count, **fixed):
  rng = np.random.default_rng(0)
  drawn = [camera.sample_shot(rng) for _ in range(count)]
  return [camera.Shot(**(vars(shot) | fixed)) for shot in drawn]


def views(frames):
  """Centre, unit vector along x, and length of it, in the ramp's units."""
  at = frames[..., :2].astype(float)
  centre = at.mean((1, 2))
  across = (at[:, :, -10:] - at[:, :, :10]).mean((1, 2))
  return centre, across


@pytest.mark.parametrize("move", camera.MOVES)
def test_the_view_moves_as_its_name_says(move):
  x, y, zoom, roll = camera.MOVES[move]
  for shot in shots(4, move=move):
    centres, across = views(camera.render(shot, RAMP, SIZE, 5))
    length = np.hypot(*across.T)
    # Columns 10 pixels wide have centres that are 86 pixels apart.
    side = length[0] * SIZE[1] / 86
    travel = (centres[-1] - centres[0]) / side
    np.testing.assert_allclose(travel, (x, y), atol=0.02)
    assert length[0] / length[-1] == pytest.approx(zoom, rel=0.03)
    angle = np.rad2deg(np.arctan2(across[:, 1], across[:, 0]))
    assert angle[-1] - angle[0] == pytest.approx(roll, abs=1)
    # The change is uniform over time.
    halfway = (centres[0] + centres[-1]) / 2
    np.testing.assert_allclose(centres[2], halfway, atol=0.02 * side)


def test_the_first_view_is_upright():
  for shot in shots(20):
    _, across = views(camera.render(shot, RAMP, SIZE, 1))
    assert across[0, 0] > 0
    assert abs(across[0, 1]) < 1


@pytest.mark.parametrize("size", [(96, 64), (64, 64), (32, 96)])
@pytest.mark.parametrize("shape", [(256, 256), (128, 512), (300, 100)])
def test_every_view_stays_inside_the_photograph(size, shape):
  photograph = np.full((*shape, 3), 255, np.uint8)
  for shot in shots(30):
    frames = camera.render(shot, photograph, size, 4)
    assert frames.shape == (4, size[1], size[0], 3)
    # Outside is black; a sample at the very edge may mix with it.
    assert (frames > 250).mean() > 0.999


def test_details_finer_than_a_pixel_are_averaged():
  checks = np.indices((2048, 2048)).sum(0) // 2 % 2 * 255
  photograph = np.repeat(checks[..., None], 3, axis=-1).astype(np.uint8)
  for move in ("pans left quickly", "zooms in quickly", "rolls clockwise"):
    (shot,) = shots(1, move=move, side=1.0)
    frames = camera.render(shot, photograph, SIZE, 3).astype(float)
    assert np.abs(frames - 127.5).max() < 40


def test_a_still_camera_repeats_its_frame():
  for shot in shots(3, move="stays still"):
    frames = camera.render(shot, RAMP, SIZE, 4)
    np.testing.assert_array_equal(frames, frames[:1].repeat(4, axis=0))


def test_captions_say_the_move_in_known_words():
  rng = np.random.default_rng(0)
  unknown = 0
  for shot in shots(300):
    caption = camera.caption(shot, rng)
    said = [p for p in camera.phrases(shot.move) if caption.endswith(p)]
    assert said
    others = {
      phrase
      for move in camera.MOVES
      for phrase in camera.phrases(move)
      if move != shot.move
    }
    assert max(said, key=len) not in others
    strange = set(caption.replace(",", "").split()) - camera.WORDS
    unknown += bool(strange)
  # Half of the captions have a subject, a fifth of the subjects' nouns are
  # unknown.
  assert 0.08 < unknown / 300 < 0.3


def test_all_moves_are_drawn():
  assert {shot.move for shot in shots(300)} == set(camera.MOVES)
