"""A path, or the id of a repository on the Hugging Face Hub, to a folder."""

import re
from pathlib import Path

from i2vgen_jax.errors import InputError

_ID = re.compile(r"[\w.-]+/[\w.-]+")
# The diffusers folders alone: the same repository holds the original files,
# which are as large again.
_CONFIGS = ("*.json", "*/*.json", "tokenizer/*")
_WEIGHTS = (
  "{}/diffusion_pytorch_model{}.safetensors",
  "{}/diffusion_pytorch_model{}-*.safetensors",
  "{}/model{}.safetensors",
  "{}/model{}-*.safetensors",
)
_PARTS = ("unet", "vae", "text_encoder", "image_encoder")


def resolve(path_or_id: str | Path, half: bool = False) -> Path:
  """Where the weights lie on this machine, downloaded if need be.

  A path that exists is taken as it is. Anything else of the form `owner/name`
  is a repository: the Hub's cache is used, and with `HF_HUB_OFFLINE=1` or
  without a network nothing but it.

  Args:
    path_or_id: either.
    half: takes the fp16 files, half as large.

  Raises:
    InputError: no such path and no such repository, or it cannot be reached
      and is not in the cache.
  """
  path = Path(path_or_id).expanduser()
  if path.exists():
    return path
  if not _ID.fullmatch(str(path_or_id)):
    raise InputError(f"no weights at {path_or_id}; check the path")
  # Slow to import, and of no use with files.
  from huggingface_hub import snapshot_download
  from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
  )

  suffix = ".fp16" if half else ""
  files = [w.format(part, suffix) for part in _PARTS for w in _WEIGHTS]
  try:
    return Path(
      snapshot_download(str(path_or_id), allow_patterns=[*_CONFIGS, *files])
    )
  except LocalEntryNotFoundError as e:
    raise InputError(
      f"{path_or_id} is neither a path nor in the Hub's cache, and the Hub "
      "cannot be reached; connect, or name a folder"
    ) from e
  except (HfHubHTTPError, HFValidationError, OSError) as e:
    reason = str(e).strip().splitlines()[0]
    raise InputError(
      f"cannot get {path_or_id} from the Hub: {reason}; check the name"
    ) from e
