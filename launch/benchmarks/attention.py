"""Modelled speed of self-attention on a TPU by the sizes of its blocks.

    python -m launch.benchmarks.attention --topology v5e:1x1 --length 14080

The kernel of `i2vgen_jax.kernels.flash_attention` beside JAX's splash
attention, each first with the blocks that this repository chooses. Forward
counts 4 n^2 d operations for each head, backward 10 n^2 d.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from i2vgen_jax.errors import InputError
from i2vgen_jax.flops import equations
from i2vgen_jax.kernels import flash_attention as flash
from launch import arguments
from launch.arguments import Count
from launch.benchmarks.table import row
from launch.cli import exit_status
from launch.planning import chips, kernels

# Queries in a block, and keys at a time.
OTHERS = ((1408, 512), (1024, 1024), (1760, 1280), (1408, 2560))
# Queries, keys, and keys at a time of a block.
SPLASH_OTHERS = ((1024, 1024, 512), (1408, 1408, 128), (1536, 2048, 256))
HEAD_DIM = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
  """Prints the modelled speed of attention by its blocks.

  Attributes:
    topology: one chip, such as v5e:1x1.
    length: number of tokens.
    heads: number of heads of 64 channels.
  """

  topology: str = "v5e:1x1"
  length: Count = 14080
  heads: Count = 5


def rows(args: Arguments) -> Iterator[str]:
  """The table, row by row: TFLOP a second."""
  yield row("blocks", "forward", "backward")
  n = args.length
  for blocks in dict.fromkeys((flash.flash_blocks(n), *OTHERS)):
    kernel = functools.partial(flash.forward, block_q=blocks[0], step=blocks[1])
    yield row(_name("flash", blocks), _speed(args, kernel, n, n, 4), "")
  chosen = flash.splash_blocks(n, n, HEAD_DIM)
  for blocks in dict.fromkeys((chosen, *SPLASH_OTHERS)):
    kernel, padded = flash.splash_kernel(n, n, args.heads, *blocks)
    kernel = jax.vmap(kernel)

    def backward(
      *args: jax.Array, kernel: Callable[..., jax.Array] = kernel
    ) -> list[jax.Array]:
      y, pullback = jax.vjp(kernel, *args)
      return pullback(y)

    speeds = [
      _speed(args, fn, *padded, products)
      for fn, products in ((kernel, 4), (backward, 10))
    ]
    yield row(_name("splash", blocks), *speeds)


def _name(kernel: str, blocks: tuple[int, ...]) -> str:
  return f"{kernel} {', '.join(map(str, blocks))}"


def _speed(
  args: Arguments, fn: Callable[..., jax.Array], n: int, m: int, products: int
) -> str:
  """Of the last kernel of fn, for n queries and m keys.

  The backward pass of splash attention runs the forward kernel first.
  """
  shapes = [
    jax.ShapeDtypeStruct((1, args.heads, tokens, HEAD_DIM), jnp.bfloat16)
    for tokens in (n, m, m)
  ]
  traced = jax.jit(fn).trace(*shapes)
  *_, call = (
    equation
    for equation, *_ in equations(traced.jaxpr.jaxpr, kernels=True)
    if equation.primitive.name == "pallas_call"
  )
  call = kernels.kernel_of(call)
  try:
    count = kernels.count_bundles([call], args.topology, lambda done: None)
  except InputError:
    return "too large"
  seconds = call.seconds(count[call.key], chips.chip_of(args.topology))
  work = products * args.heads * args.length**2 * HEAD_DIM
  return f"{work / seconds / 1e12:.1f}"


def main(argv: list[str] | None = None) -> None:
  args = arguments.parse(
    Arguments, argv, "python -m launch.benchmarks.attention"
  )
  # Programs for a TPU that is not here cannot be kept.
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_enable_compilation_cache", False)
  for line in rows(args):
    print(line, flush=True)


if __name__ == "__main__":
  sys.exit(exit_status(main))
