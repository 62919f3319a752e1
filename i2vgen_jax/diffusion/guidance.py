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
  scale: float | Float[Array, ""],
  rescale: float = 0.0,
) -> Callable[..., Float[Array, "b ..."]]:
  """uncond + scale (cond - uncond) on the raw output, in float32.

  Both branches go through the network as one batch, [uncond, cond].

  Args:
    denoise_fn: (xt, t, cond) -> output.
    cond: the conditional branch.
    null_cond: the unconditional branch, with the members and shapes of
      `cond`; what guidance should not push on is the same in both. None is
      no guidance: the network sees the conditional branch alone.
    scale: guidance scale; it may be traced.
    rescale: how far (0 to 1) the result takes back the standard deviation
      of the conditional output (Lin et al. 2023, section 3.4; 0.2 in public
      variant (b)).

  Returns:
    guided(xt, t) -> output.

  Raises:
    InputError: cond and null_cond differ in their members.
  """
  if null_cond is None:
    return lambda xt, t: denoise_fn(xt, t, cond)
  if jax.tree.structure(cond) != jax.tree.structure(null_cond):
    raise InputError(
      "the two conditionings of guidance have different members, in "
      "null_cond; give it exactly those of cond"
    )
  both = _stack(null_cond, cond)

  def guided(xt, t):
    output = denoise_fn(_stack(xt, xt), _stack(t, t), both)
    uncond, conditional = jnp.split(output.astype(jnp.float32), 2)
    output = uncond + scale * (conditional - uncond)
    return _rescale(output, conditional, rescale) if rescale else output

  return guided


def _stack(first, second):
  return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def _rescale(
  output: Float[Array, "b ..."],
  conditional: Float[Array, "b ..."],
  rescale: float,
) -> Float[Array, "b ..."]:
  def std(x):
    axes = tuple(range(1, x.ndim))
    return jnp.std(x, axis=axes, ddof=1, keepdims=True)

  ratio = std(conditional) / (std(output) + 1e-12)
  return output * (rescale * ratio + 1 - rescale)
