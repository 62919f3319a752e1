"""Deterministic batches from indexed shards; the position is one integer.

Example number n = step * batch_size + row counts through an endless row of
epochs, each shuffled anew. Which example that is, which frames of it are
taken and how many frames the whole step has are functions of (seed, n) and
(seed, step) alone: not of the number of hosts, threads or restarts.
"""

import collections
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Float, Int, UInt8

from data_pipelines import images, video
from data_pipelines.dataset import Dataset
from data_pipelines.sampling import Bucket, Window, draw_window, nearest_frames
from i2vgen_jax import preprocessing
from i2vgen_jax.errors import InputError
from i2vgen_jax.types import Batch

# Decoded examples kept in memory: all of a small set, some of a large one.
CACHE_BYTES = 1 << 30
_NUM_THREADS, _STEPS_AHEAD = 2, 4


class _Item(NamedTuple):
  """One row of a batch."""

  frames: UInt8[np.ndarray, "f h w 3"]
  clip_image: Float[np.ndarray, "s s 3"]
  token_ids: Int[np.ndarray, "n"]
  fps: float | int

  @property
  def num_bytes(self) -> int:
    return self.frames.nbytes + self.clip_image.nbytes + self.token_ids.nbytes


class _Cache:
  """Least recently used items up to a number of bytes, for several threads."""

  def __init__(self, max_bytes: int):
    self._items: collections.OrderedDict[Hashable, _Item] = (
      collections.OrderedDict()
    )
    self._room = max_bytes
    self._lock = threading.Lock()

  def get(self, key: Hashable) -> _Item | None:
    with self._lock:
      if key in self._items:
        self._items.move_to_end(key)
      return self._items.get(key)

  def put(self, key: Hashable, item: _Item) -> None:
    with self._lock:
      if key in self._items:
        return
      self._items[key] = item
      self._room -= item.num_bytes
      while self._room < 0:
        _, oldest = self._items.popitem(last=False)
        self._room += oldest.num_bytes


class _Shuffled:
  """Datasets of one kind behind one endless row of shuffled epochs."""

  def __init__(self, directories: Sequence[str | Path], seed: int):
    self.dataset = Dataset(directories)
    length = len(self.dataset)
    self._order = grain.MapDataset.range(length).shuffle(seed=seed).repeat()

  def place(self, number: int) -> int:
    """Which record is example `number` of the endless row."""
    return int(self._order[number])


class Reader:
  """Batches of clips and pictures for a training step."""

  def __init__(
    self,
    video_dirs: Sequence[str | Path],
    image_dirs: Sequence[str | Path] = (),
    *,
    batch_size: int,
    size: tuple[int, int],
    buckets: Sequence[tuple[int, float | int, float | int]],
    clip_size: int,
    tokenizer: Callable[[list[str]], Any],
    seed: int,
  ):
    """Opens the datasets; reads nothing yet.

    Args:
      video_dirs: text_video directories, `<data_dir>/text_video/1.0.0`.
      image_dirs: text_image directories, for buckets of one frame; without
        any, those take single frames of the clips.
      batch_size: rows of the global batch.
      size: (width, height) of the frames.
      buckets: (num_frames, fps, weight) each; one is drawn per step, with
        chances in proportion to the weights.
      clip_size: side of the CLIP view.
      tokenizer: an `i2vgen_jax.tokenizer.Tokenizer`: captions to `.ids`.
      seed: of the order and of every draw.

    Raises:
      InputError: no such dataset, no buckets or wrong ones, or clips shorter
        than the longest bucket.
    """
    self._buckets = [Bucket(*bucket) for bucket in buckets]
    _check_buckets(self._buckets)
    self._videos = _Shuffled(video_dirs, seed) if video_dirs else None
    self._images = _Shuffled(image_dirs, seed) if image_dirs else None
    self._check_sources(video_dirs)
    self._batch_size, self._size, self._clip_size = batch_size, size, clip_size
    self._tokenizer, self._seed = tokenizer, seed
    self._cache, self._token_lock = _Cache(CACHE_BYTES), threading.Lock()

  def bucket(self, step: int) -> Bucket:
    """The bucket of a step; its shapes are those of the step's batch."""
    weights = np.array([bucket.weight for bucket in self._buckets])
    rng = np.random.default_rng((self._seed, 0, step))
    return self._buckets[rng.choice(len(weights), p=weights / weights.sum())]

  def batch(self, step: int, rows: Iterable[int] | None = None) -> Batch:
    """The rows asked for of a step's global batch.

    Args:
      step: number of the step, from 0.
      rows: global row numbers, such as those that this process's devices
        hold; None means all.

    Raises:
      InputError: a record that is damaged or cannot be decoded.
    """
    rows = range(self._batch_size) if rows is None else rows
    numbers = [step * self._batch_size + int(row) for row in rows]
    bucket = self.bucket(step)
    items = [self._item(number, bucket) for number in numbers]
    return Batch(
      frames=np.stack([item.frames for item in items]),
      clip_images=np.stack([item.clip_image for item in items]),
      token_ids=np.stack([item.token_ids for item in items]),
      fps=np.array([item.fps for item in items], np.float32),
      index=np.array(numbers, np.int64).astype(np.int32),
    )

  def iterate(
    self, start_step: int = 0, rows: Iterable[int] | None = None
  ) -> Iterator[Batch]:
    """Batches from a step on, endlessly, prepared ahead by threads."""
    steps = grain.MapDataset.range(start_step, sys.maxsize)
    options = grain.ReadOptions(
      num_threads=_NUM_THREADS, prefetch_buffer_size=_STEPS_AHEAD
    )
    batches = steps.map(lambda step: self.batch(int(step), rows))
    return iter(batches.to_iter_dataset(options))

  def _item(self, number: int, bucket: Bucket) -> _Item:
    still = bucket.num_frames == 1 and self._images is not None
    source = self._images if still else self._videos
    place = source.place(number)
    record = source.dataset[place]
    if still:
      window = Window(0, 1, 1, bucket.fps)
    else:
      rng = np.random.default_rng((self._seed, 1, number))
      window = draw_window(record["num_frames"], record["fps"], bucket, rng)
    key = (still, place, window)
    item = self._cache.get(key)
    if item is None:
      item = self._load(record, window)
      self._cache.put(key, item)
    return item

  def _load(self, record: dict, window: Window) -> _Item:
    name = record["id"].decode()
    if "image" in record:
      frames = images.decode_image(record["image"], name)[None]
    else:
      frames, _ = video.decode_mp4(
        record["video"],
        lambda times: nearest_frames(times, window, record["fps"]),
        name=name,
      )
    width, height = self._size
    crops = [
      preprocessing.center_crop_wide(frame, width, height) for frame in frames
    ]
    return _Item(
      np.stack(crops),
      preprocessing.clip_view(frames[0], width, self._clip_size),
      self._token_ids(record["captions"][0].decode()),
      window.fps,
    )

  def _token_ids(self, caption: str) -> Int[np.ndarray, "n"]:
    with self._token_lock:  # the tokenizer must not run in two threads at once
      return np.asarray(self._tokenizer([caption]).ids[0])

  def _check_sources(self, video_dirs: Sequence[str | Path]) -> None:
    longest = max(bucket.num_frames for bucket in self._buckets)
    if self._videos is None:
      if self._images is None or longest > 1:
        raise InputError(
          f"no clips to take {longest} frames from; name a text_video dataset"
        )
      return
    count = self._videos.dataset.too_short(longest)
    if count:
      raise InputError(
        f"{count} of {len(self._videos.dataset)} clips in"
        f" {', '.join(map(str, video_dirs))} have fewer than {longest} frames;"
        " ask for fewer frames or build with a higher min_frames"
      )


def _check_buckets(buckets: Sequence[Bucket]) -> None:
  positive = all(min(bucket) > 0 for bucket in buckets)
  if not buckets or not positive:
    raise InputError(
      f"cannot draw from buckets {[tuple(b) for b in buckets]}; give at least"
      " one of (num_frames, fps, weight), all positive"
    )
