"""Arrays and jaxprs for the tests of single networks."""

import jax
import numpy as np


def draw(*shape, seed=0):
  """Normal noise."""
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def count(tree):
  """Number of values in all arrays of a tree."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def operand_dtypes(fn, *args):
  """Dtypes of the first operand of each primitive that `fn` runs."""
  found = {}
  for equation in equations(jax.make_jaxpr(fn)(*args).jaxpr):
    if equation.invars:
      found.setdefault(equation.primitive.name, set()).add(
        equation.invars[0].aval.dtype.name
      )
  return found


def equations(jaxpr):
  """Equations of a jaxpr and of the jaxprs inside it."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.core.jaxprs_in_params(equation.params):
      yield from equations(inner)
