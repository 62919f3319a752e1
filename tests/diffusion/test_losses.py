"""The loss: right target, right noise, rows that do not see each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i2vgen_jax.diffusion import losses
from i2vgen_jax.diffusion.schedules import make_schedule
from i2vgen_jax.errors import InputError
from i2vgen_jax.types import Conditioning

SCHEDULE = make_schedule("cosine", True)
ROW = (2, 3, 5, 4)


def latents(rows, seed=0):
  return jax.random.normal(jax.random.key(seed), (rows, *ROW))


def zero_fn(xt, t, cond):
  return jnp.zeros_like(xt)


@functools.partial(
  jax.jit,
  static_argnames=(
    "denoise_fn",
    "prediction_type",
    "max_timestep",
    "timestep_shift",
  ),
)
def loss(
  denoise_fn,
  x0,
  index,
  seed=7,
  *,
  prediction_type="v",
  max_timestep=None,
  timestep_shift=1.0,
  weights=None,
):
  """(mean, per row) and what the network was given, (xt, t)."""
  seen = []

  def spy(xt, t, cond):
    seen.append((xt, t))
    return denoise_fn(xt, t, cond)

  result = losses.diffusion_loss(
    spy,
    SCHEDULE,
    x0,
    Conditioning(),
    jax.random.key(seed),
    jnp.asarray(index),
    prediction_type=prediction_type,
    max_timestep=max_timestep,
    timestep_shift=timestep_shift,
    weights=weights,
  )
  return *result, *seen


@pytest.mark.parametrize("prediction_type", ["v", "eps", "x0"])
def test_perfect_denoiser_has_zero_loss(prediction_type):
  x0 = latents(16)

  def oracle(xt, t, cond):
    alpha, sigma = (
      jnp.asarray(a, jnp.float32)[t][:, None, None, None, None]
      for a in (SCHEDULE.alphas, SCHEDULE.sigmas)
    )
    eps = (xt - alpha * x0) / sigma
    return {"v": (alpha * xt - x0) / sigma, "eps": eps, "x0": x0}[
      prediction_type
    ]

  _, per_row, _ = loss(
    oracle, x0, np.arange(16), prediction_type=prediction_type
  )
  assert per_row.shape == (16,)
  assert np.all(per_row < 1e-5)
  # The same oracle for another picture is far off.
  _, wrong, _ = loss(
    oracle, latents(16, 1), np.arange(16), prediction_type=prediction_type
  )
  assert np.all(wrong > 1e-3)


def test_a_row_is_the_same_in_any_batch():
  x0 = latents(5)
  _, together, _ = loss(zero_fn, x0, np.arange(11, 16))
  _, apart, _ = loss(zero_fn, x0[jnp.array([3, 0])], np.array([14, 11]))
  np.testing.assert_array_equal(apart, together[jnp.array([3, 0])])
  _, elsewhere, _ = loss(zero_fn, x0, np.arange(21, 26))
  assert not np.any(elsewhere == together)
  _, other_seed, _ = loss(zero_fn, x0, np.arange(11, 16), seed=8)
  assert not np.any(other_seed == together)


def test_rows_have_equal_weight():
  mean, per_row, _ = loss(zero_fn, latents(5), np.arange(11, 16))
  np.testing.assert_allclose(mean, np.mean(per_row), rtol=1e-6)


def test_weights_scale_the_error_of_each_latent():
  x0 = latents(3)
  _, per_row, _ = loss(zero_fn, x0, np.arange(3))
  weights = jnp.broadcast_to(
    jnp.array([1.0, 2.0, 0.0])[:, None, None, None], x0.shape[:-1]
  )
  _, weighted, _ = loss(zero_fn, x0, np.arange(3), weights=weights)
  np.testing.assert_allclose(weighted, per_row * np.array([1, 2, 0]), rtol=1e-6)


def test_loss_of_a_zero_prediction_is_the_variance_of_v():
  """alpha² (1 + 0.1²) + sigma² mean(x0²), t and xt as the network saw them."""
  rows = 256
  x0 = jnp.full((rows, *ROW), 0.5)
  mean, _, (xt, t) = loss(zero_fn, x0, np.arange(rows))
  alpha, sigma = SCHEDULE.alphas[t], SCHEDULE.sigmas[t]
  expected = np.mean(alpha**2 * 1.01 + sigma**2 * 0.25)
  np.testing.assert_allclose(mean, expected, rtol=0.03)
  eps = (xt.reshape(rows, -1) - 0.5 * alpha[:, None]) / sigma[:, None]
  np.testing.assert_allclose(np.std(eps), np.sqrt(1.01), rtol=0.02)


@pytest.mark.parametrize(("max_timestep", "last"), [(None, 999), (600, 599)])
def test_timesteps_are_uniform_below_the_bound(max_timestep, last):
  x0 = jnp.zeros((4000, 1, 1, 1, 1))
  *_, (_, t) = loss(zero_fn, x0, np.arange(4000), max_timestep=max_timestep)
  t = np.asarray(t)
  assert t.min() < 8 and last - 8 < t.max() <= last
  np.testing.assert_allclose(t.mean(), last / 2, rtol=0.03)
  np.testing.assert_allclose(t.std(), last / np.sqrt(12), rtol=0.03)


@pytest.mark.parametrize(
  ("shift", "quartiles"),
  # Odds of s : 1, 3 s : 1 and s : 3 at the quartiles of a uniform draw.
  [(4.0, (4 / 7, 4 / 5, 12 / 13)), (0.5, (1 / 7, 1 / 3, 3 / 5))],
)
def test_timestep_shift_favours_one_end(shift, quartiles):
  x0 = jnp.zeros((4000, 1, 1, 1, 1))
  *_, (_, t) = loss(
    zero_fn, x0, np.arange(4000), max_timestep=600, timestep_shift=shift
  )
  t = np.asarray(t)
  assert t.min() >= 0 and t.max() <= 599
  np.testing.assert_allclose(
    np.quantile(t / 600, [0.25, 0.5, 0.75]), quartiles, atol=0.02
  )


def test_a_shift_that_is_not_positive_is_refused():
  with pytest.raises(InputError, match=r"timestep_shift 0\.0"):
    loss(zero_fn, latents(1), np.arange(1), timestep_shift=0.0)


def test_the_smallest_bound_trains_only_the_cleanest_timestep():
  *_, (_, t) = loss(zero_fn, latents(5), np.arange(5), max_timestep=1)
  assert t.tolist() == [0] * 5


@pytest.mark.parametrize("max_timestep", [0, -1, 1001])
def test_a_bound_outside_the_schedule_is_refused(max_timestep):
  with pytest.raises(InputError, match="use 1 to 1000"):
    loss(zero_fn, latents(1), np.arange(1), max_timestep=max_timestep)


def test_offset_noise_is_constant_per_frame_and_channel():
  shape = (400, 3, 6, 8, 4)
  rng = jax.random.key(0)
  noise = np.asarray(losses.offset_noise(rng, shape, 0.5))
  means = noise.mean(axis=(2, 3))  # row, frame, channel
  # The mean over 48 pixels has variance 1/48 beside the constant's.
  np.testing.assert_allclose(means.var(), 0.25 + 1 / 48, rtol=0.08)
  # Independent across frames and channels.
  flat = means.reshape(400, 12)
  correlation = np.corrcoef(flat.T) - np.eye(12)
  assert np.abs(correlation).max() < 0.2
  # Nothing is left within a frame but unit noise.
  within = noise - noise.mean(axis=(2, 3), keepdims=True)
  np.testing.assert_allclose(within.var() * 48 / 47, 1, rtol=0.01)


def test_zero_strength_has_no_offset():
  noise = np.asarray(
    losses.offset_noise(jax.random.key(1), (400, 1, 6, 8, 4), 0.0)
  )
  np.testing.assert_allclose(noise.mean(axis=(2, 3)).var(), 1 / 48, rtol=0.1)
