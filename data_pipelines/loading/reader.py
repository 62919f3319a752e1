"""Deterministic batches from indexed shards; the position is one integer.

Example number n = step * batch_size + row counts through an endless row of
epochs, each shuffled anew. Which example that is, which of its captions, which
frames and which part of them are taken, and what kind of step it is are
functions of (seed, n) and (seed, step) alone: not of the number of hosts,
threads or restarts.
"""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Int

from data_pipelines.loading.augmentation import Augmentation, View
from data_pipelines.loading.buckets import (
  Bucket,
  Window,
  draw_window,
  make_buckets,
  nearest_frames,
)
from data_pipelines.loading.cache import Cache, Kept, Latents, Views
from data_pipelines.loading.mixing import Directories, EndlessRow, Source, deal
from data_pipelines.media import video
from data_pipelines.shards import latents
from i2vgen_jax import preprocessing
from i2vgen_jax.errors import InputError
from i2vgen_jax.types import Batch

# Decoded examples kept in memory: all of a small set, some of a large one.
CACHE_BYTES = 1 << 30
_NUM_THREADS, _STEPS_AHEAD = 2, 4


class _Example(NamedTuple):
  """One row of a batch."""

  views: Kept
  token_ids: Int[np.ndarray, "n"] | None
  fps: float | int


class Reader:
  """Batches of clips and pictures for a training step.

  Attributes:
    captions_read: of the examples that this process has prepared so far.
    captions_cut: those among them that were too long for the text tower.
    report: lines that say how many clips each bucket draws from, and how many
      fit none.
  """

  def __init__(
    self,
    video_dirs: Directories,
    image_dirs: Directories = (),
    *,
    batch_size: int,
    size: tuple[int, int],
    buckets: Sequence[Sequence],
    clip_size: int | None,
    tokenizer: Callable[[list[str]], Any] | None,
    seed: int,
    augmentation: Augmentation | None = None,
  ):
    """Opens the datasets; reads no record yet.

    Args:
      video_dirs: text_video directories, `<data_dir>/text_video/1.0.0`, or
        pairs of such a directory and its weight; see `Source`.
      image_dirs: text_image directories likewise, for buckets of one frame;
        without any, those take single frames of the clips.
      batch_size: rows of the global batch.
      size: (width, height) of the frames where a bucket names none.
      buckets: (num_frames, fps, weight) or (num_frames, fps, weight, (width,
        height)) each; one is drawn per step, with chances in proportion to
        the weights. It draws from the clips that `sampling.fits` gives it.
      clip_size: side of the CLIP view in pixels; None makes no views.
      tokenizer: an `i2vgen_jax.tokenizer.Tokenizer`: captions to `.ids` and
        how many tokens were `.cut`. None leaves the captions out.
      seed: of the order and of every draw.
      augmentation: None shows every picture as it is.

    Raises:
      InputError: no such dataset, wrong buckets or weights, or a bucket that
        no clip fits.
    """
    self._buckets = make_buckets(buckets, size)
    self._videos = Source(video_dirs) if video_dirs else None
    self._images = Source(image_dirs) if image_dirs else None
    self._batch_size, self._clip_size = batch_size, clip_size
    self._tokenizer, self._seed = tokenizer, seed
    self._augmentation = augmentation or Augmentation()
    self._cache, self._token_lock = Cache(CACHE_BYTES), threading.Lock()
    self.captions_read = self.captions_cut = 0
    self.report: list[str] = []
    self._rows: dict[Bucket, EndlessRow] = {}
    self._deal()

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
    examples = [self._example(number, bucket) for number in numbers]
    return Batch(
      **_stacked([example.views for example in examples]),
      token_ids=_stack([example.token_ids for example in examples]),
      fps=np.array([example.fps for example in examples], np.float32),
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

  def _deal(self) -> None:
    """Finds out what each bucket draws from."""
    stills = [b for b in self._buckets if b.num_frames == 1 and self._images]
    moving = [b for b in self._buckets if b not in stills]
    if moving and self._videos is None:
      raise InputError(
        f"no clips for the bucket of {moving[0]}; name a text_video dataset"
      )
    for source, noun, buckets in (
      (self._videos, "clips", moving),
      (self._images, "pictures", stills),
    ):
      if source is not None:
        rows, report = deal(source, noun, buckets, self._seed)
        self._rows |= rows
        self.report += report

  def _example(self, number: int, bucket: Bucket) -> _Example:
    row = self._rows[bucket]
    place = row.place(number)
    record = row.read(place)
    rng = np.random.default_rng((self._seed, 1, number))
    if "fps" not in record:  # of a picture
      window = Window(0, 1, 1, bucket.fps)
    else:
      window = draw_window(record["num_frames"], record["fps"], bucket, rng)
    captions = record["captions"]
    caption = captions[rng.integers(len(captions))].decode()
    view = self._augmentation.draw(caption, rng)
    key = ("fps" in record, place, window, view, bucket.size)
    views = self._cache.get(key)
    if views is None:
      load = self._load if "moments" not in record else _load_latents
      views = load(record, window, view, bucket.size)
      self._cache.put(key, views)
    return _Example(views, self._token_ids(caption), window.fps)

  def _load(
    self, record: dict, window: Window, view: View, size: tuple[int, int]
  ) -> Views:
    name = record["id"].decode()
    if "image" in record:
      frames = preprocessing.load_picture(record["image"], name)[None]
    else:
      frames, _ = video.decode_mp4(
        record["video"],
        lambda times: nearest_frames(times, window, record["fps"]),
        until=window.seconds(record["fps"])[-1],
        name=name,
      )
    frames = view.of(frames)
    width, height = size
    crops = [
      preprocessing.center_crop_wide(frame, width, height) for frame in frames
    ]
    first = None
    if self._clip_size is not None:
      first = preprocessing.clip_view(frames[0], width, self._clip_size)
    return Views(np.stack(crops), first)

  def _token_ids(self, caption: str) -> Int[np.ndarray, "n"] | None:
    if self._tokenizer is None:
      return None
    with self._token_lock:  # the tokenizer must not run in two threads at once
      ids, (cut,) = self._tokenizer([caption])
      self.captions_read += 1
      self.captions_cut += cut > 0
    return np.asarray(ids[0])


def _load_latents(
  record: dict, window: Window, view: View, size: tuple[int, int]
) -> Latents:
  name = record["id"].decode()
  encoded = record["width"], record["height"]
  if encoded != tuple(size) or view != View():
    raise InputError(
      f"{name} is kept as latents of {encoded[0]}x{encoded[1]}, and"
      f" {size[0]}x{size[1]} is asked for, or a part of it; encode it at the"
      " buckets' size, and leave data.augmentation at 1.0 and 0.0"
    )
  times = np.array(record["times"])
  chosen = [0]
  if window.num_frames > 1 or len(times) > 1:
    chosen = nearest_frames(times, window, record["fps"])
  embeds = latents.embeds_of(record)
  return Latents(
    latents.moments_of(record)[chosen],
    None if embeds is None else embeds[chosen[0]],
  )


def _stacked(views: Sequence[Kept]) -> dict[str, np.ndarray | None]:
  """Members of a batch by name."""
  return {
    name: _stack(column)
    for name, column in zip(
      views[0]._fields, zip(*views, strict=True), strict=True
    )
  }


def _stack(column: Sequence[np.ndarray | None]) -> np.ndarray | None:
  return None if column[0] is None else np.stack(column)
