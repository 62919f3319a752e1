"""Batches depend on seed and step alone, and rows may be read anywhere."""

import itertools
import shutil

import jax
import numpy as np
import pytest
from dataset_standin import assert_equal, captions, write_dataset

from data_pipelines.loading import reader
from data_pipelines.media import video
from data_pipelines.procedural import world
from data_pipelines.shards.dataset import Dataset, Example, dataset_dir
from i2vgen_jax import preprocessing
from i2vgen_jax.errors import InputError

CLIPS_ONLY = ((8, 8.0, 1.0),)
MIXED = ((8, 8.0, 3.0), (4, 4.0, 2.0), (1, 1.0, 2.0))


@pytest.fixture
def opened(procedural_dir, tokenizer):
  def make(videos=True, images=True, **changes):
    options = {
      "batch_size": 8, "size": (24, 16), "buckets": MIXED, "clip_size": 28,
      "tokenizer": tokenizer, "seed": 5,
    }  # fmt: skip
    return reader.Reader(
      [dataset_dir(procedural_dir, "text_video")] if videos else [],
      [dataset_dir(procedural_dir, "text_image")] if images else [],
      **options | changes,
    )

  return make


def test_arrays_of_a_batch(opened):
  clips = opened()
  shapes = set()
  for step in range(12):
    batch, bucket = clips.batch(step), clips.bucket(step)
    assert batch.frames.shape == (8, bucket.num_frames, 16, 24, 3)
    assert batch.frames.dtype == np.uint8
    assert batch.clip_images.shape == (8, 28, 28, 3)
    assert batch.clip_images.dtype == batch.fps.dtype == np.float32
    assert batch.token_ids.shape == (8, 2)
    assert batch.index.tolist() == list(range(8 * step, 8 * step + 8))
    np.testing.assert_array_equal(batch.fps, np.full(8, bucket.fps))
    shapes.add(bucket.num_frames)
  assert shapes == {1, 4, 8}


def test_views_and_captions_that_no_network_reads_are_left_out(opened):
  batch = opened(clip_size=None, tokenizer=None).batch(0)
  assert batch.clip_images is None and batch.token_ids is None
  np.testing.assert_array_equal(batch.frames, opened().batch(0).frames)


def test_a_resumed_reader_gives_the_same_batches(opened):
  whole = [opened().batch(step) for step in range(6)]
  clips = opened()
  for step in (4, 0, 5):  # in any order
    assert_equal(clips.batch(step), whole[step])
  resumed = itertools.islice(opened().iterate(start_step=2), 4)
  for got, expected in zip(resumed, whole[2:], strict=True):
    assert_equal(got, expected)


def test_four_hosts_read_the_batches_of_one(opened):
  one = opened()
  hosts = [
    opened().iterate(0, rows) for rows in ([0, 1], [2, 3], [4, 5], [6, 7])
  ]
  for step in range(4):
    parts = [next(host) for host in hosts]
    together = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
    assert_equal(together, one.batch(step))


def test_hosts_may_share_rows_in_any_order(opened):
  whole = opened().batch(3)
  rows = [6, 1, 1]
  part = opened().batch(3, rows)
  assert_equal(part, jax.tree.map(lambda x: x[rows], whole))


UNEQUAL = ((8, 8.0, 1.0), (4, 4.0, 1.0), (3, 4.0, 1.0), (1, 1.0, 1.0))


def test_batches_have_equal_work(opened):
  """As many rows as fit into the frames of the longest clip."""
  clips = opened(buckets=UNEQUAL, equal_work=True, batch_size=2)
  seen, numbers = {}, []
  for step in range(20):
    batch = clips.batch(step)
    seen[batch.num_frames] = len(batch.index)
    numbers += batch.index.tolist()
  assert seen == {8: 2, 4: 4, 3: 4, 1: 16}
  assert sorted(set(numbers)) == numbers
  shapes = {b.num_frames: len(b.index) for b in clips.examples()}
  assert shapes == {8: 1, 4: 2, 3: 2, 1: 8}
  assert clips.report[-1].endswith("1 frames, 1 fps, 24x16: 16 rows")


def test_smaller_frames_have_more_rows(opened):
  buckets = ((8, 8.0, 1.0), (8, 8.0, 1.0, (12, 8)))
  clips = opened(buckets=buckets, equal_work=True, batch_size=1)
  shapes = {clips.batch(step).frames.shape for step in range(8)}
  assert shapes == {(1, 8, 16, 24, 3), (4, 8, 8, 12, 3)}


def test_batches_of_equal_work_resume_on_other_hosts(opened):
  options = {"buckets": UNEQUAL, "equal_work": True, "batch_size": 4}
  one = opened(**options)
  hosts = [opened(**options).iterate(3, rows) for rows in ([0, 1], [2, 3])]
  for step in range(3, 9):
    parts = [next(host) for host in hosts]
    together = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
    assert_equal(together, one.batch(step))


def test_each_epoch_has_every_example_once_in_a_new_order(opened):
  clips = opened(buckets=CLIPS_ONLY)
  epochs = [
    [c for step in range(3 * e, 3 * e + 3) for c in captions(clips.batch(step))]
    for e in range(2)
  ]
  assert len(set(epochs[0])) == 24
  assert sorted(epochs[0]) == sorted(epochs[1])
  assert epochs[0] != epochs[1]
  other = opened(buckets=CLIPS_ONLY, seed=6)
  assert captions(other.batch(0)) != epochs[0][:8]


def test_the_order_does_not_depend_on_the_batch_size(opened):
  large = opened(buckets=CLIPS_ONLY).batch(0)
  small = opened(buckets=CLIPS_ONLY, batch_size=4)
  parts = [small.batch(0), small.batch(1)]
  assert_equal(jax.tree.map(lambda *x: np.concatenate(x), *parts), large)


def test_frames_and_views_are_those_of_the_record(
  opened, procedural_dir, tokenizer
):
  clips = opened(buckets=CLIPS_ONLY, size=(48, 32)).batch(0)
  dataset = Dataset([dataset_dir(procedural_dir, "text_video")])
  records = {
    tokenizer([record["captions"][0].decode()]).ids[0, 0]: record
    for record in (dataset[n] for n in range(24))
  }
  for row, code in enumerate(captions(clips)):
    frames, _ = video.decode_mp4(records[code]["video"])
    np.testing.assert_array_equal(clips.frames[row], frames)
    np.testing.assert_array_equal(
      clips.clip_images[row], preprocessing.clip_view(frames[0], 48, 28)
    )


def still_codes(tokenizer):
  scenes = (world.numbered_scene(0, n, "train") for n in range(24))
  texts = [world.still_caption(scene) for scene in scenes]
  return set(tokenizer(texts).ids[:, 0].tolist())


def test_single_frames_come_from_pictures_if_there_are_any(opened, tokenizer):
  stills = ((1, 1.0, 1.0),)
  pictures = opened(buckets=stills, videos=False).batch(0)
  assert set(captions(pictures)) <= still_codes(tokenizer)
  assert_equal(pictures, opened(buckets=stills).batch(0))
  frames = opened(buckets=stills, images=False)
  assert not set(captions(frames.batch(0))) & still_codes(tokenizer)
  assert frames.batch(0).frames.shape == (8, 1, 16, 24, 3)
  assert frames.batch(0).fps.tolist() == [1] * 8


def test_buckets_are_drawn_by_weight(opened):
  clips = opened()
  drawn = [clips.bucket(step).num_frames for step in range(2000)]
  shares = [drawn.count(n) / 2000 for n in (8, 4, 1)]
  np.testing.assert_allclose(shares, [3 / 7, 2 / 7, 2 / 7], atol=0.04)


def test_the_cache_does_not_change_batches(opened, monkeypatch):
  remembering = opened()
  first = [remembering.batch(step) for step in range(8)]
  monkeypatch.setattr(reader, "CACHE_BYTES", 20_000)  # a few items
  forgetful = opened()
  for step in (*range(8), *range(8)):
    assert_equal(forgetful.batch(step), first[step])
    assert_equal(remembering.batch(step), first[step])


def test_real_footage_is_sampled_at_the_bucket_fps(
  footage, tmp_path, tokenizer
):
  stream = video.stream(footage["bikes"], short_side=64)
  frames = np.stack([frame for _, frame in stream])
  frames = frames[:, :, : frames.shape[2] // 2 * 2]
  mp4 = video.encode_mp4(frames, 25)
  height, width = frames.shape[1:3]
  example = Example(mp4, ["bikes"], "bikes", len(frames), width, height, 25.0)
  directory = write_dataset(tmp_path, "text_video", [example])
  clips = reader.Reader(
    [directory], batch_size=2, size=(64, 64), buckets=[(16, 8.0, 1.0)],
    clip_size=32, tokenizer=tokenizer, seed=0,
  )  # fmt: skip
  batch = clips.batch(0)
  everything, _ = video.decode_mp4(Dataset([directory])[0]["video"])
  left = (everything.shape[2] - 64) // 2
  crops = everything[:, :, left : left + 64].astype(int)
  found = [
    [int(np.abs(crops - frame).mean((1, 2, 3)).argmin()) for frame in row]
    for row in batch.frames
  ]
  for row in found:  # 25 frames a second at 8: every third
    assert np.diff(row).tolist() == [3] * 15
  assert found[0] != found[1]


def test_too_short_clips_are_rejected_when_the_reader_opens(opened):
  with pytest.raises(InputError, match=r"24 of 24 clips .* fewer than 16"):
    opened(buckets=((16, 8.0, 1.0),))


def test_a_bucket_of_clips_needs_a_dataset(opened):
  with pytest.raises(InputError, match="text_video"):
    opened(videos=False)


@pytest.fixture
def damaged(procedural_dir, tmp_path, tokenizer):
  """Opens a copy of the clips in which the last record of each shard is cut."""
  directory = tmp_path / "copy"
  shutil.copytree(dataset_dir(procedural_dir, "text_video"), directory)
  for shard in directory.glob("*-of-00003"):
    shard.write_bytes(shard.read_bytes()[:-40])

  def opened(share):
    return reader.Reader(
      [directory], batch_size=24, size=(16, 16), buckets=CLIPS_ONLY,
      clip_size=16, tokenizer=tokenizer, seed=0, max_damaged=share,
    )  # fmt: skip

  return opened


def test_too_many_damaged_records_stop_the_run(damaged):
  for share in (0, 2 / 24):
    with pytest.raises(InputError, match=r"damaged record.* of 24 records"):
      damaged(share).batch(0)
    with pytest.raises(InputError, match=r"damaged record.* of 24 records"):
      next(damaged(share).iterate())


def test_others_are_read_in_place_of_damaged_records(damaged, opened):
  whole = opened(
    images=False, batch_size=24, buckets=CLIPS_ONLY, size=(16, 16),
    clip_size=16, seed=0,
  ).batch(0)  # fmt: skip
  clips = damaged(3 / 24)
  batch = clips.batch(0)
  assert len(clips.damaged) == 3
  assert all("damaged record" in problem for problem in clips.damaged.values())
  same = (batch.frames == whole.frames).all(axis=(1, 2, 3, 4))
  assert same.sum() == 21
  # The same in any run, and beside other rows.
  again = damaged(3 / 24)
  jax.tree.map(np.testing.assert_array_equal, next(again.iterate()), batch)
  row = damaged(3 / 24).batch(0, [int(np.argmin(same))])
  np.testing.assert_array_equal(row.frames[0], batch.frames[np.argmin(same)])
  np.testing.assert_array_equal(batch.index, np.arange(24))
