"""Named choices where the public forms of one model differ.

No weight file decides these; each form has the values of its original code. A
conversion writes the values it used into the `config.json` of the networks.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from i2vgen_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Choices:
  """One value for each difference; by default those of VGen.

  Attributes:
    concat_gain: factor on the image latents that the U-Net gets as additional
      channels: 2 in VGen, which adds them twice, 1 in diffusers.
    scaling_factor: factor on the autoencoder's latents: 0.18215 in VGen and
      Stable Diffusion, 0.18125 in diffusers' repository on the Hub.
    pad_token_id: token that fills a short text, to which the U-Net attends: 0
      in VGen, 49407 in diffusers' repository.
    to_clean: whether the last DDIM step removes all noise (diffusers), or
      ends at the first level of the schedule (VGen).
    reference_start: whether a refine stage starts from latents that are too
      small by a factor of sigma, as ModelScope's does; see
      `diffusion.solvers.sdedit_start`.
    black_edge: whether an image is cropped with the rounding of the public
      code, which leaves a black line at the edge for many sizes.
  """

  concat_gain: float = 2.0
  scaling_factor: float = 0.18215
  pad_token_id: int = 0
  to_clean: bool = False
  reference_start: bool = True
  black_edge: bool = False

  @classmethod
  def of(cls, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The values that the networks of a cascade use, by name.

    Args:
      configs: `config.json` of each network.
    """
    used = {}
    for name, (networks, group, default) in _PLACES.items():
      if networks[0] in configs:
        place = _place(configs[networks[0]], group)
        if name != "concat_gain" or place.get("local_image") == "concat":
          used[name] = place.get(name, default)
    return used

  @classmethod
  def read(
    cls, values: Mapping[str, Any], where: Path | None = None
  ) -> dict[str, Any]:
    """Checked values, given as such or as text.

    Args:
      values: values by name.
      where: the file that contains them, for messages.

    Raises:
      InputError: an unknown name, or an impossible value.
    """
    types = {field.name: field.type for field in dataclasses.fields(cls)}
    checked = {}
    for name, value in values.items():
      if name not in types:
        raise InputError(
          f"unknown choice {name!r}; known are {', '.join(types)}"
        )
      read, is_valid, description = _TYPES[types[name]]
      try:
        checked[name] = read(value)
        if not is_valid(checked[name]):
          raise ValueError
      except (KeyError, TypeError, ValueError, OverflowError) as e:
        there = f", in {where}" if where else ""
        raise InputError(
          f"choice {name} cannot be {value!r}{there}; give {description}"
        ) from e
    return checked


# The values of each form's code.
DEFAULTS = {
  "diffusers": Choices(concat_gain=1.0, pad_token_id=49407, to_clean=True),
  "vgen": Choices(),
}

# Networks that have the choice in `config.json`, the group of the file that
# has it, and the value if it is absent.
_PLACES = {
  "scaling_factor": (("vae",), None, None),
  "pad_token_id": (("text_encoder",), None, 0),
  "to_clean": (("base", "refine"), "sampling", False),
  "black_edge": (("base", "refine"), "sampling", False),
  "concat_gain": (("base", "refine"), "module", 1.0),
  "reference_start": (("refine",), "sampling", False),
}


def put(config: dict[str, Any], network: str, values: Mapping) -> None:
  """Writes the values that concern a network into its config."""
  for name, value in values.items():
    networks, group, _ = _PLACES[name]
    if network in networks:
      _place(config, group)[name] = value


def _place(config: Mapping[str, Any], group: str | None) -> Any:
  return config.get(group, {}) if group else config


_FLAGS = {"true": True, "false": False, "1": True, "0": False}
# For each type: how it is read, which values are valid, and their description.
_TYPES = {
  bool: (lambda x: _FLAGS[str(x).lower()], lambda x: True, "true or false"),
  int: (int, lambda x: x >= 0, "an integer of at least 0"),
  float: (float, lambda x: 0 < x < math.inf, "a number above 0"),
}
