"""Counts the work of a program before it is compiled, on any platform."""

import collections
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def flops(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
  """Multiplications and additions of matrix products and convolutions.

  Other operations are left out: in the networks of this package they are less
  than a hundredth. Of a conditional the most expensive branch is counted.

  Args:
    fn: function of arrays.
    *args: arrays or their abstract shapes, as for the keyword arguments.

  Raises:
    ValueError: a loop whose length is not known beforehand.
  """
  return _total(jax.make_jaxpr(fn)(*args, **kwargs).jaxpr)


def needed_flops(jaxpr: Jaxpr) -> int:
  """Like `flops`, without what `jax.checkpoint` computes a second time."""
  return needed_flops_by_path(jaxpr).total()


def needed_flops_by_path(jaxpr: Jaxpr) -> collections.Counter[str]:
  """The same for each path of a flax layer; see `equations`."""
  found = collections.Counter()
  for equation, times, path in equations(jaxpr):
    if "rematted_computation" not in path:
      found[path] += times * flops_of(equation)
  return found


def equations(
  jaxpr: Jaxpr, *, kernels: bool = False, times: int = 1, path: str = ""
) -> Iterator[tuple[JaxprEqn, int, str]]:
  """The innermost equations of a traced program.

  Args:
    jaxpr: the program.
    kernels: follow TPU kernels, rather than the plain code, where
      `kernels.platform` offers both. Pallas kernels are not entered.
    times: how often the program runs; with `kernels` on each device, otherwise
      on all.
    path: of the layer that it belongs to.

  Yields:
    An equation, how often it runs, and the path of its flax layer.

  Raises:
    ValueError: a loop whose length is not known beforehand.
  """
  of_platform = set()
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    here = f"{path}/{equation.source_info.name_stack}".strip("/")
    inner = [*_inner(equation.params)]
    if name == "platform_index":
      of_platform.update(map(id, equation.outvars))
    elif name == "while":
      raise ValueError("cannot count a loop of unknown length")
    elif name == "cond" and id(equation.invars[0]) in of_platform:
      # The default stands last.
      inner = inner[:1] if kernels else inner[-1:]
    elif name == "cond":
      inner = [max(inner, key=_total)]
    if not inner or name == "pallas_call":
      yield equation, times, here
      continue
    length = times * equation.params.get("length", 1)
    if name == "shard_map" and not kernels:
      # Its equations are those of one device.
      length *= equation.params["mesh"].size
    for program in inner:
      yield from equations(program, kernels=kernels, times=length, path=here)


def flops_of(equation: JaxprEqn) -> int:
  """Multiplications and additions of one equation."""
  outputs, inputs = equation.outvars, equation.invars
  match equation.primitive.name:
    case "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      length = math.prod(inputs[0].aval.shape[i] for i in contracted)
      return 2 * math.prod(outputs[0].aval.shape) * length
    case "conv_general_dilated":
      kernel = inputs[1].aval.shape
      features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
      return (
        2 * math.prod(outputs[0].aval.shape) * math.prod(kernel) // features
      )
  return 0


def _total(jaxpr: Jaxpr) -> int:
  return sum(times * flops_of(e) for e, times, _ in equations(jaxpr))


def _inner(params: dict[str, Any]) -> Iterator[Jaxpr]:
  for value in params.values():
    for each in value if isinstance(value, tuple | list) else (value,):
      if isinstance(each, ClosedJaxpr):
        yield each.jaxpr
      elif isinstance(each, Jaxpr):
        yield each
