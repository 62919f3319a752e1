"""The crop rule and the two views, against hand-derived pixels."""

import numpy as np
import pytest
from PIL import Image

from i2vgen_jax import preprocessing
from i2vgen_jax.autoencoding import to_unit_range
from i2vgen_jax.errors import InputError


def noise(width, height, low=1):
  rng = np.random.default_rng(width * 10007 + height)
  return rng.integers(low, 256, (height, width, 3), dtype=np.uint8)


def black_lines(crop):
  """Black columns left, rows on top, columns right, rows at the bottom."""
  dark = crop.max(axis=2) == 0
  edges = dark.all(axis=0), dark.all(axis=1)
  return tuple(int(edge[side]) for side in (0, -1) for edge in edges)


def test_hd_sources_lose_only_eight_rows_top_and_bottom():
  image = noise(1280, 720)
  for black_edge in (False, True):
    crop = preprocessing.center_crop_wide(
      image, 1280, 704, black_edge=black_edge
    )
    np.testing.assert_array_equal(crop, image[8:712])


def test_shrinking_by_two_averages_each_square_of_four():
  image = noise(640, 480)
  quads = image.reshape(240, 2, 320, 2, 3).astype(float).mean((1, 3))
  crop = preprocessing.center_crop_wide(image, 320, 200)
  # Pillow rounds to 8 bits after each of its two passes.
  assert np.abs(crop - quads[20:220]).max() <= 1


def test_enlarging_by_three_repeats_pixels():
  image = noise(20, 10)
  crop = preprocessing.center_crop_wide(image, 30, 30)
  repeated = image.repeat(3, axis=0).repeat(3, axis=1)
  np.testing.assert_array_equal(crop, repeated[:, 15:45])


def test_reference_shows_a_black_edge_and_the_default_does_not():
  image = noise(1024, 1024)
  parity = preprocessing.center_crop_wide(image, 1280, 1280, black_edge=True)
  assert black_lines(parity) == (1, 1, 0, 0)
  # Inside the edge lies the whole picture, scaled to 1279 x 1279.
  scaled = Image.fromarray(image).resize((1279, 1279), Image.Resampling.BOX)
  np.testing.assert_array_equal(parity[1:, 1:], np.array(scaled))

  crop = preprocessing.center_crop_wide(image, 1280, 1280)
  assert black_lines(crop) == (0, 0, 0, 0)
  scaled = Image.fromarray(image).resize((1280, 1280), Image.Resampling.BOX)
  np.testing.assert_array_equal(crop, np.array(scaled))


@pytest.mark.parametrize(
  ("target", "low", "high"), [(448, 0.3, 0.55), (256, 0, 0)]
)
def test_frequency_of_lost_pixels_in_the_reference(target, low, high):
  """Known of the reference: 40-45 % of source sizes, none for 256."""
  white = [
    np.full((side, side, 3), 255, np.uint8)
    for side in range(target // 2, 2 * target, 17)
  ]

  def share_with_a_black_edge(black_edge):
    crops = (
      preprocessing.center_crop_wide(i, target, target, black_edge=black_edge)
      for i in white
    )
    return np.mean([sum(black_lines(crop)) > 0 for crop in crops])

  assert share_with_a_black_edge(False) == 0
  assert low <= share_with_a_black_edge(True) <= high


def test_a_crop_without_scaling_is_a_part_of_the_picture():
  rng = np.random.default_rng(0)
  image = rng.integers(256, size=(72, 128, 3), dtype=np.uint8)
  crop = preprocessing.center_crop_wide(image, 128, 70)
  np.testing.assert_array_equal(crop, image[1:71])
  by_pillow = preprocessing.center_crop_wide(image, 128, 70, black_edge=True)
  np.testing.assert_array_equal(crop, by_pillow)


@pytest.mark.parametrize(
  ("source", "target"),
  [((333, 517), (96, 64)), ((517, 333), (64, 96)), ((31, 47), (64, 64))],
)
def test_crop_is_centred_and_covers(source, target):
  """A horizontal and a vertical ramp keep their middle value and direction."""
  width, height = source
  image = np.zeros((height, width, 3), np.uint8)
  image[..., 0] = np.linspace(1, 255, width)
  image[..., 1] = np.linspace(1, 255, height)[:, None]
  crop = preprocessing.center_crop_wide(image, *target).astype(float)
  assert crop[..., :2].min() > 0
  step = 255 / min(target)
  np.testing.assert_allclose(crop[..., :2].mean((0, 1)), 128, atol=2 * step)
  assert (np.diff(crop[..., 0], axis=1) >= 0).all()
  assert (np.diff(crop[..., 1], axis=0) >= 0).all()
  # One side is used whole, the other is cut by the ratio of the shapes.
  scale = min(width / target[0], height / target[1])
  for channel, side, cut in ((0, width, target[0]), (1, height, target[1])):
    seen = np.ptp(crop[..., channel]) / 254
    assert seen == pytest.approx(scale * cut / side, abs=3 / min(cut, side))


def test_autoencoder_input_maps_the_byte_range_to_minus_one_and_one():
  image = np.zeros((4, 6, 3), np.uint8)
  image[:, 3:] = 255
  image[0, 0] = 51
  view = to_unit_range(preprocessing.center_crop_wide(image, 6, 4))
  assert view.dtype == np.float32
  assert view[1, 0, 0] == -1 and view[1, 5, 2] == 1
  np.testing.assert_allclose(view[0, 0], -0.6, atol=1e-7)


def test_clip_view_is_a_shrunk_square_of_the_video_width():
  image = noise(500, 400)
  view = preprocessing.clip_view(image, 448, 224, black_edge=True)
  # 400 px high: enlarged by 1.12 to 560 x 448 (559 x 447 by the floor).
  picture = Image.fromarray(image)
  s = min(500 / 448, 400 / 448)
  wide = (int(500 // s), int(400 // s))
  left, top = (wide[0] - 448) // 2, (wide[1] - 448) // 2
  square = picture.resize(wide, Image.Resampling.BOX)
  square = square.crop((left, top, left + 448, top + 448))
  small = square.resize((224, 224), Image.Resampling.BILINEAR)
  # Undo the normalisation: the bytes must come back.
  mean = [0.48145466, 0.4578275, 0.40821073]
  std = [0.26862954, 0.26130258, 0.27577711]
  np.testing.assert_allclose(
    view * np.float32(std) + np.float32(mean),
    np.asarray(small, np.float32) / 255,
    atol=1e-6,
  )


def test_clip_view_has_the_towers_size():
  view = preprocessing.clip_view(noise(90, 70), 64, 32)
  assert view.shape == (32, 32, 3) and view.dtype == np.float32


def test_clip_view_of_a_narrow_video_is_cropped_to_the_towers_size():
  """Enlarged once, from the source: no detour over the video's 64 pixels."""
  image = noise(112, 112)
  view = preprocessing.clip_view(image, 64, 224)
  crop = image.repeat(2, axis=0).repeat(2, axis=1)
  expected = preprocessing.clip_view(crop, 224, 224)
  np.testing.assert_array_equal(view, expected)
  assert len(np.unique(view[..., 0])) > 200


@pytest.mark.parametrize(
  ("shape", "target", "words"),
  [
    ((0, 8, 3), (8, 8), "at least one pixel"),
    ((8, 8, 3), (0, 8), "at least one pixel"),
    ((8, 8, 3), (8, -8), "at least one pixel"),
    ((2, 9000, 3), (64, 64), "too elongated"),
  ],
)
def test_unusable_sizes_are_one_clear_line(shape, target, words):
  with pytest.raises(InputError, match=words) as caught:
    preprocessing.center_crop_wide(np.zeros(shape, np.uint8), *target)
  assert "\n" not in str(caught.value)
