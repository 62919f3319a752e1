"""Resolves a path, or the id of a repository on the Hugging Face Hub."""

import itertools
import re
from pathlib import Path

from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.formats import weight_files
from i2vgen_jax.interop.formats.diffusers_folder import PARTS

_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Only the diffusers folders: the same repository holds the original files,
# which double its size.
_CONFIGS = ("*.json", "*/*.json", "tokenizer/*")


def resolve(path_or_id: str | Path, half: bool = False) -> Path:
  """The path of weights on this machine; downloads them if necessary.

  A path that exists is returned as it is. Anything else of the form
  `owner/name` is a repository, which is looked up in the Hub's cache first;
  with `HF_HUB_OFFLINE=1` or without a network only there.

  Args:
    path_or_id: path, or id of a repository.
    half: whether to prefer the fp16 files, which are half as large.

  Raises:
    InputError: there is no such path or repository, or it is not in the cache
      and cannot be reached.
  """
  path = Path(path_or_id).expanduser()
  if path.exists():
    return path
  name, wanted = str(path_or_id), PARTS
  if not _ID.fullmatch(name):
    raise InputError(f"no weights at {name}; check the path")
  precisions = (".fp16", "") if half else ("", ".fp16")
  for suffix, precision in itertools.product(weight_files.STEMS, precisions):
    files = [
      f"{part}/{stem}{precision}{shard}.{suffix}"
      for part in wanted
      for stem in weight_files.STEMS[suffix]
      for shard in ("", "-*")
    ]
    folder = _download(name, [*_CONFIGS, *files])
    wanted = [part for part in PARTS if _lacks_weights(folder / part)]
    if not wanted:
      break
  return folder


def _lacks_weights(part: Path) -> bool:
  """Whether a part of the repository exists without weights."""
  if not (part / "config.json").is_file():
    return False
  weights = weight_files.weights_in(part)
  return weights is None or not weight_files.has_all_shards(weights)


def _download(name: str, patterns: list[str]) -> Path:
  # Slow to import, and only needed for repositories.
  from huggingface_hub import errors, snapshot_download

  try:
    return Path(snapshot_download(name, allow_patterns=patterns))
  except errors.LocalEntryNotFoundError as e:
    raise InputError(
      f"{name} is neither a path nor in the Hub's cache, and the Hub "
      "cannot be reached; connect, or give a folder"
    ) from e
  except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as e:
    reason = str(e).strip().splitlines()[0]
    raise InputError(
      f"cannot get {name} from the Hub: {reason}; check the name"
    ) from e
