"""Modules of a cascade's networks from their configs, and their parameters."""

import dataclasses
import functools
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from i2vgen_jax.errors import InputError
from i2vgen_jax.models.clip import CLIPTextModel, CLIPVisionModel
from i2vgen_jax.models.unet import I2VGenUNet
from i2vgen_jax.models.vae import AutoencoderKL
from i2vgen_jax.types import Params

TYPES = {
  "vae": AutoencoderKL,
  "text_encoder": CLIPTextModel,
  "image_encoder": CLIPVisionModel,
  "base": I2VGenUNet,
  "refine": I2VGenUNet,
}


@dataclasses.dataclass(frozen=True)
class Network:
  """A module, its weights, and the rest of its `config.json`."""

  module: Any
  params: Params
  config: dict[str, Any]


def make_module(name: str, fields: Mapping[str, Any], where: str | Path) -> Any:
  """The module of network `name`, from the fields in its config.

  Args:
    name: a key of `TYPES`.
    fields: constructor arguments, as read from JSON.
    where: the file or config group, for messages.

  Raises:
    InputError: a field that the module does not have, or an unknown choice.
  """
  module_type = TYPES[name]
  known = typing.get_type_hints(module_type)
  for field, value in fields.items():
    choices = typing.get_args(known.get(field))
    if typing.get_origin(known.get(field)) is Literal and value not in choices:
      raise InputError(
        f"unknown {field} {value!r}, in {where}; use one of "
        f"{', '.join(choices)}"
      )
    if field not in module_type.__dataclass_fields__:
      raise InputError(
        f"unknown field {field!r} for {module_type.__name__}, in {where}; the "
        "weights are of another variant or a newer version"
      )
  fields = {
    field: tuple(value) if isinstance(value, list) else value
    for field, value in fields.items()
  }
  if "dtype" in fields:
    fields["dtype"] = jnp.dtype(fields["dtype"])
  return module_type(**fields)


def init_params(module: Any, rng: jax.Array) -> Params:
  """Random weights of a module; traceable, so that shapes cost nothing."""
  args, kwargs = _inputs(module)
  return module.init(rng, *args, **kwargs)["params"]


@functools.lru_cache(maxsize=32)
def abstract_params(module: Any) -> Params:
  """Shapes and dtypes of a module's weights, without any weights."""
  return jax.eval_shape(lambda: init_params(module, jax.random.key(0)))


def towers_of(unet: I2VGenUNet) -> tuple[str, ...]:
  """Names of the frozen networks that a U-Net needs beside it."""
  used = {
    "vae": True,
    "text_encoder": unet.use_text,
    "image_encoder": unet.use_image_embeds,
  }
  return tuple(name for name, is_used in used.items() if is_used)


def _inputs(module: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
  """The smallest input of a module, which decides all of its shapes."""
  match module:
    case AutoencoderKL():
      side = module.shrink
      return (jnp.zeros((1, side, side, 3)),), {}
    case CLIPTextModel():
      return (jnp.zeros((1, module.max_length), jnp.int32),), {}
    case CLIPVisionModel():
      side = module.image_size
      return (jnp.zeros((1, side, side, 3)),), {}
    case I2VGenUNet():
      side = 2 ** (len(module.block_channels) - 1)
      width, height = module.nearest_size(side, side)
      latents = jnp.zeros((1, 1, height, width, module.latent_channels))
      known = {
        "fps": jnp.ones(1),
        "image_latents": latents[:, 0],
        "image_embeds": jnp.zeros((1, module.context_dim)),
        "text_context": jnp.zeros((1, 1, module.context_dim)),
      }
      conditions = {name: known[name] for name in module.conditions}
      return (latents, jnp.zeros(1)), conditions
  raise TypeError(f"no network of a cascade: {type(module).__name__}")
