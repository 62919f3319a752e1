"""The two kinds of dataset on disk, laid out so that TFDS opens them.

A dataset lies in `<data_dir>/<kind>/1.0.0/`: TFRecord shards with their
sidecars, and features.json and dataset_info.json for
`tfds.builder_from_directory`. A video is H.264 in mp4 at its native frame
rate; a picture is JPEG.
"""

import bisect
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from data_pipelines import records
from i2vgen_jax.errors import InputError

Kind = Literal["text_video", "text_image"]
VERSION = "1.0.0"


def _features(kind: Kind):
  import tensorflow_datasets as tfds

  text = tfds.features.Text
  if kind == "text_image":
    image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
    return tfds.features.FeaturesDict(
      {"image": image, "caption": text(), "id": text()}
    )
  return tfds.features.FeaturesDict(
    {
      "video": tfds.features.Tensor(shape=(), dtype=np.object_),
      "caption": text(),
      "id": text(),
      "fps": tfds.features.Scalar(np.float32),
      "num_frames": tfds.features.Scalar(np.int64),
    }
  )


def dataset_dir(data_dir: Path, kind: Kind) -> Path:
  """Where a dataset of this kind lies below its data_dir."""
  return data_dir / kind / VERSION


class DatasetWriter:
  """Collects examples into shards of one split; `close` names and describes.

  At most one shard is held in memory. Nothing is written when nothing was
  added.
  """

  def __init__(self, data_dir: Path, kind: Kind, split: str, shard_size: int):
    """Prepares to write.

    Args:
      data_dir: parent of the dataset's directory.
      kind: which of the two datasets.
      split: name of the only split.
      shard_size: examples per shard.
    """
    self._dir = dataset_dir(data_dir, kind)
    self._kind, self._split, self._shard_size = kind, split, shard_size
    self._pending: list[tuple[bytes, int]] = []
    self._lengths: list[int] = []
    self._num_bytes = 0

  @property
  def num_examples(self) -> int:
    """How many were added so far."""
    return sum(self._lengths) + len(self._pending)

  def add_video(
    self, video: bytes, caption: str, id: str, fps: float | int, num_frames: int
  ) -> None:
    """Adds one clip: mp4 bytes and what they hold."""
    fields = {"video": video, "caption": caption, "id": id}
    fields |= {"fps": float(fps), "num_frames": int(num_frames)}
    self._add(records.encode_example(fields), num_frames)

  def add_image(self, image: bytes, caption: str, id: str) -> None:
    """Adds one picture: JPEG bytes and what they show."""
    fields = {"image": image, "caption": caption, "id": id}
    self._add(records.encode_example(fields), 1)

  def close(self) -> None:
    """Writes what is pending, gives shards their final names, describes."""
    self._flush()
    count = len(self._lengths)
    if not count:
      return
    for number in range(count):
      final = self._dir / (
        f"{self._kind}-{self._split}.tfrecord-{number:05d}-of-{count:05d}"
      )
      draft = self._draft(number)
      records.sidecar(draft).rename(records.sidecar(final))
      draft.rename(final)
    self._describe()

  def _add(self, record: bytes, num_frames: int) -> None:
    self._pending.append((record, num_frames))
    self._num_bytes += len(record)
    if len(self._pending) == self._shard_size:
      self._flush()

  def _draft(self, number: int) -> Path:
    return self._dir / f"shard-{number:05d}"

  def _flush(self) -> None:
    if self._pending:
      self._dir.mkdir(parents=True, exist_ok=True)
      records.write_shard(self._draft(len(self._lengths)), self._pending)
      self._lengths.append(len(self._pending))
      self._pending = []

  def _describe(self) -> None:
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
      data_dir=self._dir,
      dataset_name=self._kind,
      split=self._split,
      filetype_suffix="tfrecord",
    )
    split = tfds.core.SplitInfo(
      name=self._split,
      shard_lengths=self._lengths,
      num_bytes=self._num_bytes,
      filename_template=template,
    )
    tfds.folder_dataset.write_metadata(
      data_dir=self._dir,
      features=_features(self._kind),
      split_infos=[split],
      version=VERSION,
      check_data=False,
    )


class Dataset:
  """Random access to the records of one or more directories, without TFDS.

  Indices are memory-mapped, so that only pages in use take memory.
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
    self._indices = [records.read_index(shard) for shard in self._shards]
    self._ends = list(itertools.accumulate(map(len, self._indices)))

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, number: int) -> dict[str, bytes | int | float]:
    shard = bisect.bisect_right(self._ends, number)
    start = self._ends[shard] - len(self._indices[shard])
    offset, length, _ = self._indices[shard][number - start].tolist()
    raw = records.read_record(self._shards[shard], offset, length)
    return records.decode_example(raw)

  def too_short(self, num_frames: int) -> int:
    """How many records hold fewer frames than that."""
    counts = ((index[:, 2] < num_frames).sum() for index in self._indices)
    return int(sum(counts))


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
