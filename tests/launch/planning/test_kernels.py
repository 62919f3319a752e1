"""Times of Pallas kernels."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from i2vgen_jax.flops import equations
from launch.planning import chips, kernels
from launch.planning.kernels import Kernel

V5P = chips.CHIPS["v5p"]


def test_time_is_that_of_bundles_or_of_traffic():
  kernel = Kernel(b"", steps=10, traffic=1000)
  assert kernel.seconds(3500, V5P) == pytest.approx(10 * 3500 / 1.75e9)
  shared = Kernel(b"", steps=10, traffic=1000, parallel=5)
  # Two cores share the steps.
  assert shared.seconds(3500, V5P) == pytest.approx(10 * 3500 / 1.75e9 / 2)
  slow = Kernel(b"", steps=10, traffic=2765 * 10**9)
  assert slow.seconds(3500, V5P) == pytest.approx(1.0)


def test_a_kernel_takes_as_long_as_its_matrix_products():
  # Both sides of a product that the matrix unit holds are filled up to 128.
  product = 7, 1000, 64, 256
  kernel = Kernel(b"", steps=10, traffic=1, parallel=2, products=(product,))
  seconds = 10 * 7 * 2 * 1000 * 128 * 256 / V5P.peak
  assert kernel.seconds(1, V5P) == pytest.approx(seconds)


def test_products_and_parallel_parts_of_a_kernel():
  def scores(q, k, y):
    y[...] = jax.lax.dot_general(q[...], k[...], (((1,), (1,)), ((), ())))

  def call(q, k):
    shape = jax.ShapeDtypeStruct((16, 256), jnp.float32)
    return pl.pallas_call(scores, out_shape=shape)(q, k)

  arrays = [jax.ShapeDtypeStruct((n, 128), jnp.float32) for n in (16, 256)]
  (equation,) = jax.make_jaxpr(call)(*arrays).jaxpr.eqns
  assert kernels.kernel_of(equation).products == ((1, 16, 128, 256),)
  [equation] = jax.make_jaxpr(jax.vmap(call))(
    *(jax.ShapeDtypeStruct((6, *x.shape), x.dtype) for x in arrays)
  ).jaxpr.eqns
  assert kernels.kernel_of(equation).parallel == 6


def test_bundles_grow_with_the_work_of_a_block():
  def kernel_of(count):
    def sine(x, y):
      y[...] = jnp.sin(x[...])

    def call(x):
      block = pl.BlockSpec((8, 128 * count), lambda i: (i, 0))
      return pl.pallas_call(
        sine,
        grid=(4,),
        in_specs=[block],
        out_specs=block,
        out_shape=x,
      )(x)

    x = jax.ShapeDtypeStruct((32, 128 * count), jnp.float32)
    jaxpr = jax.make_jaxpr(call)(x).jaxpr
    (equation,) = [e for e, *_ in equations(jaxpr, kernels=True)]
    return kernels.kernel_of(equation)

  small, large = kernel_of(1), kernel_of(64)
  assert (small.steps, small.traffic) == (4, 2 * 32 * 128 * 4)
  seen = []
  found = kernels.count_bundles([small, large, small], "v5e:1x1", seen.append)
  assert seen == [1, 2]
  assert 0 < found[small.key] < found[large.key]
