"""Networks written in the forms of others, and in ours.

Everything is read and written one tensor at a time. What is written appears
under its name when it is whole, and not before.
"""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from i2vgen_jax import tokenizer
from i2vgen_jax.errors import InputError
from i2vgen_jax.interop import convert
from i2vgen_jax.interop.choices import DEFAULTS
from i2vgen_jax.interop.formats import diffusers_folder, native, torch_files
from i2vgen_jax.interop.formats.tensors import Tensors
from i2vgen_jax.interop.stored import StoredNetwork, table_of

# The variants whose U-Net each form can hold.
HOLDS = {
  "diffusers": ("released",),
  "vgen": ("released",),
  "modelscope": ("image_to_video", "refine"),
}
_FORMS = {
  "vae": "diffusers",
  "text_encoder": "transformers",
  "image_encoder": "transformers",
}


def check(found: dict[str, StoredNetwork], form: str) -> None:
  """Raises InputError unless the form can hold the U-Net among the networks.

  Only diffusers' form and ours hold anything else.
  """
  unets = [s for s in found.values() if s.name in ("base", "refine")]
  if form in ("vgen", "modelscope") and len(unets) != 1:
    raise InputError(
      f"a file of {form} holds one U-Net, and the source has {len(unets)}: "
      "name one network of it"
    )
  for source in unets if form in HOLDS else ():
    if source.variant not in HOLDS[form]:
      raise InputError(
        f"{form} has no U-Net like {source.name} in {source.tensors.where} "
        f"({source.variant or 'of no public variant'}); it holds "
        f"{' or '.join(HOLDS[form])}"
      )
    _check_fixed(source, form)


def write_orbax(
  found: dict[str, StoredNetwork], folder: Path, words: Path | None, dtype: Any
) -> None:
  """A cascade folder of ours, or more networks for one that is there.

  Raises:
    InputError: it has one of the networks, or cannot be written.
  """
  for name in found:
    if (folder / name).exists():
      raise InputError(f"{folder / name} exists already; name another folder")
  with _whole(folder) as partial:
    for name, source in found.items():
      params = convert.materialise(source.leaves(dtype))
      native.save(partial / name, source.config, params)
    if words and not (folder / "tokenizer").exists():
      vocab, merges = tokenizer.read_vocabulary(words)
      tokenizer.write_vocabulary(partial / "tokenizer", vocab, merges)


def write_diffusers(
  found: dict[str, StoredNetwork], folder: Path, words: Path | None, dtype: Any
) -> None:
  """A repository folder; `I2VGenXLPipeline` opens it if all parts are there.

  Raises:
    InputError: the folder exists, or cannot be written.
  """
  if folder.exists():
    raise InputError(f"{folder} exists already; name another folder")
  with _whole(folder) as partial:
    for name, source in found.items():
      part = "unet" if name == "base" else name
      tensors = _in_form(source, _FORMS.get(name, "diffusers"), dtype)
      config = source.config | {"module": _fields(source.module)}
      diffusers_folder.write_component(partial, part, config, tensors)
    if _has_rest(found, words):
      diffusers_folder.write_rest(
        partial,
        found["base"].config,
        words,
        found["text_encoder"].config.get("pad_token_id", 0),
      )


def missing_parts(
  found: dict[str, StoredNetwork], words: Path | None
) -> list[str]:
  """What `I2VGenXLPipeline` wants beside what `write_diffusers` writes."""
  missing = [n for n in ("base", *_FORMS) if n not in found]
  missing = ["unet" if name == "base" else name for name in missing]
  rest = ("tokenizer", "scheduler", "model_index.json")
  return missing if _has_rest(found, words) else [*missing, *rest]


def write_torch(
  source: StoredNetwork, path: Path, form: str, dtype: Any
) -> None:
  """The .pth file of a U-Net, as VGen or ModelScope write it.

  Raises:
    InputError: the file exists, or cannot be written.
  """
  if path.exists():
    raise InputError(f"{path} exists already; name another file")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise InputError(
      f"cannot write {path}: {e.strerror}; choose another place"
    ) from e
  step = 0 if form == "vgen" else None
  torch_files.write(path, _in_form(source, "vgen", dtype), step)


def _has_rest(found: dict[str, StoredNetwork], words: Path | None) -> bool:
  return words is not None and {"base", "text_encoder"} <= found.keys()


def _in_form(source: StoredNetwork, form: str, dtype: Any) -> Tensors:
  leaves = source.leaves(dtype)
  if source.name in ("base", "refine"):
    gain = DEFAULTS[form].concat_gain
    leaves = convert.with_gain(leaves, source.module, gain)
  return convert.to_torch(leaves, table_of(source.module, form))


def _fields(module: Any) -> dict[str, Any]:
  """All of them; a config may leave out those that have their defaults."""
  return {f.name: getattr(module, f.name) for f in dataclasses.fields(module)}


def _check_fixed(source: StoredNetwork, form: str) -> None:
  """What the code of others does not let one choose."""
  fixed = {"image_grid": 8, "input_heads": 8}
  if form != "diffusers":
    fixed |= {"norm_groups": 32}
  for field, value in fixed.items():
    have = getattr(source.module, field)
    if have != value and not (field == "image_grid" and form == "modelscope"):
      raise InputError(
        f"{form} has {field} {value} and the U-Net in {source.tensors.where} "
        f"has {have}; it can be kept in our own form alone"
      )


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
  """A temporary folder whose contents move to their place at the end."""
  partial = folder.with_name(f".{folder.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  try:
    partial.mkdir(parents=True)
    yield partial
    if not folder.exists():
      os.replace(partial, folder)
    else:
      for child in partial.iterdir():
        os.replace(child, folder / child.name)
  except OSError as e:
    raise InputError(
      f"cannot write {folder}: {e.strerror or e}; choose another place"
    ) from e
  except InputError as e:
    # Of one file in it, whose place will have been gone by then.
    raise InputError(str(e).replace(str(partial), str(folder))) from e
  finally:
    shutil.rmtree(partial, ignore_errors=True)
