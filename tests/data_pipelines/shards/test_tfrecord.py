"""Records and shards are compatible with TensorFlow."""

import io

import numpy as np
import pytest

from data_pipelines.shards import tfrecord
from i2vgen_jax.errors import InputError

VALUES = {
  "video": bytes(range(256)) * 5,
  "caption": "ein Hund läuft 🐕",
  "num_frames": 17,
  "offset": -5,
  "fps": 29.97,
  "captions": ["one", "two", "three"],
}
RECORDS = [
  tfrecord.Record(b"one", 1, 4, 2),
  tfrecord.Record(b"", 2, 6, 8),
  tfrecord.Record(b"three" * 1000, 3, 10, 12),
]


@pytest.fixture(scope="module")
def tf():
  import tensorflow as tf

  return tf


@pytest.fixture
def shard(tmp_path):
  path = tmp_path / "some.tfrecord"
  tfrecord.write_shard(path, RECORDS)
  return path


def test_tensorflow_parses_our_examples(tf):
  feature = tf.train.Example.FromString(
    tfrecord.encode_example(VALUES)
  ).features.feature
  assert set(feature) == set(VALUES)
  assert feature["video"].bytes_list.value[:] == [VALUES["video"]]
  assert feature["caption"].bytes_list.value[0].decode() == VALUES["caption"]
  assert feature["num_frames"].int64_list.value[:] == [17]
  assert feature["offset"].int64_list.value[:] == [-5]
  np.testing.assert_allclose(feature["fps"].float_list.value[:], 29.97)
  assert feature["captions"].bytes_list.value[:] == [b"one", b"two", b"three"]


def test_we_parse_tensorflows_examples(tf):
  train = tf.train
  raw = train.Example(
    features=train.Features(
      feature={
        "a": train.Feature(bytes_list=train.BytesList(value=[b"x"])),
        "b": train.Feature(float_list=train.FloatList(value=[0.5])),
        "c": train.Feature(int64_list=train.Int64List(value=[-(2**40)])),
      }
    )
  ).SerializeToString()
  assert tfrecord.decode_example(raw, ["c"]) == {
    "a": b"x",
    "b": 0.5,
    "c": [-(2**40)],
  }


def test_the_order_of_features_does_not_change_the_bytes():
  turned = dict(reversed(VALUES.items()))
  assert tfrecord.encode_example(turned) == tfrecord.encode_example(VALUES)


def test_tensorflow_reads_our_shards(tf, shard):
  # TensorFlow verifies both checksums of every record.
  read = [x.numpy() for x in tf.data.TFRecordDataset(str(shard))]
  assert read == [b"one", b"", b"three" * 1000]


def test_the_index_locates_every_record(shard):
  index = tfrecord.read_index(shard)
  assert index[:, 2:].tolist() == [[1, 4, 2], [2, 6, 8], [3, 10, 12]]
  read = [tfrecord.read_record(shard, *row[:2]) for row in index.tolist()]
  assert read == [b"one", b"", b"three" * 1000]
  assert sorted(p.name for p in shard.parent.iterdir()) == [
    "some.tfrecord",
    "some.tfrecord.idx",
  ]


def test_a_failed_write_leaves_no_shard(tmp_path):
  def failing():
    yield RECORDS[0]
    raise RuntimeError("decoder failed")

  with pytest.raises(RuntimeError):
    tfrecord.write_shard(tmp_path / "some.tfrecord", failing())
  assert not (tmp_path / "some.tfrecord").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_shard_is_named(shard, damage):
  offset, length, *_ = tfrecord.read_index(shard)[2].tolist()
  raw = bytearray(shard.read_bytes())
  raw[offset + 7] ^= 1
  shard.write_bytes(raw if damage == "flip" else raw[: offset + 100])
  if damage == "remove":
    shard.unlink()
  with pytest.raises(InputError, match=r"some\.tfrecord"):
    tfrecord.read_record(shard, offset, length)


def narrow_index():
  buffer = io.BytesIO()
  np.save(buffer, np.zeros((3, 3), np.int64))
  return buffer.getvalue()


@pytest.mark.parametrize(
  "content", [None, b"", b"not an array", narrow_index()]
)
def test_a_missing_or_damaged_index_is_named(shard, content):
  tfrecord.sidecar(shard).unlink()
  if content is not None:
    tfrecord.sidecar(shard).write_bytes(content)
  with pytest.raises(InputError, match=r"some.tfrecord.idx"):
    tfrecord.read_index(shard)
