"""Our autoencoder against diffusers' on random weights."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from weight_helpers import arrays_of, leaves_of, load, tensors_of

from i2vgen_jax.interop.keys import vae
from i2vgen_jax.interop.mapping import compare, to_torch
from i2vgen_jax.models.vae import AutoencoderKL

TOLERANCE = 1e-4
# All four levels, two layers each; unequal widths put skips everywhere.
SMALL = {"block_channels": (8, 16, 24, 32), "norm_groups": 4}
FULL = {"block_channels": (128, 256, 512, 512), "norm_groups": 32}


def reference(block_channels, norm_groups):
  levels = len(block_channels)
  return diffusers.AutoencoderKL(
    block_out_channels=block_channels,
    down_block_types=("DownEncoderBlock2D",) * levels,
    up_block_types=("UpDecoderBlock2D",) * levels,
    layers_per_block=2,
    latent_channels=4,
    norm_num_groups=norm_groups,
  )


def abstract(model):
  x = jnp.zeros((1, 16, 16, 3))
  return jax.eval_shape(model.init, jax.random.key(0), x)["params"]


@pytest.fixture(scope="module")
def theirs(randomised):
  module = randomised(reference(**SMALL))
  # Faint features at the first norms show which epsilon they add.
  for side in (module.encoder, module.decoder):
    for p in side.conv_in.parameters():
      p.data *= 3e-3
  return module


@pytest.fixture(scope="module")
def table():
  return vae.table("diffusers", SMALL["block_channels"], layers_per_block=2)


@pytest.fixture(scope="module")
def params(theirs, table, state_arrays):
  return load(
    tensors_of(state_arrays(theirs)), table, abstract(AutoencoderKL(**SMALL))
  )


def ours(params, x, method):
  apply = jax.jit(AutoencoderKL(**SMALL).apply, static_argnames="method")
  return apply({"params": params}, x, method=method)


def draw(*shape):
  return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def channels_last(x):
  return x.numpy().transpose(0, 2, 3, 1)


def channels_first(x):
  return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize(
  ("frames", "height", "width"), [(1, 24, 40), (2, 56, 8), (5, 72, 104)]
)
def test_encode(theirs, params, relative_error, frames, height, width):
  x = draw(frames, height, width, 3)
  expected = theirs.encode(channels_first(x)).latent_dist
  posterior = ours(params, x, "encode")
  assert (
    relative_error(posterior.mean, channels_last(expected.mean)) <= TOLERANCE
  )
  assert (
    relative_error(posterior.logvar, channels_last(expected.logvar))
    <= TOLERANCE
  )
  noise = draw(*posterior.mean.shape)
  sample = expected.mean + expected.std * channels_first(noise)
  assert (
    relative_error(posterior.sample(noise), channels_last(sample)) <= TOLERANCE
  )


@pytest.mark.parametrize(
  ("frames", "height", "width"), [(1, 3, 5), (2, 7, 1), (5, 9, 13)]
)
def test_decode(theirs, params, relative_error, frames, height, width):
  z = 3 * draw(frames, height, width, 4)
  expected = theirs.decode(channels_first(z)).sample
  decoded = ours(params, z, "decode")
  assert relative_error(decoded, channels_last(expected)) <= TOLERANCE


def test_weights_go_back_unchanged(theirs, params, table, state_arrays):
  expected = state_arrays(theirs)
  returned = arrays_of(to_torch(leaves_of(params), table))
  assert returned.keys() == expected.keys()
  for key, value in expected.items():
    np.testing.assert_array_equal(returned[key], value)


def test_full_size_has_the_same_tensors(meta_arrays):
  tensors = meta_arrays(lambda: reference(**FULL))
  table = vae.table("diffusers", FULL["block_channels"], layers_per_block=2)
  model = AutoencoderKL(**FULL)
  assert len(tensors) == len(table.rows) == 248
  compare(tensors_of(tensors), table, abstract(model)).check()
