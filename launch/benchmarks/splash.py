"""Modelled speed of splash attention on a TPU by the sizes of its blocks.

    python -m launch.benchmarks.splash --topology v5e:1x1 --length 14080

The first line has the blocks that `i2vgen_jax.kernels.attention` chooses.
Forward counts 4 n^2 d operations for each head, backward 10 n^2 d.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from i2vgen_jax.errors import InputError
from i2vgen_jax.flops import equations
from i2vgen_jax.kernels.attention import splash_blocks, splash_kernel
from launch import arguments
from launch.arguments import Count
from launch.benchmarks.table import row
from launch.planning import chips, kernels

# Queries, keys, and keys at a time of a block.
OTHERS = (
  (1024, 1024, 512),
  (1280, 1280, 256),
  (1408, 1408, 128),
  (1536, 2048, 256),
)
HEAD_DIM = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
  """Prints the modelled speed of splash attention by its blocks.

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
  yield row("queries, keys, at a time", "forward", "backward")
  chosen = splash_blocks(args.length, args.length, HEAD_DIM)
  for sizes in dict.fromkeys((chosen, *OTHERS)):
    speeds = [*_speeds(args, sizes)]
    yield row(", ".join(map(str, sizes)), *speeds)


def _speeds(args: Arguments, sizes: tuple[int, int, int]) -> Iterator[str]:
  kernel, padded = splash_kernel(args.length, args.length, args.heads, *sizes)
  shapes = [
    jax.ShapeDtypeStruct((args.heads, n, HEAD_DIM), jnp.bfloat16)
    for n in (padded[0], padded[1], padded[1])
  ]
  work = args.heads * args.length**2 * HEAD_DIM
  chip = chips.chip_of(args.topology)

  def backward(q: jax.Array, k: jax.Array, v: jax.Array) -> list[jax.Array]:
    y, pullback = jax.vjp(kernel, q, k, v)
    return pullback(y)

  for fn, products in ((kernel, 4), (backward, 10)):
    traced = jax.jit(fn).trace(*shapes)
    # The backward pass runs the forward kernel first.
    *_, call = (
      equation
      for equation, *_ in equations(traced.jaxpr.jaxpr, kernels=True)
      if equation.primitive.name == "pallas_call"
    )
    call = kernels.kernel_of(call)
    try:
      count = kernels.count_bundles([call], args.topology, lambda done: None)
    except InputError:
      yield "too large"
      continue
    seconds = call.seconds(count[call.key], chip)
    yield f"{products * work / seconds / 1e12:.1f}"


def main(argv: list[str] | None = None) -> None:
  args = arguments.parse(Arguments, argv, "launch.benchmarks.splash")
  # Programs for a TPU that is not here cannot be kept.
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_enable_compilation_cache", False)
  for line in rows(args):
    print(line, flush=True)


if __name__ == "__main__":
  main()
