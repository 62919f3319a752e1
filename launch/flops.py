"""Counts the work of a program before it is compiled, on any platform."""

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
  return _count(jax.make_jaxpr(fn)(*args, **kwargs).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
  return sum(map(_count_equation, jaxpr.eqns))


def _count_equation(equation: JaxprEqn) -> int:
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
    case "while":
      raise ValueError("cannot count a loop of unknown length")
    case "cond":
      return max(_count(b.jaxpr) for b in equation.params["branches"])
  length = equation.params.get("length", 1)
  return length * sum(map(_count, _inner(equation.params)))


def _inner(params: dict[str, Any]) -> Iterator[Jaxpr]:
  for value in params.values():
    if isinstance(value, ClosedJaxpr):
      yield value.jaxpr
    elif isinstance(value, Jaxpr):
      yield value
