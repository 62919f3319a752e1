"""Counted matrix products against arithmetic."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from i2vgen_jax import sharding
from i2vgen_jax.flops import equations, flops

A, B = jnp.ones((4, 5, 6)), jnp.ones((4, 6, 7))


def test_products_and_convolutions():
  assert flops(jnp.matmul, A, B) == 2 * 4 * 5 * 6 * 7
  x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 16))

  def conv(x, kernel):
    return lax.conv_general_dilated(
      x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  assert flops(conv, x, kernel) == 2 * (2 * 4 * 4 * 16) * (3 * 3 * 3)


def test_inner_programs_are_counted_as_often_as_they_run():
  one = flops(jnp.matmul, A, B)
  body = lambda carry, _: (carry + jnp.matmul(A, B).sum(), None)  # noqa: E731
  assert flops(lambda: lax.scan(body, 0.0, None, length=9)[0]) == 9 * one
  assert flops(jax.jit(jax.checkpoint(jnp.matmul)), A, B) == one
  gradient = jax.grad(lambda a, b: jnp.matmul(a, b).sum(), (0, 1))
  # The values of the forward pass are not needed, but it is not removed.
  assert flops(gradient, A, B) == 3 * one
  branches = [lambda: 0.0, lambda: jnp.matmul(A, B).sum()]
  assert flops(lambda i: lax.switch(i, branches), 0) == one


def test_the_parts_of_all_devices_are_counted():
  rows = jnp.ones((8, 5))

  def parts(x):
    product = lambda part: part @ jnp.ones((5, 7))  # noqa: E731
    return sharding.on_each_device(product, (x,), [(sharding.ROWS,)])

  with jax.set_mesh(sharding.make_mesh()):
    assert flops(parts, rows) == 2 * 8 * 5 * 7


def test_shapes_are_enough():
  shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (A, B)]
  assert flops(jnp.matmul, *shapes) == flops(jnp.matmul, A, B)


def test_loops_of_unknown_length_are_refused():
  with pytest.raises(ValueError, match="unknown length"):
    flops(lambda n: lax.while_loop(lambda i: i < n, lambda i: i + 1, 0), 3)


def test_equations_follow_kernels_or_plain_code():
  def choose(x):
    kernel = lambda x: jnp.sin(x)  # noqa: E731
    return lax.platform_dependent(x, tpu=kernel, default=jnp.cos)

  jaxpr = jax.make_jaxpr(choose)(1.0).jaxpr
  names = [e.primitive.name for e, *_ in equations(jaxpr)]
  assert "cos" in names and "sin" not in names
  names = [e.primitive.name for e, *_ in equations(jaxpr, kernels=True)]
  assert "sin" in names and "cos" not in names


def test_equations_have_the_path_of_their_layer():
  def layer(x):
    with jax.named_scope("layer"):
      return lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=3)[0]

  jaxpr = jax.make_jaxpr(layer)(1.0).jaxpr
  (found,) = [e for e in equations(jaxpr) if e[0].primitive.name == "sin"]
  assert found[1] == 3 and found[2].startswith("layer")
