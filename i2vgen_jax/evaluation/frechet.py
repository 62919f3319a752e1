"""Distance between two sets of clips by the features of a network."""

import numpy as np
from jaxtyping import Float

from i2vgen_jax.errors import InputError


def frechet_distance(
  a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]
) -> float:
  """Squared Fréchet distance of two normal distributions fitted to features.

  With the features of an I3D network it is the Fréchet video distance
  (Unterthiner et al. 2018, equation 3; FID in Heusel et al. 2017):

      |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2))

  With centred rows A and B, cov_a = A'A and cov_b = B'B, and the trace of the
  square root is the sum of the singular values of A B'. This needs no square
  root of a matrix, which is unstable where there are fewer clips than features.

  Few clips give a large distance even to the same distribution: compare values
  of equal numbers of clips only.

  Args:
    a: features of each clip of one set.
    b: features of each clip of the other set.

  Raises:
    InputError: a set has fewer than two clips.
  """
  if min(len(a), len(b)) < 2:
    raise InputError(
      f"{len(a)} and {len(b)} clips have no covariance; give at least two each"
    )
  mean_a, mean_b = a.mean(0), b.mean(0)
  centred_a = (a - mean_a) / np.sqrt(len(a) - 1)
  centred_b = (b - mean_b) / np.sqrt(len(b) - 1)
  root = np.linalg.svd(centred_a @ centred_b.T, compute_uv=False).sum()
  spread = np.sum(centred_a**2) + np.sum(centred_b**2) - 2 * root
  # Rounding can leave a tiny negative number for equal sets.
  return float(max(np.sum((mean_a - mean_b) ** 2) + spread, 0.0))
