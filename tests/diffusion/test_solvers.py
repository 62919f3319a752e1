"""Solvers against exact solutions: order of convergence, distributions.

For Gaussian data N(MEAN, SPREAD²) the best denoiser is known, and so is the
path of the ODE: with z = x / alpha and s = sigma / alpha,
(z - MEAN) / sqrt(SPREAD² + s²) stays constant.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i2vgen_jax.diffusion import solvers
from i2vgen_jax.diffusion.losses import per_row_rngs
from i2vgen_jax.diffusion.sampler import sample
from i2vgen_jax.diffusion.schedules import make_schedule
from i2vgen_jax.diffusion.timesteps import ddim_timesteps, spaced_timesteps
from i2vgen_jax.errors import InputError

LINEAR = make_schedule("linear_sd", False)
COSINE = make_schedule("cosine", True)
MEAN, SPREAD = 0.8, 0.4


def gaussian_denoiser(schedule, dtype=jnp.float32):
  """The best v prediction for N(MEAN, SPREAD²)."""
  alphas, sigmas = (
    jnp.asarray(a, dtype) for a in (schedule.alphas, schedule.sigmas)
  )

  def denoise_fn(xt, t):
    alpha, sigma = (a[t][:, None, None, None, None] for a in (alphas, sigmas))
    variance = alpha**2 * SPREAD**2 + sigma**2
    pull = (xt - alpha * MEAN) / variance
    # E[eps | xt] and E[x0 | xt] of a joint Gaussian.
    return alpha * sigma * pull - sigma * (MEAN + alpha * SPREAD**2 * pull)

  return denoise_fn


def run(schedule, solver, xt, seed=0):
  denoise_fn = gaussian_denoiser(schedule)
  return np.asarray(
    jax.jit(lambda x, r: sample(denoise_fn, solver, x, r))(
      xt, per_row_rngs(jax.random.key(seed), jnp.arange(len(xt)))
    )
  )


def without_last(solver):
  """Ends at the last timestep visited, instead of leaping to the end."""
  return solvers.Solver(*(column[:-1] for column in solver))


def quantile(schedule, xt, t):
  """Where xt lies in the exact distribution at t, in standard deviations."""
  alpha, sigma = schedule.alphas[t], schedule.sigmas[t]
  return (xt - alpha * MEAN) / np.hypot(alpha * SPREAD, sigma)


def points(n):
  return jnp.linspace(-2, 2, n, dtype=jnp.float32).reshape(1, 1, 1, n, 1)


@pytest.mark.parametrize(
  ("make", "order"),
  [(solvers.ddim, 1), (solvers.dpmpp_2m, 2), (solvers.heun, 2)],
)
def test_solvers_converge_to_the_exact_path_at_their_order(make, order):
  xt = points(5)
  start = quantile(LINEAR, xt, 704)
  errors = []
  for stride in (128, 64, 32):
    timesteps = np.arange(704.0, 191, -stride)
    solver = without_last(make(LINEAR, timesteps))
    end = quantile(LINEAR, run(LINEAR, solver, xt), 192)
    errors.append(np.abs(end - start).max())
  gains = np.log2(np.divide(errors[:-1], errors[1:]))
  assert errors[-1] < 0.03
  np.testing.assert_allclose(gains, order, atol=0.15)


@pytest.mark.parametrize("make", [solvers.ddim, solvers.dpmpp_2m, solvers.heun])
def test_solvers_reach_the_distribution_from_pure_noise(make):
  solver = make(COSINE, spaced_timesteps(100, 999))
  assert solver.timesteps[0] == 999
  assert all(np.all(np.isfinite(column)) for column in solver)
  xt = points(5)  # standard normal at 999, so its own quantile
  end = run(COSINE, without_last(solver), xt)
  np.testing.assert_allclose(
    quantile(COSINE, end, solver.timesteps[-1]), xt, atol=0.1
  )


SMALL = (4, 2, 16, 16, 4)


def draws(shape=(16, 4, 16, 16, 4)):
  return jax.random.normal(jax.random.key(3), shape)


@pytest.mark.parametrize(
  "solver",
  [
    pytest.param(
      solvers.dpmpp_2m(COSINE, spaced_timesteps(50, 999), eta=1.0), id="dpm-sde"
    ),
    pytest.param(
      solvers.dpmpp_2m(COSINE, spaced_timesteps(50, 999), eta=0.5),
      id="dpm-half-sde",
    ),
    pytest.param(
      solvers.ddim(COSINE, spaced_timesteps(200, 999), eta=1.0), id="ddpm"
    ),
    pytest.param(solvers.dpmpp_2m(COSINE, spaced_timesteps(50, 999)), id="ode"),
  ],
)
def test_stochastic_solvers_preserve_the_distribution(solver):
  """Before the leap to clean, and after it, up to what the leap smooths."""
  for part, t in ((without_last(solver), solver.timesteps[-1]), (solver, 0)):
    place = quantile(COSINE, run(COSINE, part, draws()), t)
    np.testing.assert_allclose(place.mean(), 0, atol=0.03)
    np.testing.assert_allclose(place.std(), 1, atol=0.03)


def test_sde_forgets_its_start_and_ode_does_not():
  xt = draws(SMALL)
  timesteps = spaced_timesteps(50, 999)

  def correlation(eta):
    solver = solvers.dpmpp_2m(COSINE, timesteps, eta=eta)
    x0 = run(COSINE, solver, xt)
    return np.corrcoef(x0.ravel(), np.asarray(xt).ravel())[0, 1]

  assert correlation(0.0) > 0.999
  assert abs(correlation(1.0)) < 0.3


def test_ddim_ends_at_timestep_zero_or_clean():
  timesteps = ddim_timesteps(50)
  xt = points(5)
  at_zero = run(COSINE, solvers.ddim(COSINE, timesteps), xt)
  clean = run(COSINE, solvers.ddim(COSINE, timesteps, to_clean=True), xt)
  # Both are the same x0 from timestep 1, one with noise of level 0 on it.
  gap = np.abs(at_zero - COSINE.alphas[0] * clean)
  assert 1e-4 < gap.max() < 3 * COSINE.sigmas[0]


def test_sdedit_starts_on_the_forward_process():
  x0 = jnp.full((2, 8, 32, 32, 4), 0.5)
  noise = jax.random.normal(jax.random.key(0), x0.shape)
  refine = make_schedule("logsnr_cosine_interp", True)
  xt = solvers.sdedit_start(x0, noise, refine, 599)
  np.testing.assert_allclose(xt.mean(), 0.23347326 * 0.5, atol=0.01)
  np.testing.assert_allclose(xt.std(), 0.97236323, rtol=0.01)
  quirk = solvers.sdedit_start(x0, noise, refine, 599, reference_scale=True)
  np.testing.assert_allclose(quirk / xt, 0.97236323, rtol=1e-6)


@pytest.mark.parametrize("t_max", [50, 599])
def test_refining_resamples_what_the_noise_removed(t_max):
  """Input and result are two draws of what xt leaves open."""
  refine = make_schedule("logsnr_cosine_interp", True)
  solver = solvers.dpmpp_2m(refine, spaced_timesteps(30, t_max), eta=1.0)
  x0 = MEAN + SPREAD * draws(SMALL)
  noise = jax.random.normal(jax.random.key(9), x0.shape)
  xt = solvers.sdedit_start(x0, noise, refine, solver.timesteps[0])
  refined = run(refine, solver, xt)
  level = refine.sigmas[t_max] / refine.alphas[t_max]
  open_spread = (SPREAD**-2 + level**-2) ** -0.5
  np.testing.assert_allclose(
    np.std(refined - x0), np.sqrt(2) * open_spread, rtol=0.05
  )
  np.testing.assert_allclose(np.mean(refined), MEAN, atol=0.02)
  np.testing.assert_allclose(np.std(refined), SPREAD, rtol=0.04)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
@pytest.mark.parametrize("make", [solvers.ddim, solvers.dpmpp_2m, solvers.heun])
def test_few_steps_work(make, num_steps):
  solver = make(COSINE, spaced_timesteps(num_steps, 599))
  ends = run(COSINE, solver, points(5))
  assert np.all(np.isfinite(ends)) and np.abs(ends).max() < 4
  evaluations = 2 * num_steps - 1 if make is solvers.heun else num_steps
  assert solver.num_evaluations == evaluations


def test_heun_has_99_evaluations_of_50_steps():
  refine = make_schedule("logsnr_cosine_interp", True)
  solver = solvers.heun(refine, spaced_timesteps(50, 599))
  assert solver.num_evaluations == 99


@pytest.mark.parametrize(
  "timesteps", [[], [1.0, 2.0], [5.0, 5.0], [1000.0, 1.0], [3.0, -1.0]]
)
def test_invalid_timesteps_are_refused(timesteps):
  timesteps = np.array(timesteps, np.float64)
  for make in (solvers.ddim, solvers.dpmpp_2m, solvers.heun):
    with pytest.raises(InputError, match="use values from 999 to 0"):
      make(COSINE, timesteps)


@pytest.mark.parametrize("eta", [-0.1, 1.5])
@pytest.mark.parametrize("make", [solvers.ddim, solvers.dpmpp_2m])
def test_eta_must_be_between_0_and_1(make, eta):
  with pytest.raises(InputError, match="use 0 to 1"):
    make(COSINE, ddim_timesteps(5), eta=eta)
