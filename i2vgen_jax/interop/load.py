"""Public weights, in any form, as modules and parameters of ours."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from i2vgen_jax.cascade import Cascade, check_stages, check_tower
from i2vgen_jax.errors import InputError
from i2vgen_jax.interop import hub, sources
from i2vgen_jax.interop.tensors import weight_dtype
from i2vgen_jax.models import build
from i2vgen_jax.types import Params

Loaded = tuple[Any, Params]


def load_unet(
  path: str | Path,
  dtype: Any = None,
  *,
  mesh: Mesh | None = None,
  choices: Mapping[str, Any] | None = None,
) -> Loaded:
  """The U-Net of a file, a folder or a repository on the Hub.

  `module.apply({"params": params}, latents, timesteps, ...)`, where `latents`
  is [b f h w c]; see `I2VGenUNet.__call__` for the conditions, and the fields
  of the module for those that its variant has.

  Args:
    path: see `sources.find`, or `owner/name` on the Hub.
    dtype: of weights and computation; None keeps what is stored.
    mesh: splits large weights over its devices.
    choices: values that differ from those of the form; see `Choices`.

  Raises:
    InputError: there is no U-Net, it is damaged, or not of a public variant.
  """
  return _load("unet", path, dtype, mesh, choices)


def load_vae(
  path: str | Path,
  dtype: Any = None,
  *,
  mesh: Mesh | None = None,
  choices: Mapping[str, Any] | None = None,
) -> Loaded:
  """The autoencoder, as `load_unet`; its scaling factor is in the config."""
  return _load("vae", path, dtype, mesh, choices)


def load_text_encoder(
  path: str | Path, dtype: Any = None, *, mesh: Mesh | None = None
) -> Loaded:
  """CLIP's text tower, as `load_unet`."""
  return _load("text_encoder", path, dtype, mesh, None)


def load_image_encoder(
  path: str | Path, dtype: Any = None, *, mesh: Mesh | None = None
) -> Loaded:
  """CLIP's picture tower, as `load_unet`."""
  return _load("image_encoder", path, dtype, mesh, None)


def load_cascade(
  path: str | Path,
  dtype: Any = None,
  *,
  mesh: Mesh | None = None,
  choices: Mapping[str, Any] | None = None,
) -> Cascade:
  """All networks at a path, ready to run; arguments as `load_unet`.

  The tokenizer is that of the folder, in `tokenizer/` or beside the weights.

  Raises:
    InputError: as `load_unet`; or what a stage needs is not there.
  """
  return open_cascade(path, dtype, choices=choices).load(mesh=mesh)


def open_cascade(
  path: str | Path,
  dtype: Any = None,
  *,
  choices: Mapping[str, Any] | None = None,
) -> "Opened":
  """What a cascade can be loaded from, before anything large is read.

  Arguments as `load_unet`.

  Raises:
    InputError: as `load_unet`, or there is no stage.
  """
  folder = hub.resolve(path, half=_is_half(dtype))
  opened = Opened(folder, sources.find(folder, choices), dtype)
  check_stages(opened.stages, folder)
  return opened


@dataclasses.dataclass(frozen=True)
class Opened:
  """The networks at a path, not yet read.

  Attributes:
    folder: where they lie on this machine.
    found: each by name.
    dtype: of weights and computation; None keeps what is stored.
  """

  folder: Path
  found: dict[str, sources.Source]
  dtype: Any = None

  @property
  def stages(self) -> tuple[str, ...]:
    """Those of `base` and `refine` that are there, in order."""
    return tuple(name for name in ("base", "refine") if name in self.found)

  def load(
    self, stages: Sequence[str] | None = None, mesh: Mesh | None = None
  ) -> Cascade:
    """Reads the stages, and of the other networks those that they need.

    Args:
      stages: some of those that are there; None takes all.
      mesh: splits large weights over its devices.

    Raises:
      InputError: a network or the tokenizer that a stage needs is not there.
    """
    stages = self.stages if stages is None else stages
    needed = {
      tower: name
      for name in stages
      for tower in build.towers_of(self.found[name].module)
    }
    for tower, name in needed.items():
      check_tower(name, tower, self.found.get(tower), self.folder)
    words = sources.tokenizer_folder(self.folder)
    if "text_encoder" in needed and words is None:
      raise InputError(
        f"no tokenizer in {self.folder}, which the text of stage "
        f"{needed['text_encoder']} needs; put CLIP's vocab.json and merges.txt "
        "there"
      )
    loaded = {
      name: self.found[name].load(self.dtype, mesh)
      for name in (*needed, *stages)
    }
    return Cascade.assemble(self.folder, words, loaded)


def _load(name, path, dtype, mesh, choices) -> Loaded:
  folder = hub.resolve(path, half=_is_half(dtype))
  part = folder / name
  if (part / "config.json").is_file():
    folder = part
  network = sources.one(folder, name, choices).load(dtype, mesh)
  return network.module, network.params


def _is_half(dtype: Any) -> bool:
  dtype = weight_dtype(dtype)
  return dtype is not None and dtype.itemsize == 2
