"""One crop and flip for a whole clip; captions stay true."""

import numpy as np
import pytest

from data_pipelines.loading.augmentation import Augmentation, View
from i2vgen_jax.errors import InputError


def draws(augmentation, caption="a red disc", count=200):
  return [
    augmentation.draw(caption, np.random.default_rng(n)) for n in range(count)
  ]


@pytest.fixture
def numbered():
  """A frame in which each pixel holds its row and column."""
  y, x = np.meshgrid(range(40), range(60), indexing="ij")
  return np.stack([0 * y, y, x], -1).astype(np.uint8)


def test_nothing_by_default(numbered):
  views = draws(Augmentation())
  assert set(views) == {View()}
  np.testing.assert_array_equal(views[0].of(numbered), numbered)


def test_crops_have_the_drawn_size_and_any_position(numbered):
  lefts, tops = set(), set()
  for view in draws(Augmentation(min_crop=0.8)):
    assert 0.8 <= view.share <= 1 and not view.mirrored
    part = view.of(numbered)
    height, width = part.shape[:2]
    assert height == round(40 * view.share)
    assert width == round(60 * view.share)
    top, left = part[0, 0, 1:].tolist()
    # Whole and in order.
    expected = numbered[top : top + height, left : left + width]
    np.testing.assert_array_equal(part, expected)
    lefts.add(left)
    tops.add(top)
  assert lefts >= set(range(10)) and tops >= set(range(7))


def test_mirror_images_have_the_given_frequency(numbered):
  views = draws(Augmentation(flip=0.3), count=2000)
  share = np.mean([view.mirrored for view in views])
  assert share == pytest.approx(0.3, abs=0.03)
  mirrored = next(view for view in views if view.mirrored)
  np.testing.assert_array_equal(mirrored.of(numbered), numbered[:, ::-1])


@pytest.mark.parametrize(
  "caption",
  [
    "a disc moves left slowly",
    "LEFT.",
    "the Right-hand door",
    "it drifts leftwards",
    "a rightward pan",
    "the leftmost of three",
    "a left-handed player",
    "turns clockwise",
    "Turns counterclockwise",
    "counter-clockwise",
    "anticlockwise,",
  ],
)
def test_captions_that_name_a_side_prevent_mirroring(caption):
  assert not any(v.mirrored for v in draws(Augmentation(flip=1.0), caption))


@pytest.mark.parametrize(
  "caption", ["a bright copyright sign", "upright", "cleft rock", "a clock", ""]
)
def test_words_that_contain_a_side_allow_mirroring(caption):
  assert all(v.mirrored for v in draws(Augmentation(flip=1.0), caption))


@pytest.mark.parametrize(
  "values", [{"min_crop": 0.0}, {"min_crop": 1.1}, {"flip": -0.1}, {"flip": 2}]
)
def test_values_out_of_range_are_rejected(values):
  with pytest.raises(
    InputError, match="min_crop must be above 0 and at most 1"
  ):
    Augmentation(**values)
