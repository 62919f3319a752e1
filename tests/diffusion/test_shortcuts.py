"""Schedules of shortened evaluations, and what runs in each of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i2vgen_jax.diffusion import solvers
from i2vgen_jax.diffusion.guidance import classifier_free
from i2vgen_jax.diffusion.sampler import sample
from i2vgen_jax.diffusion.schedules import make_schedule
from i2vgen_jax.diffusion.shortcuts import Shortcuts, shortened
from i2vgen_jax.diffusion.timesteps import spaced_timesteps
from i2vgen_jax.types import Conditioning

SCHEDULE = make_schedule("cosine", True)
SOLVER = solvers.ddim(SCHEDULE, spaced_timesteps(8, 999, spacing="trailing"))
SHAPE = (2, 3, 4, 4, 2)
COND = Conditioning(fps=jnp.array([2.0, 3.0]))
NULL = Conditioning(fps=jnp.array([0.5, -1.0]))


def flags(values):
  return "".join("X" if value else "." for value in values)


@pytest.mark.parametrize(
  ("interval", "every", "guided", "whole"),
  [
    ((0, 999), 1, "XXXXXXXX", "XXXXXXXX"),
    ((0, 999), 3, "XXXXXXXX", "X..X..X."),
    (None, 4, "........", "X...X..."),
    ((200, 700), 1, "...XXXX.", "XXXXXXXX"),
    # The unconditional branch has no features before the fourth evaluation.
    ((200, 700), 5, "...XXXX.", "X..X...."),
  ],
)
def test_schedule(interval, every, guided, whole):
  found = Shortcuts.of(SOLVER.timesteps, interval, every)
  assert (flags(found.guided), flags(found.whole)) == (guided, whole)
  plain = interval in (None, (0, 999)) and every == 1
  assert found.shortens == (not plain)


def inner(xt, t, cond):
  """Slow part of a small network; needs t only where it is told to."""
  rows = (cond.fps + 1e-3 * t).reshape(-1, 1, 1, 1, 1)
  return jnp.tanh(rows * jnp.roll(xt, 1, axis=2))


def network(xt, t, cond, features):
  if features is None:
    features = inner(xt, t, cond)
  return 0.5 * xt + features * cond.fps.reshape(-1, 1, 1, 1, 1), features


def start():
  return jax.random.normal(jax.random.key(0), SHAPE)


def run(shortcuts, null_cond=NULL, network=network):
  denoise = shortened(network, shortcuts, COND, null_cond, 3.0, 0.2)
  xt = start()
  rows = 2 if null_cond is None else 4
  features = jnp.zeros((rows, *SHAPE[1:]))
  rngs = jax.random.split(jax.random.key(1), 2)
  return np.asarray(
    jax.jit(
      lambda x: sample(
        denoise,
        SOLVER,
        x,
        rngs,
        features=features,
        branches=shortcuts.branches,
      )
    )(xt)
  )


def plain(null_cond=NULL):
  denoise = classifier_free(
    lambda x, t, c: network(x, t, c, None)[0], COND, null_cond, 3.0, 0.2
  )
  rngs = jax.random.split(jax.random.key(1), 2)
  return np.asarray(
    jax.jit(lambda x: sample(denoise, SOLVER, x, rngs))(start())
  )


@pytest.mark.parametrize("null_cond", [NULL, None])
def test_a_schedule_of_whole_evaluations_changes_nothing(null_cond):
  interval = (0, 999) if null_cond else None
  whole = Shortcuts.of(SOLVER.timesteps, interval, 1)
  np.testing.assert_allclose(
    run(whole, null_cond), plain(null_cond), rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize("null_cond", [NULL, None])
def test_reuse_is_exact_where_the_features_do_not_change(null_cond):
  def steady(xt, t, cond, features):
    if features is None:
      features = jnp.broadcast_to(cond.fps.reshape(-1, 1, 1, 1, 1), xt.shape)
    return jnp.tanh(xt) + features, features

  interval = (0, 999) if null_cond else None
  results = [
    run(Shortcuts.of(SOLVER.timesteps, interval, every), null_cond, steady)
    for every in (1, 3)
  ]
  np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("interval", "every"), [((0, 999), 3), ((200, 700), 1), ((200, 700), 3)]
)
def test_shortened_sampling_equals_a_plain_loop(interval, every):
  shortcuts = Shortcuts.of(SOLVER.timesteps, interval, every)
  x, kept = start(), {}
  for i in range(SOLVER.num_evaluations):
    at = type(SOLVER)(*(values[i] for values in SOLVER))
    t = jnp.full(2, at.timesteps)

    def denoise(x, t, cond, i=i):
      # Rows of both branches at once, or the conditional ones alone.
      rows = ["null", "cond"] if len(x) == 4 else ["cond"]
      if shortcuts.whole[i]:
        new = jnp.split(inner(x, t, cond), len(rows))
        kept.update(zip(rows, new, strict=True))
      used = jnp.concatenate([kept[name] for name in rows])
      return network(x, t, cond, used)[0]

    null = NULL if shortcuts.guided[i] else None
    v = classifier_free(denoise, COND, null, 3.0, 0.2)(x, t)
    x0 = at.alphas * x - at.sigmas * v
    x = at.keep * x + at.denoised * x0
  result = run(shortcuts)
  np.testing.assert_allclose(result, x, rtol=1e-4, atol=1e-4)
  assert np.abs(result - plain()).max() > 1e-2
