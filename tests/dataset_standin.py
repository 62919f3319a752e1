"""Small datasets of clips whose frames are identified by their pixels."""

import jax
import numpy as np

from data_pipelines.media import video
from data_pipelines.shards import tfrecord
from data_pipelines.shards.dataset import (
  Example,
  dataset_dir,
  describe,
  shard_path,
)


def counting_clip(name, size, num_frames, captions, fps=8):
  """Frame k is 20 k bright on its left half, 10 brighter on its right."""
  width, height = size
  frames = np.zeros((num_frames, height, width, 3), np.uint8)
  frames += (20 * np.arange(num_frames, dtype=np.uint8))[:, None, None, None]
  frames[:, :, width // 2 :] += 10
  mp4 = video.encode_mp4(frames, fps, crf=4, full_colour=True)
  return Example(mp4, captions, name, num_frames, width, height, fps)


def write_dataset(data_dir, kind, examples, shard_size=4):
  """The directory of a dataset with these examples."""
  shards = [
    examples[n : n + shard_size] for n in range(0, len(examples), shard_size)
  ]
  for number, part in enumerate(shards):
    path = shard_path(data_dir, kind, "train", number, len(shards))
    path.parent.mkdir(parents=True, exist_ok=True)
    tfrecord.write_shard(path, [example.record(kind) for example in part])
  describe(data_dir, kind, "train", len(shards))
  return dataset_dir(data_dir, kind)


def assert_equal(a, b):
  """The arrays of two batches are equal."""
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


def captions(batch):
  """The first token of each caption, which identifies it."""
  return batch.token_ids[:, 0].tolist()
