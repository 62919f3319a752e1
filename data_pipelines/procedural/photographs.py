"""Folders of photographs, of which whole pictures are held out."""

import functools
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data_pipelines.media import pictures
from data_pipelines.procedural.world import Split
from i2vgen_jax.errors import InputError
from i2vgen_jax.preprocessing import load_picture


class Photographs:
  """The photographs of one split in a folder and the folders below it.

  About one in twelve is held out for testing, chosen by its name.

  Attributes:
    paths: files of the split, sorted by name.
  """

  def __init__(self, folder: str | Path, split: Split):
    """Lists the folder.

    Raises:
      InputError: the folder has no photographs of the split.
    """
    files = [p for p in Path(folder).rglob("*") if pictures.is_picture(p)]
    self.paths = sorted(
      (p for p in files if _split(p) == split), key=lambda p: p.name
    )
    if not self.paths:
      raise InputError(
        f"no photographs for the split {split} in {folder}, which has "
        f"{len(files)} in all; give a folder with about 100 or more"
      )
    self._load = functools.lru_cache(maxsize=64)(load_picture)

  def draw(self, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """One photograph, drawn uniformly.

    Raises:
      InputError: it cannot be read.
    """
    return self._load(self.paths[rng.integers(len(self.paths))])


def _split(path: Path) -> Split:
  return "test" if zlib.crc32(path.name.encode()) % 12 == 0 else "train"
