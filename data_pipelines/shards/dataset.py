"""The kinds of dataset on disk, laid out so that TFDS opens them.

A dataset lies in `<data_dir>/<kind>/1.0.0/`: TFRecord shards with their
sidecars, and features.json and dataset_info.json for
`tfds.builder_from_directory`. A video is H.264 in mp4 at its native frame
rate; a picture is JPEG; `latents` makes the other two kinds of these.
"""

import bisect
import copy
import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

from data_pipelines.shards import tfrecord
from data_pipelines.shards.tfrecord import Record
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import remove_temporary

Kind = Literal["text_video", "text_image", "latent_video", "latent_image"]
# Rows of a sidecar -> which of their records are meant.
Choice = Callable[[tfrecord.Index], Bool[np.ndarray, "n"]]
VERSION = "1.0.0"

# Features with scores of a clip or picture, NaN if not measured, and what
# plots call them; see `footage.scores`.
SCORES = {
  "motion": "motion, shorter sides per second",
  "sharpness": "sharpness, variance",
  "brightness": "brightness, 0 to 1",
  "text_share": "share of overlaid text",
  "subject_share": "share of the main subject",
  "aesthetics": "aesthetics",
}
_LISTS = ("captions", "times")
# Sidecars open at a time.
_OPEN = 128


@dataclasses.dataclass(frozen=True)
class Example:
  """One clip or picture, as a record holds it.

  Attributes:
    media: mp4 or JPEG.
    captions: sentences, each of which describes it.
    id: its name, unlike that of any other.
    num_frames: 1 for a picture.
    width: of the frames, in pixels.
    height: of the frames, in pixels.
    fps: mean rate of the frames; 0 for a picture.
    source: the file it comes from; empty if it was drawn.
    start: time of its first frame there, in seconds.
    scores: by the names in SCORES, as far as they were measured.
  """

  media: bytes
  captions: Sequence[str]
  id: str
  num_frames: int
  width: int
  height: int
  fps: float | int = 0
  source: str = ""
  start: float | int = 0
  scores: Mapping[str, float | int] = dataclasses.field(default_factory=dict)

  def record(self, kind: Kind) -> Record:
    """Serialised, with the features of that kind."""
    values = {
      "captions": list(self.captions),
      "id": self.id,
      "source": self.source,
      "width": self.width,
      "height": self.height,
    }
    values |= {n: float(self.scores.get(n, math.nan)) for n in SCORES}
    if kind == "text_image":
      values["image"] = self.media
    else:
      values["video"] = self.media
      values["num_frames"] = self.num_frames
      values |= {"fps": float(self.fps), "start": float(self.start)}
    data = tfrecord.encode_example(values)
    return Record(data, self.num_frames, self.width, self.height)


def dataset_dir(data_dir: Path, kind: Kind) -> Path:
  """Where a dataset of this kind lies below its data_dir."""
  return data_dir / kind / VERSION


def shard_path(
  data_dir: Path, kind: Kind, split: str, number: int, count: int
) -> Path:
  """Shard `number` of `count`, by TFDS's names."""
  name = f"{kind}-{split}.tfrecord-{number:05d}-of-{count:05d}"
  return dataset_dir(data_dir, kind) / name


def describe(data_dir: Path, kind: Kind, split: str, count: int) -> int:
  """Writes TFDS's metadata of the only split, once its shards are there.

  Returns:
    How many examples they hold.
  """
  import tensorflow_datasets as tfds

  directory = dataset_dir(data_dir, kind)
  lengths, num_bytes = [], 0
  # One after the other: a process may hold no more than some hundred files.
  for number in range(count):
    index = tfrecord.read_index(
      shard_path(data_dir, kind, split, number, count)
    )
    lengths.append(len(index))
    num_bytes += int(index[:, 1].sum())
  remove_temporary(directory)
  split_info = tfds.core.SplitInfo(
    name=split,
    shard_lengths=lengths,
    num_bytes=num_bytes,
    filename_template=tfds.core.ShardedFileTemplate(
      data_dir=directory,
      dataset_name=kind,
      split=split,
      filetype_suffix="tfrecord",
    ),
  )
  tfds.folder_dataset.write_metadata(
    data_dir=directory,
    features=_features(kind),
    split_infos=[split_info],
    version=VERSION,
    check_data=False,
  )
  return sum(lengths)


def _features(kind: Kind):
  import tensorflow_datasets as tfds

  text, scalar = tfds.features.Text, tfds.features.Scalar
  features = {
    "captions": tfds.features.Sequence(text()),
    "id": text(),
    "source": text(),
    "width": scalar(np.int64),
    "height": scalar(np.int64),
  }
  features |= {name: scalar(np.float32) for name in SCORES}
  raw = tfds.features.Tensor(shape=(), dtype=np.object_)
  if kind.startswith("latent"):
    sizes = ("num_frames", "latent_width", "latent_height", "latent_channels")
    features |= {name: scalar(np.int64) for name in sizes}
    features |= {
      "moments": raw,
      "image_embeds": raw,
      "times": tfds.features.Sequence(scalar(np.float32)),
    }
  if kind == "latent_image":
    return tfds.features.FeaturesDict(features)
  if kind == "text_image":
    image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
    return tfds.features.FeaturesDict(features | {"image": image})
  features |= {"fps": scalar(np.float32), "start": scalar(np.float32)}
  if kind == "text_video":
    features |= {"video": raw, "num_frames": scalar(np.int64)}
  return tfds.features.FeaturesDict(features)


class Dataset:
  """Random access to the records of one or more directories, without TFDS.

  Indices are memory-mapped, so that only pages in use take memory, and few
  are open at a time: a process may hold no more than some hundred files.

  Attributes:
    kind: of the first directory, as of all.
    split: of the first directory.
  """

  def __init__(self, directories: Sequence[str | Path]):
    """Opens the indices.

    Args:
      directories: each a `<data_dir>/<kind>/1.0.0` of the same kind; their
        records follow one another in this order.

    Raises:
      InputError: no such dataset, or its shards do not add up.
    """
    self._shards = [
      shard for directory in directories for shard in _shards(Path(directory))
    ]
    self.kind, self.split = _kind_and_split(self._shards[0])
    for shard in self._shards:
      if _kind_and_split(shard)[0] != self.kind:
        raise InputError(
          f"{shard.parent} is not {self.kind}, as {self._shards[0].parent} is;"
          " read one kind at a time"
        )
    self._index = functools.lru_cache(_OPEN)(tfrecord.read_index)
    self._choice: Choice | None = None
    lengths = (len(self._index(shard)) for shard in self._shards)
    self._ends = list(itertools.accumulate(lengths))

  def where(self, choice: Choice) -> "Dataset":
    """The chosen records alone, in the same order.

    Remembers how many there are per shard, and chooses again when one is
    asked for: a list of them would not fit for millions of clips.
    """
    chosen = copy.copy(self)
    chosen._choice = choice
    counts = (int(choice(self._index(s)).sum()) for s in self._shards)
    chosen._ends = list(itertools.accumulate(counts))
    return chosen

  @property
  def num_shards(self) -> int:
    """Of all directories together."""
    return len(self._shards)

  def shard(self, number: int) -> Iterator[dict[str, Any]]:
    """The records of one shard, one after the other."""
    for row in range(len(self._index(self._shards[number]))):
      yield self.read((number, row))

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, number: int) -> dict[str, Any]:
    return self.read(self.place(number))

  def place(self, number: int) -> tuple[int, int]:
    """Shard and row of a record: its name in all that `where` returns."""
    shard = bisect.bisect_right(self._ends, number)
    row = number - (self._ends[shard - 1] if shard else 0)
    if self._choice is not None:
      chosen = self._choice(self._index(self._shards[shard]))
      row = int(np.flatnonzero(chosen)[row])
    return shard, row

  def read(self, place: tuple[int, int]) -> dict[str, Any]:
    """The record at a place.

    Raises:
      InputError: it is damaged, or the shard cannot be read.
    """
    shard, row = place
    path = self._shards[shard]
    entry = tfrecord.Entry(*self._index(path)[row].tolist())
    raw = tfrecord.read_record(path, entry.offset, entry.length)
    return tfrecord.decode_example(raw, _LISTS)


def kind_of(directory: Path) -> Kind:
  """The kind of a dataset; opens none of its sidecars.

  Raises:
    InputError: no dataset there.
  """
  return _kind_and_split(_shards(directory)[0])[0]


def _kind_and_split(shard: Path) -> tuple[Kind, str]:
  kind, split = shard.name.split(".tfrecord")[0].split("-", 1)
  return kind, split


def _shards(directory: Path) -> list[Path]:
  """The shards that the metadata promises, all there."""
  try:
    info = json.loads((directory / "dataset_info.json").read_text())
    lengths = [len(split["shardLengths"]) for split in info["splits"]]
  except (OSError, ValueError, KeyError) as error:
    raise InputError(
      f"no dataset in {directory}; give a directory such as"
      f" DATA_DIR/text_video/{VERSION} that `i2vgen data build` wrote"
    ) from error
  shards = sorted(directory.glob("*.tfrecord-?????-of-?????"))
  if len(shards) != sum(lengths):
    raise InputError(
      f"{directory} has {len(shards)} of {sum(lengths)} shards;"
      " build or copy it again"
    )
  return shards
