"""The scan: rows and precision; solvers have their own tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i2vgen_jax.diffusion import solvers
from i2vgen_jax.diffusion.losses import per_row_rngs
from i2vgen_jax.diffusion.sampler import sample
from i2vgen_jax.diffusion.schedules import make_schedule
from i2vgen_jax.diffusion.timesteps import spaced_timesteps
from i2vgen_jax.errors import InputError

SCHEDULE = make_schedule("cosine", True)
SDE = solvers.dpmpp_2m(SCHEDULE, spaced_timesteps(4, 999), eta=1.0)
SHAPE = (3, 2, 3, 5, 4)


def noise(rows=3, seed=0):
  return jax.random.normal(jax.random.key(seed), (rows, *SHAPE[1:]))


def keys(seed, rows=3):
  """One for each row; that of a row does not depend on the other rows."""
  return per_row_rngs(jax.random.key(seed), jnp.arange(rows))


def network(xt, t):
  """Mixes pixels and frames, not rows."""
  t = t.astype(jnp.float32)[:, None, None, None, None] / 1000
  return jnp.tanh(xt + jnp.roll(xt, 1, axis=(1, 3))) * (0.5 + t)


@functools.partial(jax.jit, static_argnames="prediction_type")
def run(xt, seed=1, *, prediction_type="v"):
  return sample(
    network,
    SDE,
    xt,
    keys(seed, len(xt)),
    prediction_type=prediction_type,
  )


def test_a_row_is_the_same_in_a_longer_batch():
  xt = noise()
  alone, together = run(xt[:1]), run(xt)
  np.testing.assert_allclose(alone, together[:1], atol=1e-6)
  # Rows have noise of their own, even from one start.
  same_start = run(jnp.stack([xt[0]] * 3))
  assert np.abs(same_start[0] - same_start[1]).max() > 0.1


def test_sample_is_determined_by_the_keys():
  xt = noise()
  np.testing.assert_array_equal(run(xt), run(xt))
  assert np.abs(run(xt, seed=2) - run(xt)).max() > 0.1


def test_the_network_is_traced_once_for_all_steps():
  traces = []

  def counted(xt, t):
    traces.append((xt.dtype, t.dtype, t.shape))
    return network(xt, t)

  for solver in (SDE, solvers.heun(SCHEDULE, spaced_timesteps(6, 600))):
    traces.clear()
    jax.make_jaxpr(lambda x, r: sample(counted, solver, x, r))(  # noqa: B023
      noise(), keys(0)
    )
    assert traces == [(jnp.float32, jnp.int32, (3,))]


def test_the_state_stays_float32_around_a_bfloat16_network():
  def coarse(xt, t):
    return network(xt.astype(jnp.bfloat16), t).astype(jnp.bfloat16)

  xt = noise().astype(jnp.bfloat16)
  x0 = jax.jit(lambda x, r: sample(coarse, SDE, x, r))(xt, keys(1))
  assert x0.dtype == jnp.float32
  # More distinct values than bfloat16 would leave.
  assert not np.array_equal(x0, x0.astype(jnp.bfloat16).astype(jnp.float32))


def test_each_prediction_type_converges_to_its_prediction():
  """A network that always knows x0 leads there, however it says so."""
  x0 = noise(seed=5)
  alphas, sigmas = (
    jnp.asarray(a, jnp.float32) for a in (SCHEDULE.alphas, SCHEDULE.sigmas)
  )
  solver = solvers.dpmpp_2m(SCHEDULE, spaced_timesteps(5, 900))

  def knowing(prediction_type):
    def denoise_fn(xt, t):
      alpha, sigma = (a[t][:, None, None, None, None] for a in (alphas, sigmas))
      eps = (xt - alpha * x0) / sigma
      return {"x0": x0, "eps": eps, "v": (alpha * xt - x0) / sigma}[
        prediction_type
      ]

    return denoise_fn

  for prediction_type in ("x0", "eps", "v"):
    sampled = sample(
      knowing(prediction_type),
      solver,
      noise(),
      keys(0),
      prediction_type=prediction_type,
    )
    np.testing.assert_allclose(sampled, x0, atol=1e-4)


def test_eps_cannot_start_without_signal():
  assert SDE.timesteps[0] == 999
  with pytest.raises(InputError, match="zero terminal SNR"):
    run(noise(), prediction_type="eps")
