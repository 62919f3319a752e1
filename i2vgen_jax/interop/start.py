"""Weights that a training starts from."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from i2vgen_jax.errors import InputError
from i2vgen_jax.interop import convert, hub, stored
from i2vgen_jax.interop.formats import weight_files
from i2vgen_jax.interop.keys.unet_image import stable_diffusion_table
from i2vgen_jax.interop.recognise import Found, recognise
from i2vgen_jax.models import build
from i2vgen_jax.types import Params

# Fields of a U-Net that its weights do not depend on, or not as they are:
# those of training, and the gain, which they are rescaled to.
_FREE = ("dropout", "remat", "dtype", "param_dtype", "concat_gain")
_FREE += ("parent", "name")  # Of every flax module.


def initial_params(path: str | Path, unet: Any, rng: jax.Array) -> Params:
  """Parameters of a U-Net from weights of its own kind, or an image model.

  From the U-Net of Stable Diffusion 2.1 come all layers that look within one
  frame, as in the paper; the temporal ones start as the identity, and the
  channels of the local image at zero. Under text alone, a video then begins
  as so many pictures of the image model.

  Args:
    path: weights of I2VGen-XL in any form, or Stable Diffusion's: a folder of
      diffusers or a checkpoint.
    unet: I2VGenUNet to fill.
    rng: of what the weights do not decide.

  Returns:
    float32, in which all training keeps its weights.

  Raises:
    InputError: no such weights, or they are not of this size.
  """
  folder = hub.resolve(path)
  image = _image_unet(folder)
  if image is not None:
    return _from_image_model(image, unet, rng)
  source = stored.one(folder, "unet")
  _check_same(source.module, unet, path)
  leaves = source.leaves(jnp.float32)
  leaves = convert.with_gain(leaves, source.module, unet.concat_gain)
  return convert.materialise(leaves, lambda _, array: jnp.asarray(array))


def _check_same(theirs: Any, ours: Any, path: str | Path) -> None:
  """Raises InputError for the first field that must agree and does not."""
  for field in dataclasses.fields(ours):
    have, want = getattr(theirs, field.name), getattr(ours, field.name)
    if have != want and field.name not in _FREE:
      raise InputError(
        f"weights of another U-Net, in {path}: {field.name} is {have} there "
        f"and {want} in config.unet; make them agree"
      )


def _image_unet(folder: Path) -> Found | None:
  """None if what is there is no file, or holds a U-Net of ours."""
  for place in (folder / "unet", folder):
    config = place / "config.json"
    if not place.exists() or (place.is_dir() and not config.is_file()):
      continue
    if (place / "params").is_dir():
      return None
    found = {
      one.network: one for one in recognise(weight_files.open_tensors(place))
    }
    return found.get("image_unet") if "unet" not in found else None
  return None


def _from_image_model(image: Found, unet: Any, rng: jax.Array) -> Params:
  table = stable_diffusion_table(
    unet.block_channels, unet.layers_per_block, image.form
  )
  shapes = traverse_util.flatten_dict(build.abstract_params(unet), sep="/")
  spatial = {row.path: shapes[row.path] for row in table.rows}
  mouth = spatial["conv_in/kernel"]
  height, width, _, features = mouth.shape
  spatial["conv_in/kernel"] = jax.ShapeDtypeStruct(
    (height, width, unet.latent_channels, features), mouth.dtype
  )
  leaves = convert.to_flax(
    weight_files.checked(image.tensors),
    table,
    traverse_util.unflatten_dict(spatial, sep="/"),
  )
  init = jax.jit(lambda key: build.init_params(unet, key))(rng)
  params = traverse_util.flatten_dict(init, sep="/")
  for path in leaves.shapes:
    array = leaves.read(path)
    if path == "conv_in/kernel":
      extra = mouth.shape[2] - array.shape[2]
      array = np.pad(array, ((0, 0), (0, 0), (0, extra), (0, 0)))
    params[path] = jnp.asarray(array, params[path].dtype)
  return traverse_util.unflatten_dict(params, sep="/")
