"""Weights that a training starts from."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from i2vgen_jax import trees
from i2vgen_jax.errors import InputError
from i2vgen_jax.interop import hub, mapping
from i2vgen_jax.interop.formats.tensors import Tensors
from i2vgen_jax.interop.formats.weight_files import open_tensors
from i2vgen_jax.interop.keys.unet import stable_diffusion_table
from i2vgen_jax.interop.opening import open_weights
from i2vgen_jax.interop.recognise import Found, recognise
from i2vgen_jax.models import build
from i2vgen_jax.types import Params

# Fields that may differ: those that the weights do not depend on or, like the
# gain, to which they can be rescaled, and those that add or remove layers.
_FREE = {
  "dropout",
  "remat",
  "remat_policy",
  "dtype",
  "param_dtype",
  "height_padding",
  "concat_gain",
}
_FREE |= {"use_text", "use_image_embeds", "use_fps", "local_image"}
_FREE |= {"parent", "name"}  # Fields of every Flax module.

_FIRST = "conv_in/kernel"


def initial_params(
  path: str | Path, unet: Any, rng: jax.Array
) -> tuple[Params, trees.Differences]:
  """Parameters of a U-Net from weights of I2VGen-XL, or of an image model.

  Layers are matched by name, so that a refine stage starts from a base stage,
  as in the paper, whose other conditions it lacks. From the U-Net of Stable
  Diffusion 2.1 come all layers that work within one frame. Temporal layers that
  are not found start as the identity, and channels of the local image that are
  not found in the first convolution at zero. With text alone, the frames of a
  video then are images of the image model.

  Args:
    path: weights of I2VGen-XL in any form, or Stable Diffusion's: a diffusers
      folder or a checkpoint.
    unet: I2VGenUNet to fill.
    rng: key for parameters that the weights lack.

  Returns:
    float32 arrays, the dtype in which training keeps its weights, and which
    arrays of the file were not used and which of the U-Net were drawn.

  Raises:
    InputError: there are no such weights, or they are of another size.
  """
  folder = hub.resolve(path)
  abstract = traverse_util.flatten_dict(build.abstract_params(unet), sep="/")
  shapes = {name: leaf.shape for name, leaf in abstract.items()}
  if image := _image_unet(folder):
    leaves = _image_leaves(image, unet, abstract)
  else:
    leaves = _video_leaves(folder, unet)
  found = dict(leaves.shapes)
  # Its input may have more channels, or fewer: those of the local image.
  *kernel, _, width = found[_FIRST]
  if (*kernel, width) == (*shapes[_FIRST][:2], shapes[_FIRST][-1]):
    found[_FIRST] = shapes[_FIRST]
  differences = trees.compare_shapes(found, shapes)
  if differences.wrong_shapes:
    only_shapes = dataclasses.replace(differences, missing=(), unexpected=())
    raise InputError(
      f"weights of another U-Net, in {path}: {only_shapes}; make config.unet "
      "agree"
    )
  params = _draw(unet, differences.missing, rng)
  for name in shapes.keys() & found.keys():
    array = leaves.read(name).astype(np.float32, copy=False)
    if name == _FIRST:
      channels = shapes[name][-2]
      array = array[:, :, :channels]
      extra = channels - array.shape[-2]
      array = np.pad(array, [(0, 0), (0, 0), (0, extra), (0, 0)])
    params[name] = array
  return traverse_util.unflatten_dict(params, sep="/"), differences


def _image_unet(folder: Path) -> Found | None:
  """The U-Net of an image model; None if there is one of ours, or no file."""
  for place in (folder / "unet", folder):
    if (place / "params").is_dir():
      return None
    if place.is_file() or (place / "config.json").is_file():
      found = {one.network: one for one in recognise(open_tensors(place))}
      return None if "unet" in found else found.get("image_unet")
  return None


def _image_leaves(
  image: Found, unet: Any, abstract: dict[str, jax.ShapeDtypeStruct]
) -> Tensors:
  table = stable_diffusion_table(
    image.form, unet.block_channels, unet.layers_per_block
  )
  spatial = {row.path: abstract[row.path] for row in table.rows}
  spatial[_FIRST] = jax.eval_shape(
    lambda kernel: kernel[:, :, : unet.latent_channels], spatial[_FIRST]
  )
  return mapping.to_flax(image.tensors.checked(), table, spatial)


def _video_leaves(folder: Path, unet: Any) -> Tensors:
  stored = open_weights(folder).one("unet")
  for name in type(unet).__dataclass_fields__:
    theirs, ours = getattr(stored.module, name), getattr(unet, name)
    if theirs != ours and name not in _FREE:
      raise InputError(
        f"weights of another U-Net, in {folder}: {name} is {theirs} there and "
        f"{ours} in config.unet; make them agree"
      )
  return stored.leaves(np.float32, unet.concat_gain)


def _draw(
  unet: Any, names: tuple[str, ...], rng: jax.Array
) -> dict[str, jax.Array]:
  """New values of some parameters."""

  def draw(key: jax.Array) -> dict[str, jax.Array]:
    params = traverse_util.flatten_dict(build.init_params(unet, key), sep="/")
    return {name: params[name] for name in names}

  # A program that draws all of them takes several times as long to compile.
  return jax.jit(draw)(rng) if names else {}
