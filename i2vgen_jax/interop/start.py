"""Weights that a training starts from."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from i2vgen_jax.errors import InputError
from i2vgen_jax.interop import hub, mapping
from i2vgen_jax.interop.formats.weight_files import open_tensors
from i2vgen_jax.interop.keys.unet import stable_diffusion_table
from i2vgen_jax.interop.opening import open_weights
from i2vgen_jax.interop.recognise import Found, recognise
from i2vgen_jax.models import build
from i2vgen_jax.types import Params

# Fields that the weights of a U-Net do not depend on, or, like the gain, to
# which they can be rescaled.
_FREE = {"dropout", "remat", "dtype", "param_dtype", "concat_gain"}
_FREE |= {"parent", "name"}  # Fields of every Flax module.


def initial_params(path: str | Path, unet: Any, rng: jax.Array) -> Params:
  """Parameters of a U-Net from weights of I2VGen-XL, or of an image model.

  From the U-Net of Stable Diffusion 2.1 come all layers that work within one
  frame, as in the paper; the temporal layers start as the identity, and the
  channels of the local image at zero. With text alone, the frames of a video
  then are images of the image model.

  Args:
    path: weights of I2VGen-XL in any form, or Stable Diffusion's: a diffusers
      folder or a checkpoint.
    unet: I2VGenUNet to fill.
    rng: key for parameters that the weights lack.

  Returns:
    float32 arrays, the dtype in which training keeps its weights.

  Raises:
    InputError: there are no such weights, or they are of another size.
  """
  folder = hub.resolve(path)
  if image := _image_unet(folder):
    return _from_image_model(image, unet, rng)
  stored = open_weights(folder).one("unet")
  for name in type(unet).__dataclass_fields__:
    theirs, ours = getattr(stored.module, name), getattr(unet, name)
    if theirs != ours and name not in _FREE:
      raise InputError(
        f"weights of another U-Net, in {path}: {name} is {theirs} there and "
        f"{ours} in config.unet; make them agree"
      )
  leaves = stored.leaves(jnp.float32, unet.concat_gain)
  return mapping.materialise(leaves, lambda _, array: jnp.asarray(array))


def _image_unet(folder: Path) -> Found | None:
  """The U-Net of an image model; None if there is one of ours, or no file."""
  for place in (folder / "unet", folder):
    if (place / "params").is_dir():
      return None
    if place.is_file() or (place / "config.json").is_file():
      found = {one.network: one for one in recognise(open_tensors(place))}
      return None if "unet" in found else found.get("image_unet")
  return None


def _from_image_model(image: Found, unet: Any, rng: jax.Array) -> Params:
  table = stable_diffusion_table(
    image.form, unet.block_channels, unet.layers_per_block
  )
  shapes = traverse_util.flatten_dict(build.abstract_params(unet), sep="/")
  spatial = {row.path: shapes[row.path] for row in table.rows}
  spatial["conv_in/kernel"] = jax.eval_shape(
    lambda kernel: kernel[:, :, : unet.latent_channels],
    spatial["conv_in/kernel"],
  )
  leaves = mapping.to_flax(image.tensors.checked(), table, spatial)

  def draw(key: jax.Array) -> dict[str, jax.Array]:
    init = traverse_util.flatten_dict(build.init_params(unet, key), sep="/")
    return {path: init[path] for path in shapes.keys() - spatial.keys()}

  # A program that draws all of them takes several times as long to compile.
  params = jax.jit(draw)(rng)
  for path in leaves.shapes:
    whole, array = shapes[path], leaves.read(path)
    # Only the first convolution has more channels than that of the image model.
    extra = [(0, n - m) for n, m in zip(whole.shape, array.shape, strict=True)]
    params[path] = jnp.asarray(np.pad(array, extra), whole.dtype)
  return traverse_util.unflatten_dict(params, sep="/")
