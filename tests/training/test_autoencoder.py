"""Losses of the autoencoder on given posteriors and reconstructions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_standins import VAE, make_batch, make_frozen, random_like

from i2vgen_jax.errors import InputError
from i2vgen_jax.models.vae import AutoencoderKL, Posterior
from i2vgen_jax.training.autoencoder import Autoencoder, shrink

RNG = jax.random.key(3)


@dataclasses.dataclass(frozen=True)
class FixedVAE:
  """An autoencoder with a given posterior and error, whatever the frames."""

  mean: float
  logvar: float
  error: object

  def apply(self, variables, x, method=None):
    if method is None:
      return x + self.error
    if method == "encode":
      shape = (*x.shape[:-1], 4)
      # The decoder returns these frames, off by `error`.
      object.__setattr__(self, "frames", x)
      return Posterior(jnp.full(shape, self.mean), jnp.full(shape, self.logvar))
    return self.frames + self.error


def make_task(vae, **changes):
  """The loss of full frames alone, with all weights zero but the given ones."""
  names = ("l1_weight", "l2_weight", "edge_weight", "kl_weight")
  defaults = {"scales": ((1, 8),)} | dict.fromkeys(names, 0.0)
  return Autoencoder(vae=vae, **defaults | changes)


class TestLoss:
  def loss(self, vae, **changes):
    return make_task(vae, **changes).loss({}, {}, make_batch(0), RNG)

  def test_constant_error(self):
    vae = FixedVAE(0.0, 0.0, -0.2)
    loss, metrics = self.loss(vae, l1_weight=1.0, l2_weight=10.0)
    assert float(loss) == pytest.approx(0.2 + 10 * 0.04, rel=1e-4)
    # A constant has no edges, and 0.2 of a range of 2 is 20 dB.
    assert float(self.loss(vae, edge_weight=1.0)[0]) < 1e-6
    assert float(metrics["psnr_8"]) == pytest.approx(20, rel=1e-4)

  def test_step_in_the_error_is_an_edge(self):
    # One column in eight: 1 of 7 horizontal differences is 0.7.
    step = 0.7 * (np.arange(8) >= 4)[None, None, :, None]
    loss, _ = self.loss(FixedVAE(0.0, 0.0, step), edge_weight=1.0)
    assert float(loss) == pytest.approx(0.1, rel=1e-4)

  @pytest.mark.parametrize(("mean", "logvar"), [(0, 0), (2, 0), (0, 1.5)])
  def test_kl_is_the_expected_log_ratio(self, mean, logvar):
    vae = FixedVAE(float(mean), float(logvar), 0.0)
    _, metrics = self.loss(vae)
    # Monte Carlo of E[log q - log p] under q, the definition.
    draws = np.random.default_rng(0).normal(size=10**6)
    x = mean + np.exp(logvar / 2) * draws
    ratio = -0.5 * draws**2 - logvar / 2 + 0.5 * x**2
    assert float(metrics["kl_8"]) == pytest.approx(ratio.mean(), abs=0.01)

  def test_latents_std_is_that_of_the_samples(self):
    vae = FixedVAE(1.0, 2 * np.log(3.0), 0.0)
    _, metrics = self.loss(vae)
    assert float(metrics["latents_std_8"]) == pytest.approx(3, rel=0.05)

  def test_scales_are_averaged_and_named_by_their_width(self):
    scales = ((1, 2), (2, 6))
    task = make_task(VAE(), scales=scales, l1_weight=1.0, l2_weight=1.0)
    params = make_frozen()["vae"]
    loss, metrics = task.loss(params, {}, make_batch(0), RNG)
    assert {"psnr_8", "psnr_4"} <= metrics.keys()
    assert np.isfinite(float(loss))

  def test_scales_of_another_number_of_rows_are_refused(self):
    with pytest.raises(InputError, match="scales of 7 rows in a batch of 8"):
      self.loss(FixedVAE(0.0, 0.0, 0.0), scales=((1, 7),))


def test_shrink_averages_squares():
  image = np.arange(16.0, dtype=np.float32).reshape(1, 1, 4, 4, 1)
  frames = image * np.ones(3, np.float32)
  small = shrink(frames, 2)[0, 0, :, :, 0]
  np.testing.assert_array_equal(small, [[2.5, 4.5], [10.5, 12.5]])


@pytest.mark.parametrize("decoder_only", [False, True])
def test_decoder_only_keeps_the_encoder(decoder_only):
  vae = AutoencoderKL(block_channels=(8, 8), layers_per_block=1, norm_groups=4)
  params = random_like(vae.init, jnp.zeros((1, 2, 2, 3)), scale=0.1)
  weights = dict.fromkeys(("l1_weight", "edge_weight", "kl_weight"), 1.0)
  task = make_task(vae, decoder_only=decoder_only, l2_weight=1.0, **weights)
  loss = jax.jit(lambda p: task.loss(p, {}, make_batch(0), RNG)[0])
  grads = jax.grad(loss)(params)
  size = {name: optax.global_norm(tree) for name, tree in grads.items()}
  assert size["decoder"] > 0 and size["post_quant_conv"] > 0
  assert (size["encoder"] == 0) == decoder_only
  assert (size["quant_conv"] == 0) == decoder_only


def test_scaled_latents_have_unit_variance():
  task, params = make_task(VAE()), make_frozen()["vae"]
  (config, exported), *_ = task.exports(params, make_batch(0)).values()
  pixels = make_batch(0).frames.reshape(-1, 8, 8, 3) / np.float32(127.5) - 1
  mean = VAE().apply({"params": params}, pixels, method="encode").mean
  assert (config["scaling_factor"] * mean).std() == pytest.approx(1, rel=1e-4)
  assert exported is params


def test_picture_has_frames_above_their_reconstructions():
  task, batch = make_task(FixedVAE(0.0, 0.0, 2 / 255)), make_batch(0, size=2)
  picture = np.array(task.sample_picture({}, {}, batch), int)
  rows = picture.reshape(2, 2, 8, 4, 8, 3).transpose(1, 0, 3, 2, 4, 5)
  np.testing.assert_array_equal(rows[0], batch.frames)
  np.testing.assert_array_equal(rows[1], np.minimum(rows[0] + 1, 255))
