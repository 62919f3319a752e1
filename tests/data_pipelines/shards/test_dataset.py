"""Datasets on disk, read by TFDS and by `Dataset`."""

import os
import resource

import numpy as np
import pytest

from data_pipelines.media import video
from data_pipelines.shards import tfrecord
from data_pipelines.shards.dataset import (
  Dataset,
  dataset_dir,
  describe,
  shard_path,
)
from data_pipelines.shards.tfrecord import Entry
from i2vgen_jax import preprocessing
from i2vgen_jax.errors import InputError


def opened(directory):
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(directory)
  examples = tfds.as_numpy(
    builder.as_dataset(split="train", shuffle_files=False)
  )
  return builder.info, list(examples)


def test_tfds_opens_the_clips_and_reads_the_same(procedural_dir):
  directory = dataset_dir(procedural_dir, "text_video")
  info, examples = opened(directory)
  assert info.splits["train"].shard_lengths == [10, 10, 4]
  ours = Dataset([directory])
  assert len(ours) == len(examples) == 24
  for number, example in enumerate(examples):
    record = ours[number]
    assert example.keys() == record.keys()
    assert example["captions"].tolist() == record["captions"]
    for name in example.keys() - {"captions"}:
      np.testing.assert_equal(example[name], record[name])
  frames, times = video.decode_mp4(examples[13]["video"])
  assert frames.shape == (8, 32, 48, 3)
  np.testing.assert_allclose(times, np.arange(8) / 8)


def test_tfds_opens_the_pictures_and_decodes_the_same(procedural_dir):
  directory = dataset_dir(procedural_dir, "text_image")
  _, examples = opened(directory)
  ours = Dataset([directory])
  assert len(ours) == len(examples) == 24
  for number, example in enumerate(examples):
    record = ours[number]
    assert example["captions"][0] == record["captions"][0]
    assert example["id"] == record["id"]
    decoded = preprocessing.load_picture(record["image"], "x").astype(int)
    assert np.abs(example["image"] - decoded).mean() < 1.5  # two JPEG decoders


def test_datasets_are_concatenated(procedural_dir):
  directory = dataset_dir(procedural_dir, "text_video")
  one, two = Dataset([directory]), Dataset([directory, directory])
  assert len(two) == 48
  for number in (0, 9, 10, 23):
    assert two[number]["id"] == two[number + 24]["id"] == one[number]["id"]
  assert len({one[n]["id"] for n in range(24)}) == 24
  with pytest.raises(IndexError):
    one[24]


def test_where_keeps_order_and_places(mixed):
  dataset = Dataset([mixed["wide"], mixed["tall"]])
  ids = [dataset[number]["id"] for number in range(14)]
  brief = dataset.where(lambda index: Entry(*index.T).num_frames == 3)
  assert [brief[n]["id"] for n in range(len(brief))] == ids[6:9]
  assert [brief.place(n) for n in range(3)] == [(1, 2), (1, 3), (2, 0)]
  assert dataset.read(brief.place(2))["id"] == b"brief2"
  tall = dataset.where(lambda index: Entry(*index.T).height == 48)
  assert [tall[n]["id"] for n in range(len(tall))] == ids[9:]
  assert len(dataset.where(lambda index: index[:, 0] < 0)) == 0
  assert len(dataset) == 14  # as it was
  with pytest.raises(IndexError):
    brief[3]


@pytest.fixture
def few_files():
  """Limits the process to 160 more open files."""
  before = resource.getrlimit(resource.RLIMIT_NOFILE)
  limit = len(os.listdir("/proc/self/fd")) + 160
  resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
  yield
  resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_shards_than_a_process_may_have_files(tmp_path, few_files):
  count = 200
  for number in range(count):
    path = shard_path(tmp_path, "text_image", "train", number, count)
    path.parent.mkdir(parents=True, exist_ok=True)
    example = tfrecord.encode_example({"captions": [str(number)]})
    tfrecord.write_shard(path, [tfrecord.Record(example, 1, number, 2)])
  assert describe(tmp_path, "text_image", "train", count) == count
  dataset = Dataset([dataset_dir(tmp_path, "text_image")])
  assert len(dataset) == count
  for number in (199, 0, 199):
    assert dataset[number]["captions"] == [b"%d" % number]
  wide = dataset.where(lambda index: Entry(*index.T).width >= 150)
  assert wide[0]["captions"] == [b"150"] and len(wide) == 50


def test_folders_without_a_dataset_are_rejected(tmp_path, procedural_dir):
  with pytest.raises(InputError, match="nowhere"):
    Dataset([tmp_path / "nowhere"])
  with pytest.raises(InputError, match=r"dataset_info\.json.*give a folder"):
    Dataset([procedural_dir])  # the data_dir, not the dataset


def test_a_missing_shard_is_rejected(tmp_path, procedural_dir):
  import shutil

  copy = tmp_path / "copy"
  shutil.copytree(dataset_dir(procedural_dir, "text_video"), copy)
  next(copy.glob("*-00001-of-00003")).unlink()
  with pytest.raises(InputError, match="2 of 3 shards"):
    Dataset([copy])
