"""Readers with weights, shapes, captions, crops and flips combined."""

import jax
import numpy as np
import pytest
from dataset_standin import (
  assert_equal,
  captions,
  counting_clip,
  write_dataset,
)

from data_pipelines.loading import reader
from data_pipelines.loading.augmentation import Augmentation

# Everything at once: weights, shapes, lengths, captions, crops and flips.
ALL_BUCKETS = (
  (8, 8.0, 3.0), (8, 4.0, 3.0, (16, 24)), (3, 4.0, 2.0), (1, 1.0, 2.0),
)  # fmt: skip


@pytest.fixture
def with_everything(mixed, tokenizer):
  def make(**changes):
    options = {
      "video_dirs": [(mixed["wide"], 3), (mixed["tall"], 1)],
      "image_dirs": [mixed["stills"]], "batch_size": 8, "size": (24, 16),
      "buckets": ALL_BUCKETS, "clip_size": 8, "tokenizer": tokenizer,
      "seed": 2, "augmentation": Augmentation(min_crop=0.7, flip=0.5),
    }  # fmt: skip
    return reader.Reader(**options | changes)

  return make


def host_rows(hosts):
  return np.arange(8).reshape(hosts, -1).tolist()


def test_resuming_on_other_hosts_gives_the_same_batches(with_everything):
  """Two runs are interrupted and resumed while threads read ahead."""
  one = with_everything()
  whole = [one.batch(step) for step in range(14)]
  assert len({batch.frames.shape for batch in whole}) == 4
  for stretches in ([(1, 5), (2, 9), (4, 14)], [(4, 3), (1, 6), (2, 14)]):
    start = 0
    for hosts, stop in stretches:
      streams = [
        with_everything().iterate(start, rows) for rows in host_rows(hosts)
      ]
      for step in range(start, stop):
        parts = [next(stream) for stream in streams]
        together = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
        assert_equal(together, whole[step])
      start = stop


def test_the_cache_distinguishes_sizes(with_everything):
  sizes = ((3, 4.0, 1.0), (3, 4.0, 1.0, (48, 32)))
  clips = with_everything(buckets=sizes, augmentation=None)
  for step in range(12):
    width, height = clips.bucket(step).size
    assert clips.batch(step).frames.shape == (8, 3, height, width, 3)


def test_batches_have_the_shape_of_their_bucket(with_everything):
  clips = with_everything()
  seen = set()
  for step in range(40):
    frames, bucket = clips.batch(step).frames, clips.bucket(step)
    assert frames.shape == (8, bucket.num_frames, *bucket.size[::-1], 3)
    seen.add(bucket)
  assert len(seen) == len(ALL_BUCKETS)


def test_frames_are_evenly_spaced_and_fps_is_true(with_everything):
  """Frame k has brightness 20 k, which reveals the spacing of frames."""
  clips = with_everything(augmentation=None, image_dirs=[])
  strides = set()
  for step in range(40):
    batch, bucket = clips.batch(step), clips.bucket(step)
    if bucket.num_frames == 1:
      continue
    left = batch.frames[:, :, 4, 2, 0].astype(int)
    right = batch.frames[:, :, 4, -3, 0].astype(int)
    for row in range(8):
      (stride,) = set(np.rint(np.diff(left[row]) / 20).astype(int))
      assert batch.fps[row] == 8 / stride
      assert (np.abs(right[row] - left[row] - 10) <= 3).all()
      strides.add(int(stride))
  assert strides == {1, 2}


def test_a_clip_and_its_view_share_crop_and_flip(mixed, tokenizer):
  clips = reader.Reader(
    [mixed["wide"]], batch_size=64, size=(48, 32), buckets=[(8, 8.0, 1.0)],
    clip_size=8, tokenizer=tokenizer, seed=0,
    augmentation=Augmentation(min_crop=0.9, flip=0.5),
  )  # fmt: skip
  batch = clips.batch(0)
  frames = batch.frames[..., 16, :, 0].astype(int)
  rises = frames[:, :, -1] - frames[:, :, 0]
  mirrored = rises.mean(1) < 0
  assert 16 < mirrored.sum() < 48
  assert (np.sign(rises) == np.where(mirrored, -1, 1)[:, None]).all()
  view = batch.clip_images[..., 4, :, 0]
  np.testing.assert_array_equal(view[:, -1] < view[:, 0], mirrored)
  # The edge between the halves is where the crop has put it, in all frames.
  edges = np.abs(np.diff(frames, axis=2)).argmax(2)
  assert (edges == edges[:, :1]).all()
  assert len(set(edges[:, 0].tolist())) > 3


def test_captions_that_name_a_side_are_never_mirrored(tmp_path, tokenizer):
  texts = ["it moves left", "it moves"]
  clip = counting_clip("one", (32, 32), 4, texts)
  clips = reader.Reader(
    [write_dataset(tmp_path, "text_video", [clip])], batch_size=32,
    size=(32, 32), buckets=[(4, 8.0, 1.0)], clip_size=8, tokenizer=tokenizer,
    seed=0, augmentation=Augmentation(flip=1.0),
  )  # fmt: skip
  batch = clips.batch(0)
  frames = batch.frames[:, 1, 16, :, 0].astype(int)
  mirrored = frames[:, -1] < frames[:, 0]
  codes = tokenizer(texts).ids[:, 0]
  np.testing.assert_array_equal(mirrored, batch.token_ids[:, 0] == codes[1])
  assert 0 < mirrored.sum() < 32


def test_each_epoch_draws_new_captions(mixed, tokenizer):
  clips = reader.Reader(
    [mixed["tall"]], batch_size=5, size=(16, 24), buckets=[(8, 8.0, 1.0)],
    clip_size=8, tokenizer=tokenizer, seed=0,
  )  # fmt: skip
  known = {}
  for n in range(5):
    texts = [f"tall{n} a", f"tall{n} b", f"tall{n} at rather great length"]
    known |= dict.fromkeys(tokenizer(texts).ids[:, 0].tolist(), n)
  epochs = [captions(clips.batch(step)) for step in range(40)]
  for epoch in epochs:
    assert sorted(known[code] for code in epoch) == list(range(5))
  drawn = np.concatenate(epochs)
  counts = [(drawn == code).sum() for code in known]
  assert min(counts) > 3  # of 13 expected each


def test_cut_captions_are_counted(mixed, tokenizer):
  clips = reader.Reader(
    [mixed["tall"]], batch_size=30, size=(16, 24), buckets=[(8, 8.0, 1.0)],
    clip_size=8, tokenizer=tokenizer, seed=0,
  )  # fmt: skip
  assert clips.captions_cut == clips.captions_read == 0
  batch = clips.batch(0)
  long = tokenizer([f"tall{n} at rather great length" for n in range(5)])
  expected = np.isin(batch.token_ids[:, 0], long.ids[:, 0]).sum()
  assert 0 < expected < 30
  assert (clips.captions_cut, clips.captions_read) == (expected, 30)


def test_left_out_clips_and_pictures_are_reported(with_everything):
  assert not any("left out" in line for line in with_everything().report)
  strict = with_everything(buckets=ALL_BUCKETS[:2])
  assert "3 of 14 clips fit no bucket" in strict.report[2]
  assert strict.report[3] == "no bucket draws from the 6 pictures"
