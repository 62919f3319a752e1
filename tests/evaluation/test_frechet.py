"""Fréchet distances that are known, and those by a square root of a matrix."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from i2vgen_jax.errors import InputError
from i2vgen_jax.evaluation.frechet import frechet_distance


def features(seed, count, width, scale=1.0, shift=0.0):
  mixing = np.random.default_rng(99).normal(size=(width, width))
  rng = np.random.default_rng(seed)
  return scale * rng.normal(size=(count, width)) @ mixing + shift


@pytest.mark.parametrize(("n", "m"), [(60, 50), (6, 9)])
def test_value_is_that_of_the_formula(n, m):
  """Also with fewer clips than features, whose covariance is singular."""
  a, b = features(0, n, 12), features(1, m, 12, 1.5, 0.5)
  cov_a, cov_b = np.cov(a.T), np.cov(b.T)
  root = sqrtm(cov_a @ cov_b).real
  expected = np.sum((a.mean(0) - b.mean(0)) ** 2)
  expected += np.trace(cov_a + cov_b - 2 * root)
  assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)
  assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-5)


def test_known_distances():
  a = features(0, 40, 5)
  assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
  assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-9)
  shift = np.array([3.0, 0, 0, 4, 0])
  assert frechet_distance(a, a + shift) == pytest.approx(25)
  # Twice the deviation: (2 - 1)^2 times the variance.
  centred = a - a.mean(0)
  spread = np.trace(np.cov(centred.T))
  assert frechet_distance(centred, 2 * centred) == pytest.approx(spread)


def test_one_clip_has_no_covariance():
  with pytest.raises(InputError, match="1 and 4 clips have no covariance"):
    frechet_distance(features(0, 1, 3), features(0, 4, 3))
