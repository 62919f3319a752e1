"""tf.train.Example messages in TFRecord shards, without TensorFlow.

A shard has a sidecar `<shard>.idx` with a row for each record, so that any
record takes one read, and its number of frames and size are known without
decoding; see `Entry`. Equal examples give equal bytes.
"""

import functools
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from jaxtyping import Int64

from i2vgen_jax.errors import reading
from i2vgen_jax.files import replacing

Value = bytes | str | int | float
Index = Int64[np.ndarray, "n 5"]


class Entry(NamedTuple):
  """One row of a sidecar.

  Attributes:
    offset: position of the message in the shard, in bytes.
    length: length of the message, in bytes.
    num_frames: number of frames of the clip; 1 for a picture.
    width: width of the frames, in pixels.
    height: height of the frames, in pixels.
  """

  offset: int
  length: int
  num_frames: int
  width: int
  height: int


class Record(NamedTuple):
  """A serialised message, and the size of the clip or picture in it."""

  data: bytes
  num_frames: int
  width: int
  height: int


# Field of a feature in tf.train.Example for each type of values.
_FIELDS = {bytes: "bytes_list", float: "float_list", int: "int64_list"}


def encode_example(values: Mapping[str, Value | Sequence[Value]]) -> bytes:
  """Serialises features; text becomes UTF-8, a list several values."""
  example = _example_class()()
  for name, value in values.items():
    feature = example.features.feature[name]
    for one in value if isinstance(value, list | tuple) else [value]:
      raw = one.encode() if isinstance(one, str) else one
      getattr(feature, _FIELDS[type(raw)]).value.append(raw)
  return example.SerializeToString(deterministic=True)


def decode_example(
  raw: bytes, lists: Collection[str] = ()
) -> dict[str, Value | list[Value]]:
  """The inverse of `encode_example`; text stays UTF-8 bytes.

  Args:
    raw: the message.
    lists: names of the features that are lists; the others have one value.
  """
  decoded = {}
  features = _example_class().FromString(raw).features.feature
  for name, feature in features.items():
    values = [x for _, field in feature.ListFields() for x in field.value]
    decoded[name] = values if name in lists else values[0]
  return decoded


@functools.cache
def _example_class() -> Any:
  """tf.train.Example; TFDS has a copy of it that loads without TensorFlow."""
  # The import takes a second, and not every user of this module needs it.
  from tensorflow_datasets.proto import tf_example_generated_pb2

  return tf_example_generated_pb2.Example


def _masked_crc(data: bytes) -> bytes:
  """TFRecord's checksum: crc32c, rotated and shifted by a constant."""
  crc = google_crc32c.value(data)
  rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
  return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)


def sidecar(shard: Path) -> Path:
  """Path of the index of a shard."""
  return shard.with_name(shard.name + ".idx")


def write_shard(shard: Path, records: Iterable[Record]) -> None:
  """Writes a shard and its sidecar; a shard that exists is complete.

  Args:
    shard: file to write; both files appear by rename, the shard last.
    records: contents of the shard.
  """
  rows, offset = [], 0
  with replacing(shard) as unfinished:
    with unfinished.open("wb") as file:
      for data, *shape in records:
        length = struct.pack("<Q", len(data))
        header = length + _masked_crc(length)
        file.write(header + data + _masked_crc(data))
        rows.append(Entry(offset + len(header), len(data), *shape))
        offset += len(header) + len(data) + 4
    with replacing(sidecar(shard)) as index, index.open("wb") as file:
      np.save(file, np.array(rows, np.int64).reshape(-1, len(Entry._fields)))


def read_index(shard: Path) -> Index:
  """The sidecar of a shard, memory-mapped.

  Raises:
    InputError: The sidecar is missing or damaged.
  """
  path = sidecar(shard)
  with reading(path, "build the shards again"):
    index = np.load(path, mmap_mode="r")
    if index.ndim != 2 or index.shape[1] != len(Entry._fields):
      raise ValueError(f"not an index, its shape is {index.shape}")
  return index


def read_record(shard: Path, offset: int, length: int) -> bytes:
  """One message of a shard, its checksum verified.

  Raises:
    InputError: The shard is missing, shorter than its index says, or damaged.
  """
  with reading(shard, "build the shards again"):
    with shard.open("rb") as file:
      file.seek(offset)
      data, crc = file.read(length), file.read(4)
    if len(data) != length or crc != _masked_crc(data):
      raise ValueError(f"damaged record at byte {offset}")
  return data
