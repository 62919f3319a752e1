"""Metrics of clips that are made so that their values are known."""

import dataclasses

import numpy as np
import pytest
from skimage import data

from data_pipelines.procedural import world
from i2vgen_jax.cascade import BUNDLED
from i2vgen_jax.interop import open_weights
from launch.evaluation import measures
from launch.evaluation.towers import Towers

PHOTO = np.ascontiguousarray(data.astronaut()[:256])


@pytest.fixture(scope="module")
def towers():
  return Towers.load(open_weights(BUNDLED))


def panned(step):
  """Eight frames of 192x128; the view moves right by `step` pixels a frame."""
  starts = [step * k for k in range(8)]
  return np.stack([PHOTO[60:188, 100 + x : 292 + x] for x in starts])


def test_still_clip(towers):
  values = measures.of_clip(panned(0), 8.0)
  assert values["motion"] == values["camera_travel"] == 0
  assert values["steadiness"] == values["camera_zoom"] == 1
  assert values["camera_fit"] == pytest.approx(1, abs=1e-3)
  text = towers.of_text("a woman")
  values = measures.of_content(panned(0), towers, text=text)
  assert values.keys() == {"frame_consistency", "text_similarity"}
  assert values["frame_consistency"] == pytest.approx(1, abs=1e-5)
  assert -1 <= values["text_similarity"] < 1


def test_panned_clip(towers):
  values = measures.of_clip(panned(4), 8.0)
  # In shorter sides: 4 pixels at 8 frames per second, and 28 in all.
  assert values["motion"] == pytest.approx(4 * 8 / 128, rel=0.25)
  assert values["camera_travel"] == pytest.approx(28 / 128, rel=0.1)
  assert values["steadiness"] < 0.99
  # Half of the rate is half of the speed.
  slow = measures.of_clip(panned(4), 4.0)
  assert slow["motion"] == pytest.approx(values["motion"] / 2)
  values = measures.of_content(panned(4), towers)
  assert values.keys() == {"frame_consistency"}
  assert values["frame_consistency"] < 0.9999


def test_frames_far_apart_have_no_motion_value():
  assert measures.of_clip(panned(4), 2.0)["motion"] is None


def test_clip_is_compared_with_the_picture(towers):
  picture = panned(0)[0]
  values = measures.of_start(panned(0), picture)
  values |= measures.of_content(panned(0), towers, picture)
  assert values["first_frame_psnr"] is None  # Infinite.
  assert values["first_frame_ssim"] == pytest.approx(1)
  assert values["image_similarity"] == pytest.approx(1, abs=1e-5)
  other = np.full_like(panned(0), 128)
  worse = measures.of_start(other, picture)
  worse |= measures.of_content(other, towers, picture)
  assert worse["first_frame_psnr"] < 15
  assert worse["image_similarity"] < 0.95


def test_the_text_tower_prefers_the_right_caption(towers):
  """The bundled towers know drawn objects."""
  red, blue = (
    next(
      world.render(scene, (192, 128), 8)
      for n in range(200)
      if f"{colour} "
      in world.caption(scene := world.numbered_scene(0, n, "train"))
    )
    for colour in ("red", "blue")
  )
  red, blue = map(towers.of_frames, (red, blue))
  text = towers.of_text("a red disc")
  assert (red @ text).mean() > (blue @ text).mean()


def test_converted_towers_do_not_read_text(capsys):
  """The public forms of the text tower lack its projection."""
  weights = open_weights(BUNDLED)
  text = weights.networks["text_encoder"]
  config = text.config | {"source": {"form": "diffusers"}}
  text = dataclasses.replace(text, config=config)
  networks = weights.networks | {"text_encoder": text}
  towers = Towers.load(dataclasses.replace(weights, networks=networks))
  assert towers.of_text("a woman") is None
  assert "the similarity of text is left out" in capsys.readouterr().err
  del networks["image_encoder"]
  assert Towers.load(dataclasses.replace(weights, networks=networks)) is None
  assert "no CLIP image tower" in capsys.readouterr().err
