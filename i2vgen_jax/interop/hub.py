"""A path, or the id of a repository on the Hugging Face Hub, to a folder."""

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from i2vgen_jax.errors import InputError
from i2vgen_jax.interop import stored
from i2vgen_jax.interop.formats import safetensors_files, weight_files

_ID = re.compile(r"[\w.-]+/[\w.-]+")
# The diffusers folders alone: the same repository holds the original files,
# which are as large again.
_CONFIGS = ("*.json", "*/*.json", "tokenizer/*")
_STEMS = {
  "safetensors": ("diffusion_pytorch_model", "model"),
  "bin": ("diffusion_pytorch_model", "pytorch_model"),
}


def resolve(path_or_id: str | Path, half: bool = False) -> Path:
  """Where the weights lie on this machine, downloaded if need be.

  A path that exists is taken as it is. Anything else of the form `owner/name`
  is a repository: the Hub's cache is used, and with `HF_HUB_OFFLINE=1` or
  without a network nothing but it.

  Args:
    path_or_id: either.
    half: takes the fp16 files, half as large, where there are some.

  Raises:
    InputError: no such path and no such repository, or it cannot be reached
      and is not in the cache.
  """
  path = Path(path_or_id).expanduser()
  if path.exists():
    return path
  if not _ID.fullmatch(str(path_or_id)):
    raise InputError(f"no weights at {path_or_id}; check the path")
  name, wanted = str(path_or_id), stored.PARTS
  suffixes = (".fp16", "") if half else ("", ".fp16")
  for form, suffix in itertools.product(_STEMS, suffixes):
    folder = _download(name, [*_CONFIGS, *_patterns(wanted, form, suffix)])
    wanted = [part for part in stored.PARTS if _lacks_weights(folder / part)]
    if not wanted:
      break
  return folder


def _patterns(parts: Iterable[str], form: str, suffix: str) -> Iterator[str]:
  for part, stem in itertools.product(parts, _STEMS[form]):
    yield f"{part}/{stem}{suffix}.{form}"
    yield f"{part}/{stem}{suffix}-*.{form}"


def _lacks_weights(part: Path) -> bool:
  """Whether something else must be asked for, of a part that there is."""
  if not (part / "config.json").is_file():
    return False
  weights = weight_files.weights_in(part)
  return weights is None or not safetensors_files.is_whole(weights)


def _download(name: str, patterns: list[str]) -> Path:
  # Slow to import, and of no use with files.
  from huggingface_hub import snapshot_download
  from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
  )

  try:
    return Path(snapshot_download(name, allow_patterns=patterns))
  except LocalEntryNotFoundError as e:
    raise InputError(
      f"{name} is neither a path nor in the Hub's cache, and the Hub "
      "cannot be reached; connect, or name a folder"
    ) from e
  except (HfHubHTTPError, HFValidationError, OSError) as e:
    reason = str(e).strip().splitlines()[0]
    raise InputError(
      f"cannot get {name} from the Hub: {reason}; check the name"
    ) from e
