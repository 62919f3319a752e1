"""Batches of clips: order, seeds and the last batch."""

from types import SimpleNamespace

import numpy as np
import pytest

from i2vgen_jax.stage import Sampling
from launch.evaluation.generation import Given, bilinear, generate


class Recorder:
  """A cascade whose clips hold the seed, and what they are made of."""

  def __init__(self):
    self.sizes = []

  def run(self, stage, inputs, prompts, *, seed):
    self.sizes.append(len(inputs))
    assert len(inputs) == len(prompts)
    first = np.array([np.ravel(one)[0] for one in inputs])
    made = first + np.array(seed)
    return np.broadcast_to(
      made[:, None, None, None, None], (len(made), 2, 4, 4, 3)
    )


@pytest.mark.parametrize(("batch_size", "sizes"), [(2, [2, 2, 2]), (9, [5])])
def test_clip_n_has_seed_n_in_any_batches(batch_size, sizes):
  cascade = Recorder()
  read = lambda n: Given(  # noqa: E731
    str(n), f"prompt {n}", np.full((4, 4, 3), 100 + 10 * n)
  )
  settings = {"seeds": range(3, 8), "batch_size": batch_size, "label": "clips"}
  names, made = [], {"base": [], "refine": []}
  for batch, clips in generate(
    cascade, dict.fromkeys(made), 5, read, **settings
  ):
    names += [given.name for given in batch]
    for stage, some in clips.items():
      made[stage] += some[:, 0, 0, 0, 0].tolist()
  assert names == [*"01234"]
  assert made["base"] == [103 + 11 * n for n in range(5)]
  # The refine stage starts from the clips of the base stage.
  assert made["refine"] == [106 + 12 * n for n in range(5)]
  # A smaller last batch would be compiled again.
  assert cascade.sizes == [size for size in sizes for _ in made]


def test_picture_is_cropped_as_for_the_stage():
  wide = np.arange(16 * 32 * 3, dtype=np.uint8).reshape(16, 32, 3)
  sampling = Sampling(size=(16, 16), num_frames=2, fps=8.0)
  shown = Given("a", "", wide).shown_to(SimpleNamespace(sampling=sampling))
  np.testing.assert_array_equal(shown, wide[:, 8:24])


def test_bilinear_enlarges_every_frame():
  clips = np.zeros((2, 3, 2, 4, 3), np.uint8)
  clips[1, 2, :, 2:] = 200
  large = bilinear(clips, np.zeros((2, 3, 4, 8, 3), np.uint8))
  assert large.shape == (2, 3, 4, 8, 3)
  np.testing.assert_array_equal(
    large[1, 2, 0, :, 0], [0, 0, 0, 50, 150, 200, 200, 200]
  )
  assert large[0].max() == large[1, :2].max() == 0
