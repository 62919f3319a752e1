"""Classifier-free guidance, wrapped around a denoise_fn."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from i2vgen_jax.errors import InputError
from i2vgen_jax.types import Array, Conditioning


def classifier_free(
  denoise_fn: Callable[..., Float[Array, "b ..."]],
  cond: Conditioning,
  null_cond: Conditioning | None,
  scale: Float[Array, ""] | float,
  rescale: float = 0.0,
) -> Callable[..., Float[Array, "b ..."]]:
  """uncond + scale (cond - uncond) on the raw output, in float32.

  Both branches go through the network as one batch, [uncond, cond].

  Args:
    denoise_fn: (xt, t, cond) -> output.
    null_cond: conditioning of the unconditional branch, with the members and
      shapes of `cond`; members that guidance should ignore are equal in both.
      None turns guidance off: the network runs on `cond` alone.
    scale: guidance scale; may be traced.
    rescale: fraction (0 to 1) by which the standard deviation of the result
      is moved back to that of the conditional output (Lin et al. 2023,
      section 3.4; 0.2 in public variant (b)).

  Returns:
    guided(xt, t) -> output.

  Raises:
    InputError: cond and null_cond have different members.
  """
  if null_cond is None:
    return lambda xt, t: denoise_fn(xt, t, cond)
  if jax.tree.structure(cond) != jax.tree.structure(null_cond):
    raise InputError(
      "cond and null_cond of classifier-free guidance have different members; "
      "give null_cond exactly the members of cond"
    )
  both = _concatenate(null_cond, cond)

  def guided(xt, t):
    output = denoise_fn(_concatenate(xt, xt), _concatenate(t, t), both)
    uncond, conditional = jnp.split(output.astype(jnp.float32), 2)
    output = uncond + scale * (conditional - uncond)
    if not rescale:
      return output
    ratio = _std(conditional) / (_std(output) + 1e-12)
    return output * (rescale * ratio + 1 - rescale)

  return guided


def _concatenate(first, second):
  return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def _std(x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
  """Unbiased standard deviation of each row."""
  return jnp.std(x, axis=tuple(range(1, x.ndim)), ddof=1, keepdims=True)
