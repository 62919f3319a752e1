"""The distinct layers of a U-Net, to be compiled one by one.

A U-Net of 38 blocks has some twenty that differ. Compiled alone and added up
they give nearly the time of the whole in a fraction of the time.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from i2vgen_jax import remat, sharding
from i2vgen_jax.models.unet import I2VGenUNet, SpaceTimeBlock


@dataclasses.dataclass
class Part:
  """A layer as a U-Net calls it.

  Attributes:
    names: of the layers of the U-Net that compile to the same program.
    module: the layer, outside of the U-Net.
    params: shapes of its weights.
    args: shapes of its arguments, and values that are no arrays.
    kwargs: the same for arguments by name.
  """

  names: list[str]
  module: nn.Module
  params: Any
  args: tuple[Any, ...]
  kwargs: Mapping[str, Any]

  def size(self, mesh: Mesh) -> int:
    """Bytes of the arrays that the layer is given, on each device."""
    return size_in_bytes(self._arrays(mesh))

  def trace(
    self, mesh: Mesh, backward: bool, policy: str | None = None
  ) -> jax.stages.Traced:
    """The program of the layer alone.

    Args:
      mesh: devices of a topology. Clips are split as `split_clips` does.
      backward: whether to compute gradients as well.
      policy: what is computed again for that; see `i2vgen_jax.remat`.
    """
    leaves, tree = jax.tree.flatten((self.args, dict(self.kwargs)))
    is_array = [isinstance(x, jax.ShapeDtypeStruct) for x in leaves]
    whole = sharding.replicated(mesh)

    def call(params: Any, arrays: list[Any], key: Any) -> Any:
      arrays = iter(arrays)
      given = [
        next(arrays) if taken else x
        for x, taken in zip(leaves, is_array, strict=True)
      ]
      args, kwargs = jax.tree.unflatten(tree, given)
      rngs = {"dropout": key}
      y = self.module.apply({"params": params}, *args, **kwargs, rngs=rngs)
      return jax.tree.map(_split, y)

    def gradients(params: Any, arrays: list[Any], key: Any) -> Any:
      run, of_blocks = call, remat.of_blocks(policy)
      if of_blocks is not None and isinstance(self.module, SpaceTimeBlock):
        run = jax.checkpoint(call, policy=of_blocks)
      y, pullback = jax.vjp(lambda *given: run(*given, key), params, arrays)
      return y, pullback(y)

    places = sharding.param_shardings(self.params, mesh)
    params = jax.tree.map(
      lambda x, place: x.update(sharding=place), self.params, places
    )
    key = jax.eval_shape(lambda: jax.random.key(0)).update(sharding=whole)
    program = jax.jit(gradients if backward else call)
    with jax.set_mesh(mesh), remat.of_layers(policy):
      return program.trace(params, self._arrays(mesh), key)

  def _arrays(self, mesh: Mesh) -> list[jax.ShapeDtypeStruct]:
    """The arguments that are arrays, split as the mesh divides them."""
    return [
      x.update(sharding=sharding.clips_sharding(mesh, x.shape))
      for x in jax.tree.leaves((self.args, dict(self.kwargs)))
      if isinstance(x, jax.ShapeDtypeStruct)
    ]


def _split(y: Any) -> Any:
  return sharding.split_clips(y) if y.ndim == 5 else y


@contextlib.contextmanager
def recording() -> Iterator[dict[Any, Part]]:
  """Records the parts of every U-Net that is traced inside."""
  # A U-Net that was traced before would not be traced again.
  jax.clear_caches()
  found: dict[Any, Part] = {}
  known = set()

  def shape_of(x: Any) -> Any:
    if isinstance(x, jax.Array | jax.core.Tracer):
      return jax.ShapeDtypeStruct(x.shape, x.dtype)
    return x

  def record(next_fn: Any, args: Any, kwargs: Any, context: Any) -> Any:
    module = context.module
    is_part = (
      isinstance(module.parent, I2VGenUNet)
      and context.method_name == "__call__"
      and not module.is_initializing()
      and module.name not in known
    )
    if is_part:
      known.add(module.name)
      shapes = jax.tree.map(shape_of, (args, kwargs))
      params = jax.tree.map(shape_of, module.variables.get("params", {}))
      alone = module.clone(parent=None, name=None)
      key = repr((alone, shapes, params))
      part = found.setdefault(key, Part([], alone, params, *shapes))
      part.names.append(module.name)
    return next_fn(*args, **kwargs)

  with nn.intercept_methods(record):
    yield found


def size_in_bytes(tree: Any) -> int:
  """Bytes of arrays on each device."""
  return sum(_bytes(x) for x in jax.tree.leaves(tree) if hasattr(x, "dtype"))


def _bytes(x: Any) -> int:
  place = getattr(x, "sharding", None)
  shape = x.shape if place is None else place.shard_shape(x.shape)
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return 0
  return math.prod(shape) * x.dtype.itemsize
