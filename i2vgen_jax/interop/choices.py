"""Where the public forms of one model differ, as named choices.

Nothing in a weight file decides these; each form has the values of the code
that it belongs to. A conversion writes what it took into the `config.json` of
the networks, under these names.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from i2vgen_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Choices:
  """One value for each difference.

  Attributes:
    concat_gain: factor on the latents of the picture that the U-Net sees as
      extra channels: 2 in VGen, which adds them twice, 1 in diffusers.
    scaling_factor: of the autoencoder's latents: 0.18215 in VGen and in
      Stable Diffusion; diffusers' folder on the Hub says 0.18125.
    pad_token_id: what fills a short text: 0 in VGen, 49407 in diffusers'
      folder. The U-Net attends to it.
    to_clean: whether the last DDIM step removes all noise (diffusers), or
      ends at the first level of the schedule (VGen).
    reference_start: whether a refine stage starts from latents that are too
      small by a factor of sigma, as ModelScope's does; see
      `diffusion.solvers.sdedit_start`.
    black_edge: whether a picture is cropped with the rounding of the public
      code, which leaves a black line at the edge for many sizes. Off in every
      form here, as nobody would want it.
  """

  concat_gain: float = 2.0
  scaling_factor: float = 0.18215
  pad_token_id: int = 0
  to_clean: bool = False
  reference_start: bool = True
  black_edge: bool = False

  @classmethod
  def of(cls, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Those that the networks of a cascade took, by name.

    Args:
      configs: the `config.json` of each network.
    """
    taken = {}
    if "vae" in configs:
      taken["scaling_factor"] = configs["vae"]["scaling_factor"]
    if "text_encoder" in configs:
      taken["pad_token_id"] = configs["text_encoder"].get("pad_token_id", 0)
    if "base" in configs:
      sampling = configs["base"].get("sampling", {})
      taken["to_clean"] = sampling.get("to_clean", False)
      taken["black_edge"] = sampling.get("black_edge", False)
      if configs["base"]["module"].get("local_image") == "concat":
        gain = configs["base"]["module"].get("concat_gain", 1.0)
        taken["concat_gain"] = gain
    if "refine" in configs:
      sampling = configs["refine"].get("sampling", {})
      taken["reference_start"] = sampling.get("reference_start", False)
    return taken

  @classmethod
  def read(
    cls, values: Mapping[str, Any], where: Path | None = None
  ) -> dict[str, Any]:
    """Checked values, given as such or as texts.

    Args:
      values: by name.
      where: the file that says them, for messages.

    Raises:
      InputError: an unknown name, or a value that cannot be.
    """
    known = {field.name: field.type for field in dataclasses.fields(cls)}
    for name in values:
      if name not in known:
        raise InputError(
          f"unknown choice {name!r}; known are {', '.join(known)}"
        )
    return {n: _read(n, v, known[n], where) for n, v in values.items()}


# What the code of each form does; VGen's is the default of every field.
DEFAULTS = {
  "diffusers": Choices(concat_gain=1.0, pad_token_id=49407, to_clean=True),
  "vgen": Choices(),
}

# Where the `config.json` of which networks keeps each of them.
_PLACES = {
  "concat_gain": (("base", "refine"), "module"),
  "scaling_factor": (("vae",), None),
  "pad_token_id": (("text_encoder",), None),
  "to_clean": (("base", "refine"), "sampling"),
  "reference_start": (("refine",), "sampling"),
  "black_edge": (("base", "refine"), "sampling"),
}


def put(config: dict[str, Any], network: str, values: Mapping) -> None:
  """Writes into a network's config those of the values that concern it."""
  for name, value in values.items():
    networks, part = _PLACES[name]
    place = config.get(part) if part else config
    if network in networks and place is not None:
      place[name] = value


_FLAGS = {"true": True, "false": False, "1": True, "0": False}
# Of each kind: how it is read, what it may be, and how that is called.
_KINDS = {
  bool: (lambda x: _FLAGS[str(x).lower()], lambda x: True, "true or false"),
  int: (int, lambda x: x >= 0, "a whole number from 0 on"),
  float: (float, lambda x: 0 < x < math.inf, "a number above 0"),
}


def _read(name: str, value: Any, kind: type, where: Path | None) -> Any:
  read, fits, called = _KINDS[kind]
  try:
    known = read(value)
  except (KeyError, TypeError, ValueError, OverflowError):
    known = None
  if known is None or not fits(known):
    there = f", in {where}" if where else ""
    raise InputError(f"choice {name} cannot be {value!r}{there}; give {called}")
  return known
