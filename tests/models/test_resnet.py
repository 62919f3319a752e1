"""Which frames see which, what a fresh block does, and resampling."""

import jax
import numpy as np
import pytest
import torch
from model_testing import draw
from torch.nn import functional

from i2vgen_jax.models.resnet import (
  Downsample,
  ResnetBlock,
  TemporalConvBlock,
  Upsample,
)


def channels_first(x):
  """[b f h w c] -> torch's [b*f c h w]."""
  return torch.from_numpy(x.reshape(-1, *x.shape[2:])).permute(0, 3, 1, 2)


def channels_last(x, like):
  return x.permute(0, 2, 3, 1).reshape(*like.shape[:2], *x.shape[2:], -1)


def changed_frames(apply, x, frame):
  """Numbers of the frames that change when one does."""
  other = x.copy()
  other[:, frame] += 0.5 * draw(*x[:, frame].shape, seed=9)
  difference = np.abs(np.asarray(apply(other) - apply(x))).max((0, 2, 3, 4))
  return [i for i, d in enumerate(difference) if d > 0]


def test_resnet_frames_are_independent(random_params):
  x, temb = draw(2, 4, 5, 6, 8), draw(2, 3)
  block = ResnetBlock(12, norm_groups=4, dropout=0.0)
  params = random_params(block, x, temb, True)
  apply = jax.jit(lambda x: block.apply({"params": params}, x, temb, True))
  assert changed_frames(apply, x, 2) == [2]


def test_temporal_norms_cover_all_frames(random_params):
  """Four convolutions of width 3 reach 4 frames far; the moments, all."""
  x = draw(1, 8, 3, 4, 8)
  block = TemporalConvBlock(norm_groups=4, dropout=0.0)
  params = random_params(block, x, True)
  apply = jax.jit(lambda x: block.apply({"params": params}, x, True))
  assert changed_frames(apply, x, 0) == list(range(8))


def fresh(module, *args):
  """Output and parameters right after initialisation."""
  key = jax.random.key(0)
  return jax.jit(lambda: module.init_with_output(key, *args, True))()


@pytest.mark.parametrize("frames", [1, 3])
def test_blocks_are_the_identity_at_initialisation(frames):
  x, temb = draw(2, frames, 4, 5, 8), draw(2, 3)
  y, _ = fresh(ResnetBlock(8, 4, 0.0), x, temb)
  np.testing.assert_array_equal(y, x)
  y, _ = fresh(TemporalConvBlock(4, 0.0), x)
  np.testing.assert_array_equal(y, x)


def test_resnet_of_other_width_equals_its_skip_at_initialisation():
  x, temb = draw(2, 3, 4, 5, 8), draw(2, 3)
  y, variables = fresh(ResnetBlock(6, 2, 0.0), x, temb)
  skip = variables["params"]["skip"]
  np.testing.assert_allclose(y, x @ skip["kernel"][0, 0], atol=1e-5)


def test_dropout_depends_on_its_key(random_params):
  x, temb = draw(1, 2, 4, 5, 8), draw(1, 3)
  block = ResnetBlock(8, norm_groups=4, dropout=0.5)
  params = random_params(block, x, temb, True)

  @jax.jit
  def apply(seed):
    rngs = {"dropout": jax.random.key(seed)}
    return block.apply({"params": params}, x, temb, False, rngs=rngs)

  np.testing.assert_array_equal(apply(1), apply(1))
  assert np.abs(apply(1) - apply(2)).max() > 0.1


@pytest.mark.parametrize(
  ("padding", "size", "small"),
  [
    (1, (8, 10), (4, 5)),
    (1, (7, 13), (4, 7)),
    (1, (1, 3), (1, 2)),
    (2, (10, 8), (6, 4)),
    (2, (2, 2), (2, 1)),
  ],
)
def test_resampling(random_params, padding, size, small):
  """(b) pads two rows on the way down and drops the outer rows going up."""
  x = draw(2, 3, *size, 4)
  down, up = Downsample(padding), Upsample(padding)
  params = random_params(down, x)
  weight, bias = (
    torch.from_numpy(params["conv"]["kernel"].transpose(3, 2, 0, 1).copy()),
    torch.from_numpy(params["conv"]["bias"]),
  )
  y = down.apply({"params": params}, x)
  assert y.shape[2:4] == small
  expected = functional.conv2d(
    channels_first(x), weight, bias, stride=2, padding=(padding, 1)
  )
  np.testing.assert_allclose(y, channels_last(expected, x), atol=1e-5)

  z = up.apply({"params": params}, y, size)
  if padding == 1:
    large = functional.interpolate(expected, size=size)
  else:
    large = functional.interpolate(expected, scale_factor=2.0)[:, :, 1:-1]
  expected = functional.conv2d(large, weight, bias, padding=1)
  np.testing.assert_allclose(z, channels_last(expected, x), atol=1e-5)
