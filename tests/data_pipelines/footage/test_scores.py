"""Scores of photos that are panned, blurred, captioned and darkened."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from skimage import data

from data_pipelines.footage import scores
from data_pipelines.media import video
from data_pipelines.procedural import world
from i2vgen_jax.errors import InputError

PHOTOS = ["astronaut", "chelsea", "coffee", "rocket"]
# Between the measured values of plain photos (0) and of photos with one caption
# (at least 0.014).
HAS_TEXT = 0.007


def photo(name):
  return np.ascontiguousarray(getattr(data, name)()[..., :3])


def still(frame, count=2):
  return np.stack([frame] * count), np.arange(count) / 8


def pan(picture, side, shifts):
  """Windows of `side` pixels, shifted by fractions of a pixel."""
  return np.stack(
    [
      cv2.warpAffine(
        picture,
        np.float32([[1, 0, -60 - x], [0, 1, -40 - y]]),
        (side, side),
        flags=cv2.INTER_LINEAR,
      )
      for x, y in shifts
    ]
  )


def caption(picture, text="Nothing ever happens here", **look):
  image = Image.fromarray(picture)
  size = round(min(picture.shape[:2]) * 0.06)
  ImageDraw.Draw(image).text(
    (image.width / 2, image.height * 0.85),
    text,
    font=ImageFont.load_default(size),
    anchor="mm",
    **look,
  )
  return np.array(image)


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize(
  "velocity", [(0.01, 0), (0.1, 0), (0.3, -0.2), (0, 0.6)]
)
def test_motion_is_the_speed_of_a_panned_photo(name, velocity):
  """Velocity in shorter sides per second, frames 1/8 second apart."""
  side, times = 200, np.arange(4) / 8
  shifts = [np.array(velocity) * side * time for time in times]
  frames = pan(photo(name), side, shifts)
  found = scores.score(frames, times).motion
  assert found == pytest.approx(np.hypot(*velocity), rel=0.25)
  assert scores.motion(frames, times) == found


def test_frames_far_apart_have_no_measurable_motion():
  frames, _ = still(photo("coffee"))
  assert np.isnan(scores.motion(frames, np.array([0.0, 1])))


def test_a_still_clip_has_no_motion():
  assert scores.score(*still(photo("coffee"))).motion < 0.005
  rng = np.random.default_rng(0)
  frames, times = still(photo("coffee"), 4)
  noisy = frames + rng.normal(0, 3, frames.shape)
  noisy = noisy.clip(0, 255).astype(np.uint8)
  assert scores.score(noisy, times).motion == 0


@pytest.mark.parametrize("number", range(12))
def test_encoder_noise_is_not_motion(number):
  """Optical flow alone measures up to 0.012, like slow motion."""
  scene = world.numbered_scene(0, number, "train")
  frame = world.render(scene, (96, 64), 1)
  frames = video.encode_mp4(np.repeat(frame, 12, axis=0), 12)
  assert scores.score(*video.decode_mp4(frames)).motion < 1e-4


@pytest.mark.parametrize("name", PHOTOS)
def test_blurred_photos_are_less_sharp_at_any_size(name):
  sharp = photo(name)
  height, width = sharp.shape[:2]
  size = 2 * width, 2 * height
  large = cv2.resize(sharp, size, interpolation=cv2.INTER_CUBIC)
  blurred = cv2.GaussianBlur(large, (0, 0), 8)
  original = scores.score(*still(sharp)).sharpness
  assert scores.score(*still(blurred)).sharpness < 0.2 * original
  assert scores.score(*still(large)).sharpness == pytest.approx(
    original, rel=0.35
  )


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize(
  "look",
  [
    {"fill": "white"},
    {"fill": "white", "stroke_width": 1, "stroke_fill": "black"},
    {"fill": (255, 240, 80), "stroke_width": 1, "stroke_fill": "black"},
  ],
)
def test_captions_are_found_and_plain_photos_have_none(name, look):
  plain = photo(name)
  assert scores.score(*still(plain)).text_share < HAS_TEXT
  share = scores.score(*still(caption(plain, **look))).text_share
  # The line's box is about a thirtieth of the frame.
  assert HAS_TEXT < share < 0.08


def test_dark_letters_on_a_bright_background_are_found():
  bright = 255 - photo("rocket") // 3
  share = scores.score(*still(caption(bright, fill="black"))).text_share
  assert share > HAS_TEXT


def test_moving_letters_are_not_text():
  """Letters that move through the picture belong to the scene."""
  written = caption(photo("rocket"), fill="white")
  passing = np.stack([written, np.roll(written, 40, 0)])
  assert scores.score(passing, np.array([0, 0.125])).text_share < HAS_TEXT


@pytest.mark.slow
def test_captions_of_a_film_are_found(film):
  def text_share(start):
    frames = [
      frame
      for _, frame in video.stream(
        film("trailer_bbb"), start=start, stop=start + 0.2
      )
    ]
    return scores.score(
      np.stack([frames[0], frames[3]]), np.array([0, 0.125])
    ).text_share

  # "An unlucky bird", "A slightly overweight bunny", "Made with MoviePy".
  assert min(map(text_share, (11, 20, 54))) > HAS_TEXT
  assert max(map(text_share, (2, 26, 38, 42))) < HAS_TEXT


@pytest.mark.parametrize("radius", [20, 40, 60])
def test_the_subject_differs_from_the_border(radius):
  frame = photo("rocket")[:200, :300] // 4 + 20
  cv2.circle(frame, (150, 100), radius, (230, 120, 30), -1)
  share = scores.score(*still(frame)).subject_share
  assert share == pytest.approx(np.pi * radius**2 / 60_000, rel=0.4)


def test_the_subject_moves():
  ground = photo("coffee")[:200, :300]
  patch = photo("coffee")[200:280, 100:180]
  frames = np.stack([ground, ground])
  frames[0, 60:140, 100:180] = patch
  frames[1, 60:140, 108:188] = patch
  times = np.array([0, 0.125])
  moving = scores.score(frames, times).subject_share
  # The patch covers 0.107 of the frame.
  assert 0.05 < moving < 0.25


def test_brightness_ranges_from_black_to_white():
  frames, times = still(photo("chelsea"))
  for frame, expected in (
    (np.zeros_like(frames), 0),
    (np.full_like(frames, 255), 1),
  ):
    assert scores.score(frame, times).brightness == expected
  assert 0.3 < scores.score(frames, times).brightness < 0.6


def test_scores_are_deterministic(footage):
  frames, times = video.decode_mp4(footage["bikes"], lambda t: [80, 83, 90, 93])
  first = scores.score(frames, times)
  assert all(isinstance(value, float) for value in first)
  assert scores.score(frames, times) == first


@pytest.mark.parametrize("count", [1, 3])
def test_distant_frames_have_all_scores_but_motion(count):
  frames, _ = still(photo("chelsea"), max(count, 2))
  values = scores.score(frames[:count], np.arange(float(count)))
  assert np.isnan(values.motion)
  near = scores.score(frames[:2], np.array([0, 0.125]))
  assert values[1:] == near[1:]


def test_a_user_function_is_loaded(tmp_path, monkeypatch):
  (tmp_path / "my_scores.py").write_text(
    "limit = 3\ndef beauty(frames):\n  return float(frames.mean())\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  assert scores.load_hook("my_scores:beauty")(np.ones((2, 4, 4, 3))) == 1


@pytest.mark.parametrize(
  ("spec", "reason"),
  [
    ("beauty", "give module:function"),
    (":beauty", "give module:function"),
    ("absent_module:beauty", "No module named 'absent_module'"),
    ("math:beauty", "has no attribute 'beauty'"),
    ("math:pi", "math:pi is not a function"),
  ],
)
def test_a_missing_user_function_is_an_error(spec, reason):
  with pytest.raises(InputError, match=reason) as caught:
    scores.load_hook(spec)
  assert "\n" not in str(caught.value)
