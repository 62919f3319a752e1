"""Single-valued tf.train.Example messages in TFRecord shards, TensorFlow-free.

A shard has a sidecar `<shard>.idx`: int64 rows (offset of the message in the
shard, its length in bytes, frames of the clip in it), so that any record is
one read and the shortest clip is known without decoding. Equal examples give
equal bytes.
"""

import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from jaxtyping import Int64

from i2vgen_jax.errors import InputError

Value = bytes | str | int | float
Index = Int64[np.ndarray, "n 3"]

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


def encode_example(values: Mapping[str, Value]) -> bytes:
  """One tf.train.Example with one value per feature; text becomes UTF-8."""
  example = _Example()
  for name, value in values.items():
    feature = example.features.feature[name]
    if isinstance(value, int):
      feature.int64_list.value.append(value)
    elif isinstance(value, float):
      feature.float_list.value.append(value)
    else:
      raw = value.encode() if isinstance(value, str) else value
      feature.bytes_list.value.append(raw)
  return example.SerializeToString(deterministic=True)


def decode_example(raw: bytes) -> dict[str, bytes | int | float]:
  """The inverse of `encode_example`; text stays UTF-8 bytes."""
  features = _Example.FromString(raw).features.feature
  return {
    name: getattr(feature, feature.WhichOneof("kind")).value[0]
    for name, feature in features.items()
  }


def _masked_crc(data: bytes) -> bytes:
  """TFRecord's checksum: crc32c, rotated and shifted by a constant."""
  crc = google_crc32c.value(data)
  rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
  return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)


def sidecar(shard: Path) -> Path:
  """Where the index of a shard lies."""
  return shard.with_name(shard.name + ".idx")


def write_shard(shard: Path, records: Iterable[tuple[bytes, int]]) -> None:
  """Writes a shard and its sidecar; a shard that exists is whole.

  Args:
    shard: file to write; both files appear by rename, the shard last.
    records: serialised messages, each with its number of frames.
  """
  rows, offset = [], 0
  unfinished = shard.with_name(shard.name + ".tmp")
  with unfinished.open("wb") as file:
    for data, num_frames in records:
      length = struct.pack("<Q", len(data))
      header = length + _masked_crc(length)
      file.write(header + data + _masked_crc(data))
      rows.append((offset + len(header), len(data), num_frames))
      offset += len(header) + len(data) + 4
  unfinished_index = unfinished.with_name(unfinished.name + ".idx")
  with unfinished_index.open("wb") as file:
    np.save(file, np.array(rows, np.int64).reshape(-1, 3))
  os.replace(unfinished_index, sidecar(shard))
  os.replace(unfinished, shard)


def read_index(shard: Path) -> Index:
  """The sidecar of a shard, memory-mapped.

  Raises:
    InputError: the sidecar is missing or is not one.
  """
  try:
    return np.load(sidecar(shard), mmap_mode="r")
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
