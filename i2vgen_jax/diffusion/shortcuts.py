"""Shortened evaluations of the network, which save time and lose quality.

A schedule, fixed before sampling, says for each evaluation

- whether it is guided: outside of an interval of noise levels the
  unconditional branch is left out (Kynkäänniemi et al. 2024), and
- whether it is whole: otherwise only the outermost layers run, on the features
  that the layers inside them had at the last whole evaluation (DeepCache, Ma et
  al. 2024).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from i2vgen_jax.diffusion.guidance import classifier_free
from i2vgen_jax.types import Array, Conditioning

# (xt, t, cond, features or None) -> (output, features)
Network = Callable[..., tuple[Array, Array]]


class Shortcuts(NamedTuple):
  """One entry per evaluation of the network.

  Attributes:
    guided: whether both branches run.
    whole: whether all layers run.
    shortens: whether any evaluation is shortened.
  """

  guided: Bool[np.ndarray, "n"]
  whole: Bool[np.ndarray, "n"]
  shortens: bool

  @classmethod
  def of(
    cls,
    timesteps: Int[np.ndarray, "n"],
    interval: tuple[int, int] | None,
    reuse_every: int,
  ) -> "Shortcuts":
    """The schedule of a solver.

    Args:
      timesteps: of its evaluations.
      interval: lowest and highest guided timestep; None if there is no
        guidance at all.
      reuse_every: number of evaluations of which the first is whole. The first
        guided one is whole too: the unconditional branch has no features yet.
    """
    low, high = interval or (0, -1)
    guided = (timesteps >= low) & (timesteps <= high)
    whole = np.zeros(len(timesteps), bool)
    last = -reuse_every
    for i in range(len(timesteps)):
      begins = guided[i] and (i == 0 or not guided[i - 1])
      if begins or i - last >= reuse_every:
        whole[i], last = True, i
    shortens = not whole.all() or (interval is not None and not guided.all())
    return cls(guided, whole, bool(shortens))

  @property
  def kinds(self) -> Int[np.ndarray, "n"]:
    """A number for each pair of `guided` and `whole`."""
    return 2 * self.guided.astype(np.int32) + self.whole

  @property
  def branches(self) -> Int32[np.ndarray, "n"]:
    """Index of each entry's kind among the kinds that occur, in order."""
    _, branches = np.unique(self.kinds, return_inverse=True)
    return branches.astype(np.int32)


def shortened(
  network: Network,
  shortcuts: Shortcuts,
  cond: Conditioning,
  null_cond: Conditioning | None,
  scale: Float[Array, ""] | float,
  rescale: float,
) -> Callable[..., tuple[Array, Array]]:
  """Classifier-free guidance with shortened evaluations, for the sampler.

  Args:
    network: returns its features beside its output, and runs its outermost
      layers alone if features are given.
    shortcuts: the schedule.
    cond: see `classifier_free`, as for the rest.

  Returns:
    denoise(xt, t, branch, features) -> (output, features) for an evaluation of
    one of `shortcuts.branches`, with features of [uncond, cond].
  """

  def evaluation(kind: int) -> Callable[..., tuple[Array, Array]]:
    guided, whole = divmod(kind, 2)

    def evaluate(xt, t, features):
      # The conditional rows are last; without guidance only they are used.
      count = features.shape[0] if guided else xt.shape[0]
      kept = features[: features.shape[0] - count]
      used = features[features.shape[0] - count :]
      new = []

      def denoise(x, t, c):
        output, at = network(x, t, c, None if whole else used)
        new.append(at)
        return output

      null = null_cond if guided else None
      output = classifier_free(denoise, cond, null, scale, rescale)(xt, t)
      [at] = new
      at = jnp.concatenate([kept, at.astype(features.dtype)])
      return output.astype(jnp.float32), at

    return evaluate

  evaluations = [evaluation(int(kind)) for kind in np.unique(shortcuts.kinds)]

  def denoise(xt, t, branch, features):
    return jax.lax.switch(branch, evaluations, xt, t, features)

  return denoise
