"""Whole trajectories against diffusers, and against a derivation of our own.

The denoiser is a fixed nonlinear function, so that every step matters.
"""

import math

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from i2vgen_jax.diffusion import solvers
from i2vgen_jax.diffusion.losses import per_row_rngs
from i2vgen_jax.diffusion.sampler import sample
from i2vgen_jax.diffusion.schedules import make_schedule
from i2vgen_jax.diffusion.timesteps import ddim_timesteps, spaced_timesteps

SHAPE = (2, 1, 3, 4, 2)
RNG = jax.random.key(11)


def start():
  return np.random.default_rng(0).standard_normal(SHAPE)


def v(x, t, module):
  """A toy network; `module` is jnp or np."""
  return module.sin(1.3 * x + t / 250) - 0.4 * x


def run(solver, xt):
  def denoise_fn(xt, t):
    t = t.astype(jnp.float32)[:, None, None, None, None]
    return v(xt, t, jnp)

  xt = jnp.asarray(xt, jnp.float32)
  rngs = per_row_rngs(RNG, jnp.arange(len(xt)))
  return np.asarray(jax.jit(lambda x: sample(denoise_fn, solver, x, rngs))(xt))


def step_noise(step):
  """Row i draws from fold_in(rng, i), then step by step."""
  return np.stack(
    [
      jax.random.normal(
        jax.random.fold_in(jax.random.fold_in(RNG, row), step), SHAPE[1:]
      )
      for row in range(SHAPE[0])
    ]
  ).astype(np.float64)


def follow(scheduler, num_steps, **kwargs):
  """The trajectory of a diffusers scheduler, in float64."""
  scheduler.set_timesteps(num_steps)
  x = torch.tensor(start())
  if isinstance(scheduler, diffusers.HeunDiscreteScheduler):
    x = x * scheduler.init_noise_sigma
  for i, t in enumerate(scheduler.timesteps):
    x_in = scheduler.scale_model_input(x, t).numpy()
    output = torch.tensor(v(x_in, float(t), np))
    if kwargs.get("noisy"):
      extra = {"variance_noise": torch.tensor(step_noise(i))}
    else:
      extra = {}
    eta = {"eta": kwargs["eta"]} if "eta" in kwargs else {}
    x = scheduler.step(output, t, x, **eta, **extra).prev_sample
  return x.numpy()


def released_scheduler():
  """The published scheduler config, on tables of full precision."""
  scheduler = diffusers.DDIMScheduler(
    beta_schedule="squaredcos_cap_v2",
    rescale_betas_zero_snr=True,
    prediction_type="v_prediction",
    timestep_spacing="leading",
    steps_offset=1,
    set_alpha_to_one=True,
    clip_sample=False,
  )
  schedule = make_schedule("cosine", True)
  np.testing.assert_allclose(
    scheduler.alphas_cumprod, schedule.alphas**2, atol=2e-6
  )
  # Theirs are float32 and off by a thousandth where little signal is left.
  scheduler.alphas_cumprod = torch.tensor(schedule.alphas**2)
  return schedule, scheduler


@pytest.mark.parametrize("num_steps", [1, 7, 30, 50])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_follows_diffusers(num_steps, eta):
  schedule, scheduler = released_scheduler()
  solver = solvers.ddim(
    schedule, ddim_timesteps(num_steps), eta=eta, to_clean=True
  )
  oracle = follow(scheduler, num_steps, eta=eta, noisy=True)
  np.testing.assert_allclose(run(solver, start()), oracle, atol=2e-5)


def test_ddim_ending_at_timestep_zero_follows_diffusers():
  schedule, scheduler = released_scheduler()
  scheduler.final_alpha_cumprod = torch.tensor(schedule.alphas[0] ** 2)
  oracle = follow(scheduler, 50, eta=0.0)
  solver = solvers.ddim(schedule, ddim_timesteps(50))
  np.testing.assert_allclose(run(solver, start()), oracle, atol=2e-5)


LINEAR_SD = {
  "beta_start": 0.00085,
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "prediction_type": "v_prediction",
  "timestep_spacing": "trailing",
}


@pytest.mark.parametrize("num_steps", [1, 2, 20])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_dpmpp_2m_follows_diffusers(num_steps, eta):
  algorithm = "sde-dpmsolver++" if eta else "dpmsolver++"
  scheduler = diffusers.DPMSolverMultistepScheduler(
    **LINEAR_SD, algorithm_type=algorithm, final_sigmas_type="zero"
  )
  oracle = follow(scheduler, num_steps, noisy=True)
  schedule = make_schedule("linear_sd", False)
  solver = solvers.dpmpp_2m(schedule, spaced_timesteps(num_steps, 999), eta=eta)
  np.testing.assert_allclose(run(solver, start()), oracle, atol=5e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 20])
def test_heun_follows_diffusers(num_steps):
  scheduler = diffusers.HeunDiscreteScheduler(**LINEAR_SD)
  oracle = follow(scheduler, num_steps)
  schedule = make_schedule("linear_sd", False)
  # Their variable is x / alpha and starts at its noise level.
  scale = scheduler.init_noise_sigma * schedule.alphas[999]
  solver = solvers.heun(schedule, spaced_timesteps(num_steps, 999))
  np.testing.assert_allclose(
    run(solver, start() * float(scale)), oracle, atol=5e-5
  )


# The refine stage once more, as written down for public variant (b): scalar
# float64 arithmetic on z = x / alpha over its noise level s = sigma / alpha.


def level(i):
  """s at a whole timestep below the last."""
  clean = 1 - i / 999
  noisiest, cleanest = math.atan(math.exp(7.5)), math.atan(math.exp(-7.5))
  plain = -2 * math.log(math.tan(noisiest + clean * (cleanest - noisiest)))
  log_snr = clean * (plain - 2 * math.log(2)) + (1 - clean) * (
    plain - 2 * math.log(4)
  )
  return math.exp(-log_snr / 2)


def fractional_level(t):
  low, part = math.floor(t), t - math.floor(t)
  return math.exp(
    (1 - part) * math.log(level(low)) + part * math.log(level(low + 1))
  )


def rounded_timestep(s):
  """The timestep of a level, by bisection, then to the nearest whole one."""
  low, high = 0.0, 998.0
  while high - low > 1e-9:
    middle = (low + high) / 2
    low, high = (
      (middle, high) if fractional_level(middle) < s else (low, middle)
    )
  return round(low)


def denoised(z, s):
  x = z / math.sqrt(1 + s * s)
  t = rounded_timestep(s)
  alpha = 1 / math.sqrt(1 + level(t) ** 2)
  sigma = math.sqrt(1 - alpha**2)
  return alpha * x - sigma * v(x, t, np)


def refine_timesteps(num_steps, dropped):
  n = num_steps + dropped
  timesteps = []
  while len(timesteps) < n:
    timesteps.append(599 - len(timesteps) * 600 / n)
  return timesteps[:num_steps]


def dpm_sde_by_hand(z, num_steps):
  levels = [fractional_level(t) for t in refine_timesteps(num_steps, 1)]
  last, last_h = None, None
  for i, s in enumerate(levels):
    d = denoised(z, s)
    if i == len(levels) - 1:
      return d
    h = math.log(s / levels[i + 1])
    gain = 1 - math.exp(-2 * h)
    z = levels[i + 1] / s * math.exp(-h) * z + gain * d
    if last is not None:
      z = z + 0.5 * gain * (h / last_h) * (d - last)
    z = z + levels[i + 1] * math.sqrt(1 - math.exp(-2 * h)) * step_noise(i)
    last, last_h = d, h
  raise AssertionError


def heun_by_hand(z, num_steps):
  levels = [fractional_level(t) for t in refine_timesteps(num_steps, 0)]
  for s, below in zip(levels, [*levels[1:], 0.0], strict=True):
    slope = (z - denoised(z, s)) / s
    ahead = z + slope * (below - s)
    if below:
      second = (ahead - denoised(ahead, below)) / below
      ahead = z + (slope + second) / 2 * (below - s)
    z = ahead
  return z


@pytest.mark.parametrize("reference_scale", [False, True])
@pytest.mark.parametrize("kind", ["dpm_sde", "heun"])
def test_refine_trajectory_matches_the_reference(kind, reference_scale):
  schedule = make_schedule("logsnr_cosine_interp", True)
  if kind == "dpm_sde":
    timesteps = spaced_timesteps(30, 599, drop_last=True)
    solver = solvers.dpmpp_2m(schedule, timesteps, eta=1.0)
  else:
    solver = solvers.heun(schedule, spaced_timesteps(50, 599))
  x0 = start()
  noise = np.random.default_rng(1).standard_normal(SHAPE)
  xt = solvers.sdedit_start(
    x0.astype(np.float32),
    noise.astype(np.float32),
    schedule,
    599,
    reference_scale=reference_scale,
  )

  s = level(599)
  alpha, sigma = 1 / math.hypot(1, s), s / math.hypot(1, s)
  by_hand = alpha * x0 + sigma * noise
  z = by_hand * s if reference_scale else by_hand / alpha
  oracle = dpm_sde_by_hand(z, 30) if kind == "dpm_sde" else heun_by_hand(z, 50)
  np.testing.assert_allclose(run(solver, xt), oracle, atol=5e-5)


def test_network_gets_rounded_timesteps():
  schedule = make_schedule("logsnr_cosine_interp", True)
  timesteps = spaced_timesteps(30, 599, drop_last=True)
  solver = solvers.dpmpp_2m(schedule, timesteps, eta=1.0)
  assert solver.timesteps[:4].tolist() == [599, 580, 560, 541]
  assert solver.timesteps[-1] == 38
