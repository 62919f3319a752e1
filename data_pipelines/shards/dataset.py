"""Datasets on disk, in a layout that TFDS opens.

A dataset is a folder `<data_dir>/<kind>/1.0.0/` of TFRecord shards with their
sidecars, and features.json and dataset_info.json for
`tfds.builder_from_directory`. A clip is H.264 in mp4 at its native frame rate,
a picture is JPEG; `latents` encodes these two kinds to the other two.
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from data_pipelines.media import video
from data_pipelines.shards import tfrecord
from i2vgen_jax import preprocessing
from i2vgen_jax.errors import InputError, reading
from i2vgen_jax.files import read_json, remove_temporary

Kind = Literal["text_video", "text_image", "latent_video", "latent_image"]
# Rows of a sidecar -> which of their records are chosen.
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
_TEXTS = {"captions": [str], "id": str, "source": str}
_SIZE = {"width": int, "height": int}
_COMMON = _TEXTS | _SIZE | dict.fromkeys(SCORES, float)
_CLIP = {"num_frames": int, "fps": float, "start": float}
_SHAPE = ("num_frames", "latent_width", "latent_height", "latent_channels")
_ARRAYS = {"moments": bytes, "image_embeds": bytes, "times": [float]}
_LATENTS = dict.fromkeys(_SHAPE, int) | _ARRAYS
# Features of each kind of dataset and their types; [x] is a list of x.
FEATURES: dict[Kind, dict[str, Any]] = {
  "text_video": _COMMON | _CLIP | {"video": bytes},
  "text_image": _COMMON | {"image": "jpeg"},
  "latent_video": _COMMON | _CLIP | _LATENTS,
  "latent_image": _COMMON | _LATENTS,
}
_LISTS = ("captions", "times")
# Sidecars open at a time.
_OPEN = 128


def make_record(kind: Kind, values: Mapping[str, Any]) -> tfrecord.Record:
  """Serialises the features of a kind; scores that are absent become NaN.

  Args:
    kind: kind of the dataset.
    values: features by name, with num_frames, width and height; those that
      the kind lacks are ignored.
  """
  values = dict.fromkeys(SCORES, math.nan) | values
  features = {
    name: float(values[name]) if type_ is float else values[name]
    for name, type_ in FEATURES[kind].items()
  }
  shape = (values[name] for name in ("num_frames", "width", "height"))
  return tfrecord.Record(tfrecord.encode_example(features), *shape)


def media_of(record: Mapping[str, Any]) -> bytes:
  """The mp4 or JPEG file in a record of pixels."""
  return record["image"] if "image" in record else record["video"]


def load_frames(
  record: Mapping[str, Any],
  select: Callable[[video.Times], Sequence[int]] | None = None,
  until: float | int = math.inf,
) -> tuple[video.Frames, video.Times]:
  """Decodes a record of pixels.

  Args:
    record: record of a text_video or text_image dataset.
    select: chooses frames of a clip; see `video.decode_mp4`.
    until: end of the part that is decoded, in seconds; see `video.decode_mp4`.

  Returns:
    The frames, and their times in seconds. A picture is one frame.

  Raises:
    InputError: The picture or clip is damaged.
  """
  name = record["id"].decode()
  if "image" in record:
    return preprocessing.load_picture(record["image"], name)[None], np.zeros(1)
  return video.decode_mp4(record["video"], select, until=until, name=name)


def load_to_cover(
  record: Mapping[str, Any],
  select: Callable[[video.Times], Sequence[int]],
  cover: tuple[int, int],
  until: float | int = math.inf,
) -> tuple[list[video.Frame], video.WholeFrame]:
  """Decodes a record of pixels for a smaller size.

  Args:
    record: record of a text_video or text_image dataset.
    select: see `load_frames`, as for `until`.
    cover: see `video.decode_to_cover`. Pictures are not scaled.

  Returns:
    The frames, and the first of them at its own size.

  Raises:
    InputError: The picture or clip is damaged.
  """
  if "image" in record:
    [picture], _ = load_frames(record)
    return [picture], picture
  name = record["id"].decode()
  return video.decode_to_cover(
    record["video"], select, cover, until=until, name=name
  )


@dataclasses.dataclass(frozen=True)
class Example:
  """One clip or picture to write.

  Attributes:
    media: content of an mp4 or JPEG file.
    captions: sentences that describe it, one of which is drawn in each epoch.
    id: unique name.
    num_frames: number of frames; 1 for a picture.
    width: width of the frames, in pixels.
    height: height of the frames, in pixels.
    fps: mean frame rate; 0 for a picture.
    source: file that it comes from; empty if it was drawn.
    start: time of its first frame in that file, in seconds.
    scores: measured scores by their names in SCORES.
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

  def record(self, kind: Kind) -> tfrecord.Record:
    """Serialises it as a record of that kind."""
    media = {"video": self.media, "image": self.media}
    return make_record(kind, {**vars(self), **media, **self.scores})


def dataset_dir(data_dir: Path, kind: Kind) -> Path:
  """Folder of a dataset of this kind in its data_dir."""
  return data_dir / kind / VERSION


def shard_path(
  data_dir: Path, kind: Kind, split: str, number: int, count: int
) -> Path:
  """Path of shard `number` of `count`, as TFDS names it."""
  name = f"{kind}-{split}.tfrecord-{number:05d}-of-{count:05d}"
  return dataset_dir(data_dir, kind) / name


def describe(data_dir: Path, kind: Kind, split: str, count: int) -> int:
  """Writes TFDS's metadata of the only split, once its shards are there.

  Returns:
    Number of examples.
  """
  import tensorflow_datasets as tfds

  directory = dataset_dir(data_dir, kind)
  lengths, num_bytes = [], 0
  # One at a time: a process can open only some hundred files.
  for number in range(count):
    shard = shard_path(data_dir, kind, split, number, count)
    index = tfrecord.read_index(shard)
    lengths.append(len(index))
    num_bytes += int(index[:, 1].sum())
  remove_temporary(directory)
  info = tfds.core.SplitInfo(split, lengths, num_bytes)
  tfds.folder_dataset.write_metadata(
    data_dir=directory,
    features=_tfds_features(kind),
    split_infos=[info],
    version=VERSION,
    check_data=False,
  )
  return sum(lengths)


def _tfds_features(kind: Kind) -> dict[str, Any]:
  from tensorflow_datasets import features as tfds

  types = {
    str: tfds.Text(),
    int: tfds.Scalar(np.int64),
    float: tfds.Scalar(np.float32),
    bytes: tfds.Tensor(shape=(), dtype=np.object_),
    "jpeg": tfds.Image(shape=(None, None, 3), encoding_format="jpeg"),
  }
  return {
    name: tfds.Sequence(types[t[0]]) if name in _LISTS else types[t]
    for name, t in FEATURES[kind].items()
  }


class Dataset:
  """Random access to the records of directories, without a TFDS builder.

  Sidecars are memory-mapped, so that only pages in use take memory, and few
  are open at a time, as a process can open only some hundred files.

  Attributes:
    name: paths of the directories, for messages.
    kind: kind of all directories.
    split: split of the first directory.
    shards: paths of all shards.
  """

  def __init__(self, directories: Sequence[str | Path]):
    """Opens the sidecars.

    Args:
      directories: folders `<data_dir>/<kind>/1.0.0` of the same kind, whose
        records follow one another in this order.

    Raises:
      InputError: A dataset or some of its shards are missing, or the kinds
        differ.
    """
    self.shards = [s for folder in directories for s in _list_shards(folder)]
    self.name = ", ".join(map(str, directories))
    self.kind, self.split = _kind_and_split(self.shards[0])
    for shard in self.shards:
      if _kind_and_split(shard)[0] != self.kind:
        raise InputError(
          f"{shard.parent} is not {self.kind} like {self.shards[0].parent};"
          " read one kind at a time"
        )
    self._index = functools.lru_cache(_OPEN)(tfrecord.read_index)
    self._choice: Choice | None = None
    self._count()

  def _count(self) -> None:
    lengths = [len(self._rows(n)) for n in range(len(self.shards))]
    self._ends = np.cumsum(lengths)

  def _rows(self, shard: int) -> Sequence[int] | Int[np.ndarray, "n"]:
    """The rows of a shard that are chosen."""
    index = self._index(self.shards[shard])
    if self._choice is None:
      return range(len(index))
    return np.flatnonzero(self._choice(index))

  def where(self, choice: Choice) -> "Dataset":
    """The chosen records, in the same order.

    Only their numbers per shard are kept, and `choice` runs again for each
    access: a list of millions of clips would take too much memory.
    """
    chosen = copy.copy(self)
    chosen._choice = choice
    chosen._count()
    return chosen

  def shard(self, number: int) -> Iterator[dict[str, Any]]:
    """The records of one shard, in order."""
    return (self.read((number, row)) for row in self._rows(number))

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, number: int) -> dict[str, Any]:
    return self.read(self.place(number))

  def place(self, number: int) -> tuple[int, int]:
    """Shard and row of a record, which `where` does not change."""
    shard = int(np.searchsorted(self._ends, number, "right"))
    row = number - (self._ends[shard - 1] if shard else 0)
    return shard, int(self._rows(shard)[row])

  def read(self, place: tuple[int, int]) -> dict[str, Any]:
    """The record at a place.

    Raises:
      InputError: The record is damaged, or the shard cannot be read.
    """
    shard, row = place
    path = self.shards[shard]
    offset, length, *_ = self._index(path)[row].tolist()
    raw = tfrecord.read_record(path, offset, length)
    return tfrecord.decode_example(raw, _LISTS)


def kind_of(directory: Path) -> Kind:
  """The kind of a dataset, without opening its sidecars.

  Raises:
    InputError: There is no dataset.
  """
  return _kind_and_split(_list_shards(directory)[0])[0]


def _kind_and_split(shard: Path) -> tuple[Kind, str]:
  return tuple(shard.name.split(".tfrecord")[0].split("-", 1))


def _list_shards(directory: str | Path) -> list[Path]:
  """The shards that the metadata lists, if all of them exist."""
  advice = (
    f"give a folder such as DATA_DIR/text_video/{VERSION} that"
    " `i2vgen data build` finished, or copy it again"
  )
  path = Path(directory) / "dataset_info.json"
  info = read_json(path, advice=advice)
  with reading(path, advice):
    count = sum(len(split["shardLengths"]) for split in info["splits"])
    shards = sorted(path.parent.glob("*.tfrecord-?????-of-?????"))
    if not shards or len(shards) != count:
      raise ValueError(f"found {len(shards)} of {count} shards")
  return shards
