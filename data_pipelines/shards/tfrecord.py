"""tf.train.Example messages in TFRecord shards, without TensorFlow.

A shard has a sidecar `<shard>.idx` with a row for each record, so that any
record takes one read, and its number of frames and size are known without
decoding; see `Entry`. Equal examples give equal bytes.
"""

import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
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


# tf.train.Example in protobuf: message -> its fields, numbered from 1. A map
# and a list of entries are the same on the wire, and so is a oneof without
# its declaration.
_PACKAGE = "i2vgen_jax.records"
_SCHEMA = {
  "BytesList": ["repeated bytes value"],
  "FloatList": ["repeated float value"],
  "Int64List": ["repeated int64 value"],
  "Feature": [
    "optional BytesList bytes_list",
    "optional FloatList float_list",
    "optional Int64List int64_list",
  ],
  "FeatureEntry": ["optional string key", "optional Feature value"],
  "Features": ["repeated FeatureEntry feature"],
  "Example": ["optional Features features"],
}


def _example_class() -> Any:
  """tf.train.Example in a descriptor pool of its own, apart from TensorFlow."""
  field = descriptor_pb2.FieldDescriptorProto
  file = descriptor_pb2.FileDescriptorProto(
    name="example.proto", package=_PACKAGE, syntax="proto3"
  )
  for message, fields in _SCHEMA.items():
    target = file.message_type.add(name=message)
    for number, declaration in enumerate(fields, 1):
      label, kind, name = declaration.split()
      added = target.field.add(name=name, number=number)
      added.label = field.Label.Value(f"LABEL_{label.upper()}")
      if kind in _SCHEMA:
        added.type_name = f".{_PACKAGE}.{kind}"
      else:
        added.type = field.Type.Value(f"TYPE_{kind.upper()}")
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  found = pool.FindMessageTypeByName(f"{_PACKAGE}.Example")
  return message_factory.GetMessageClass(found)


_Example = _example_class()


def encode_example(values: Mapping[str, Value | Sequence[Value]]) -> bytes:
  """Serialises features; text becomes UTF-8, a list several values."""
  example = _Example()
  for name in sorted(values):
    value = values[name]
    feature = example.features.feature.add(key=name).value
    feature.SetInParent()
    for one in value if isinstance(value, list | tuple) else [value]:
      if isinstance(one, int):
        feature.int64_list.value.append(one)
      elif isinstance(one, float):
        feature.float_list.value.append(one)
      else:
        raw = one.encode() if isinstance(one, str) else one
        feature.bytes_list.value.append(raw)
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
  for entry in _Example.FromString(raw).features.feature:
    fields = entry.value.ListFields()
    values = [value for _, field in fields for value in field.value]
    decoded[entry.key] = values if entry.key in lists else values[0]
  return decoded


def _masked_crc(data: bytes) -> bytes:
  """TFRecord's checksum: crc32c, rotated and shifted by a constant."""
  crc = google_crc32c.value(data)
  rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
  return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)


def sidecar(shard: Path) -> Path:
  """Path of the index of a shard."""
  return shard.with_name(shard.name + ".idx")


def write_shard(shard: Path, records: Iterable[Record]) -> int:
  """Writes a shard and its sidecar; a shard that exists is complete.

  Args:
    shard: file to write; both files appear by rename, the shard last.
    records: contents of the shard.

  Returns:
    Number of records.
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
  return len(rows)


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
