"""Where the public forms of one model differ, as named choices.

Nothing in a weight file decides these; each form has the values of the code
that it belongs to. A conversion writes what it took into the `config.json` of
the networks, under these names.
"""

import dataclasses
from collections.abc import Mapping
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

  def replace(self, values: Mapping[str, Any]) -> "Choices":
    """With other values, given as such or as texts.

    Raises:
      InputError: an unknown name, or a value of the wrong kind.
    """
    known = {field.name: field for field in dataclasses.fields(self)}
    for name in values:
      if name not in known:
        raise InputError(
          f"unknown choice {name!r}; known are {', '.join(known)}"
        )
    read = {n: _read(n, v, known[n].type) for n, v in values.items()}
    return dataclasses.replace(self, **read)


# What the code of each form does; VGen's is the default of every field.
DEFAULTS = {
  "diffusers": Choices(concat_gain=1.0, pad_token_id=49407, to_clean=True),
  "vgen": Choices(),
}


def _read(name: str, value: Any, kind: type) -> Any:
  flags = {"true": True, "false": False, "1": True, "0": False}
  try:
    if kind is bool:
      return value if isinstance(value, bool) else flags[str(value).lower()]
    return kind(value)
  except (KeyError, TypeError, ValueError) as e:
    raise InputError(
      f"choice {name} cannot be {value!r}; give a {kind.__name__}"
    ) from e
