"""The autoencoder by itself: sizes, types, independence of frames."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
from model_testing import count, operand_dtypes

from i2vgen_jax.errors import InputError
from i2vgen_jax.models.vae import AutoencoderKL, Posterior

SMALL = {
  "block_channels": (8, 16, 16),
  "layers_per_block": 1,
  "norm_groups": 4,
}


@pytest.fixture(scope="module")
def params(random_params):
  return random_params(AutoencoderKL(**SMALL), jnp.zeros((1, 8, 8, 3)))


@pytest.fixture(scope="module")
def frames():
  return jax.random.uniform(
    jax.random.key(1), (3, 12, 20, 3), minval=-1, maxval=1
  )


@functools.partial(jax.jit, static_argnames=("method", "dtype"))
def run(params, x, method, dtype=jnp.float32):
  model = AutoencoderKL(**SMALL, dtype=dtype)
  return model.apply({"params": params}, x, method=method)


def test_parameter_count_at_full_size():
  model = AutoencoderKL()
  variables = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
  )
  parts = {name: count(tree) for name, tree in variables["params"].items()}
  assert parts == {
    "encoder": 34_163_592,
    "decoder": 49_490_179,
    "quant_conv": 72,
    "post_quant_conv": 20,
  }
  assert sum(parts.values()) == 83_653_863


def test_full_size_shapes_of_a_frame():
  model = AutoencoderKL()
  frame = jnp.zeros((1, 704, 1280, 3))
  variables = jax.eval_shape(model.init, jax.random.key(0), frame)

  def both(variables, frame):
    latents = model.apply(variables, frame, method="encode").mean
    return latents, model.apply(variables, latents, method="decode")

  latents, decoded = jax.eval_shape(both, variables, frame)
  assert latents.shape == (1, 88, 160, 4)
  assert decoded.shape == frame.shape


def test_frames_are_encoded_and_decoded_independently(params, frames):
  posterior = run(params, frames, "encode")
  alone = run(params, frames[1:2], "encode")
  np.testing.assert_allclose(posterior.mean[1:2], alone.mean, atol=1e-5)
  np.testing.assert_allclose(posterior.logvar[1:2], alone.logvar, atol=1e-5)
  decoded = run(params, posterior.mean, "decode")
  assert decoded.shape == frames.shape
  np.testing.assert_allclose(
    decoded[2:], run(params, posterior.mean[2:], "decode"), atol=1e-5
  )
  assert np.ptp(np.asarray(decoded), axis=0).max() > 1e-3  # frames do differ


def test_mean_and_variance_are_separate_channels(params, frames):
  before = run(params, frames, "encode")
  bias = jnp.asarray(params["quant_conv"]["bias"])
  quant = {**params["quant_conv"], "bias": bias.at[4].add(0.5)}
  after = run({**params, "quant_conv": quant}, frames, "encode")
  np.testing.assert_array_equal(after.mean, before.mean)
  shift = np.asarray(after.logvar - before.logvar)
  np.testing.assert_allclose(shift[..., 0], 0.5, atol=1e-6)
  np.testing.assert_array_equal(shift[..., 1:], 0)


@pytest.mark.parametrize(("push", "bound"), [(1e6, 20.0), (-1e6, -30.0)])
def test_log_variance_is_bounded(params, frames, push, bound):
  bias = jnp.full_like(params["quant_conv"]["bias"], push)
  quant = {**params["quant_conv"], "bias": bias}
  posterior = run({**params, "quant_conv": quant}, frames, "encode")
  np.testing.assert_array_equal(posterior.logvar, bound)


def test_samples_have_the_moments_of_the_posterior():
  shape = (1, 64, 64, 4)
  posterior = Posterior(jnp.full(shape, 3.0), jnp.full(shape, np.log(0.25)))
  draw = posterior.sample(jax.random.normal(jax.random.key(0), shape))
  assert abs(float(draw.mean()) - 3.0) < 0.02
  assert abs(float(draw.std()) - 0.5) < 0.02


def test_posterior_is_a_pytree():
  posterior = Posterior(jnp.ones((2, 1, 1, 4)), jnp.zeros((2, 1, 1, 4)))
  again = jax.jit(jax.vmap(lambda p: p))(posterior)
  assert isinstance(again, Posterior)
  assert jax.eval_shape(lambda p: p, posterior).mean.shape == (2, 1, 1, 4)


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_bfloat16_leaves_sums_and_softmax_in_float32(params, frames, method):
  x = frames if method == "encode" else jnp.ones((1, 3, 5, 4))

  def apply(params):
    return run(params, x, method, dtype=jnp.bfloat16)

  found = operand_dtypes(apply, params)
  assert found["conv_general_dilated"] == {"bfloat16"}
  assert found["reduce_sum"] == found["exp"] == {"float32"}
  assert {leaf.dtype.name for leaf in jax.tree.leaves(apply(params))} == {
    "float32"
  }


def test_bfloat16_stays_near_float32(params, frames):
  exact = run(params, frames, "encode").mean
  rough = run(params, frames, "encode", dtype=jnp.bfloat16).mean
  assert 0 < np.abs(exact - rough).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("size", [(12, 18), (10, 16)])
def test_sizes_that_are_not_multiples_of_the_factor_are_refused(params, size):
  with pytest.raises(InputError, match="multiples of 4"):
    run(params, jnp.zeros((1, *size, 3)), "encode")


def test_widths_that_norm_groups_do_not_divide_are_refused():
  model = AutoencoderKL(block_channels=(8, 12), norm_groups=8)
  with pytest.raises(InputError, match="norm_groups 8"):
    model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


class TestPatches:
  """Patches of 8x8 pixels, and the linear shortcut."""

  MODEL = AutoencoderKL(
    block_channels=(8,),
    layers_per_block=1,
    norm_groups=4,
    latent_channels=24,
    patch_size=8,
  )

  @pytest.fixture(scope="class")
  def new(self):
    return self.MODEL.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))

  def rebuilt(self, variables, frames):
    frames = jnp.asarray(frames / 127.5 - 1, jnp.float32)
    return np.asarray(self.MODEL.apply(variables, frames) + 1) * 127.5

  def test_shapes(self, new):
    posterior = self.MODEL.apply(
      new, jnp.zeros((2, 16, 24, 3)), method="encode"
    )
    assert self.MODEL.shrink == 8
    assert posterior.mean.shape == (2, 2, 3, 24)
    with pytest.raises(InputError, match="multiples of 8"):
      self.MODEL.apply(new, jnp.zeros((1, 16, 20, 3)), method="encode")

  def test_a_level_below_the_patches_shrinks_further(self):
    model = self.MODEL.clone(block_channels=(8, 8), patch_size=4)
    frames = jnp.zeros((1, 16, 24, 3))
    variables = model.init(jax.random.key(0), frames)
    posterior = model.apply(variables, frames, method="encode")
    assert posterior.mean.shape == (1, 2, 3, 24)
    decoded = model.apply(variables, posterior.mean, method="decode")
    assert decoded.shape == frames.shape

  def test_a_new_autoencoder_keeps_low_frequencies(self, new):
    """Smooth pictures survive; detail finer than the latents does not."""
    y, x = np.indices((32, 48)) / 16
    waves = [np.sin(x + y), np.cos(2 * x), np.sin(x - 2 * y)]
    smooth = 128 + 60 * np.stack(waves, axis=-1)[None]
    assert np.abs(self.rebuilt(new, smooth) - smooth).mean() < 3
    checks = np.indices((32, 48)).sum(0)[None, ..., None] % 2 * 255.0
    checks = checks.repeat(3, axis=-1)
    assert np.abs(self.rebuilt(new, checks) - 127.5).max() < 30

  def test_the_cosine_transform_is_that_of_scipy(self, new):
    square = np.random.default_rng(0).normal(size=(1, 8, 8, 3))
    mean = self.MODEL.apply(
      new, jnp.asarray(square, jnp.float32), method="encode"
    ).mean
    luma = square.sum(-1)[0] / np.sqrt(3)
    coefficients = scipy.fft.dctn(luma, norm="ortho") / 8
    np.testing.assert_allclose(mean[0, 0, 0, 0], coefficients[0, 0], rtol=1e-4)
    # The two next lowest frequencies, scaled by the root of 1 + 1.
    found = np.sort(np.asarray(mean[0, 0, 0, 1:3]))
    expected = np.sort([coefficients[0, 1], coefficients[1, 0]]) * np.sqrt(2)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
