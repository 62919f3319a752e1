"""tf.train.Example messages in TFRecord shards, TensorFlow-free.

A shard has a sidecar `<shard>.idx`, a row per record, so that any record is
one read, and its length and shape are known without decoding; see `Entry`.
Equal examples give equal bytes.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from jaxtyping import Int64

from i2vgen_jax.errors import InputError
from i2vgen_jax.files import replacing

Value = bytes | str | int | float
Index = Int64[np.ndarray, "n 5"]


class Entry(NamedTuple):
  """One row of a sidecar.

  Attributes:
    offset: of the message in the shard, in bytes.
    length: of the message, in bytes.
    num_frames: of the clip in it; 1 for a picture.
    width: of its frames, in pixels.
    height: of its frames, in pixels.
  """

  offset: int
  length: int
  num_frames: int
  width: int
  height: int


class Record(NamedTuple):
  """A serialised message, and what its sidecar tells of it."""

  data: bytes
  num_frames: int
  width: int
  height: int


_PACKAGE = "i2vgen_jax.records"
_LISTS = {  # member of Feature -> (message, protobuf type of its values)
  "bytes_list": ("BytesList", descriptor_pb2.FieldDescriptorProto.TYPE_BYTES),
  "float_list": ("FloatList", descriptor_pb2.FieldDescriptorProto.TYPE_FLOAT),
  "int64_list": ("Int64List", descriptor_pb2.FieldDescriptorProto.TYPE_INT64),
}


def _example_class():
  """Describes tf.train.Example, in an own pool so as not to clash with TF."""
  field = descriptor_pb2.FieldDescriptorProto
  one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
  file = descriptor_pb2.FileDescriptorProto(
    name="example.proto", package=_PACKAGE, syntax="proto3"
  )

  def add(message, name, number, label, kind):
    target = {"type_name": f".{_PACKAGE}.{kind}"} if kind in names else {}
    kind = field.TYPE_MESSAGE if target else kind
    return message.field.add(
      name=name, number=number, label=label, type=kind, **target
    )

  names = {"Feature", "Features", "Features.FeatureEntry"}
  names |= {message for message, _ in _LISTS.values()}
  for message, kind in _LISTS.values():
    add(file.message_type.add(name=message), "value", 1, many, kind)
  feature = file.message_type.add(name="Feature")
  feature.oneof_decl.add(name="kind")
  for number, (member, (message, _)) in enumerate(_LISTS.items(), 1):
    add(feature, member, number, one, message).oneof_index = 0
  features = file.message_type.add(name="Features")
  entry = features.nested_type.add(name="FeatureEntry")
  entry.options.map_entry = True
  add(entry, "key", 1, one, field.TYPE_STRING)
  add(entry, "value", 2, one, "Feature")
  add(features, "feature", 1, many, "Features.FeatureEntry")
  example = file.message_type.add(name="Example")
  add(example, "features", 1, one, "Features")
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(
    pool.FindMessageTypeByName(f"{_PACKAGE}.Example")
  )


_Example = _example_class()


def encode_example(values: Mapping[str, Value | Sequence[Value]]) -> bytes:
  """One tf.train.Example; text becomes UTF-8, a list several values."""
  example = _Example()
  for name, value in values.items():
    feature = example.features.feature[name]
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
  raw: bytes, lists: Sequence[str] = ()
) -> dict[str, Value | list[Value]]:
  """The inverse of `encode_example`; text stays UTF-8 bytes.

  Args:
    raw: the message.
    lists: features that are lists; the others have one value.
  """
  features = _Example.FromString(raw).features.feature
  values = {
    name: list(getattr(feature, feature.WhichOneof("kind")).value)
    for name, feature in features.items()
  }
  return {n: v if n in lists else v[0] for n, v in values.items()}


def _masked_crc(data: bytes) -> bytes:
  """TFRecord's checksum: crc32c, rotated and shifted by a constant."""
  crc = google_crc32c.value(data)
  rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
  return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)


def sidecar(shard: Path) -> Path:
  """Where the index of a shard lies."""
  return shard.with_name(shard.name + ".idx")


def write_shard(shard: Path, records: Iterable[Record]) -> int:
  """Writes a shard and its sidecar; a shard that exists is whole.

  Args:
    shard: file to write; both files appear by rename, the shard last.
    records: what it shall hold.

  Returns:
    How many records there were.
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
    InputError: the sidecar is missing or is not one.
  """
  try:
    index = np.load(sidecar(shard), mmap_mode="r")
    if index.ndim != 2 or index.shape[1] != len(Entry._fields):
      raise ValueError(f"shape {index.shape}")
    return index
  except (OSError, ValueError, EOFError) as error:
    raise InputError(
      f"no usable index {sidecar(shard)} ({error}); build the shards again"
    ) from error


def read_record(shard: Path, offset: int, length: int) -> bytes:
  """One message of a shard, its checksum verified.

  Raises:
    InputError: the shard is missing, shorter than its index says, or damaged.
  """
  try:
    with shard.open("rb") as file:
      file.seek(offset)
      data, crc = file.read(length), file.read(4)
  except OSError as error:
    raise InputError(f"cannot read shard {shard}: {error.strerror}") from error
  if len(data) != length or crc != _masked_crc(data):
    raise InputError(
      f"damaged record at byte {offset} of {shard}; build the shards again"
    )
  return data
