"""Deterministic batches from indexed shards; the position is one integer.

Example number n = step * batch_size + row counts through an endless order of
epochs, each shuffled differently. The record of an example, its caption,
frames and crop, and the bucket of a step are functions of (seed, n) and
(seed, step) alone: they do not depend on the number of hosts, threads or
restarts. A record becomes an example, and examples are stacked to a batch.

With `equal_work` each row of the buckets with the most pixels is as many rows
of another bucket as fit into its pixels. The order has numbers for the most
rows of a bucket; other buckets pass over the rest.
"""

import dataclasses
import functools
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

from data_pipelines.loading.augmentation import Augmentation, View
from data_pipelines.loading.buckets import Bucket, Window, make_buckets
from data_pipelines.loading.cache import Arrays, Cache
from data_pipelines.loading.mixing import Directories, Mixture, Place, assign
from data_pipelines.shards import latents
from data_pipelines.shards.dataset import load_frames, load_to_cover
from i2vgen_jax import preprocessing
from i2vgen_jax.errors import InputError
from i2vgen_jax.types import Batch

# Memory for decoded examples: all of a small dataset, some of a large one.
CACHE_BYTES = 1 << 30
# Distance in the order to the example that is read in place of a damaged one.
_SUBSTITUTE = 1 << 40


@dataclasses.dataclass(eq=False)
class Reader:
  """Batches of clips and pictures for a training step.

  Attributes:
    video_dirs: text_video folders, `<data_dir>/text_video/1.0.0`, or pairs of
      such a folder and its weight; see `mixing.Mixture.open`.
    image_dirs: text_image folders likewise, for buckets of one frame; without
      any, those take single frames of the clips.
    batch_size: number of rows in the global batch.
    equal_work: whether batch_size is that of the buckets with the most pixels,
      and clips with fewer have more rows, a multiple of it. The public code has
      32 pictures, or 2 clips of 16 frames, in place of a clip of 32 frames.
    size: (width, height) of the frames of buckets without a size.
    buckets: tuples (num_frames, fps, weight) or (num_frames, fps, weight,
      (width, height)). One is drawn per step, by weight; it draws from the
      clips that `Bucket.fits` gives it.
    clip_size: side of the CLIP view in pixels; None makes no views.
    tokenizer: an `i2vgen_jax.tokenizer.Tokenizer`: captions to `.ids` and the
      number of tokens that were `.cut`. None leaves the captions out.
    seed: seed of the order and of every draw.
    augmentation: random crops and mirror images; None for none.
    max_damaged: largest share of a mixture's records that may be damaged.
      Another example is read in place of a damaged one, the same in every run.
    damaged: what is wrong with each damaged record that was read, by its
      dataset, shard and row.
    captions_read: number of captions that this process has tokenized.
    captions_cut: number of those that were too long for the text tower.
    report: lines that say how many clips each bucket draws from, and how many
      fit none.

  Raises:
    InputError: A dataset does not exist, buckets or weights are wrong, or a
      bucket fits no clip. No record has been read then.
  """

  video_dirs: Directories
  image_dirs: Directories = ()
  _: dataclasses.KW_ONLY
  batch_size: int
  equal_work: bool = False
  size: tuple[int, int]
  buckets: Sequence[Sequence]
  clip_size: int | None
  tokenizer: Callable[[list[str]], Any] | None
  seed: int
  augmentation: Augmentation | None = None
  max_damaged: float | int = 0.01

  def __post_init__(self):
    self._buckets = make_buckets(self.buckets, self.size)
    most = max(bucket.num_pixels for bucket in self._buckets)
    self._rows = {
      bucket: most // bucket.num_pixels if self.equal_work else 1
      for bucket in self._buckets
    }
    self._cache, self._token_lock = Cache(CACHE_BYTES), threading.Lock()
    self.captions_read = self.captions_cut = 0
    self.damaged: dict[tuple[str, int, int], str] = {}
    self.report: list[str] = []
    self._mixtures: dict[Bucket, Mixture] = {}
    stills = [b for b in self._buckets if b.num_frames == 1 and self.image_dirs]
    moving = [b for b in self._buckets if b not in stills]
    if moving and not self.video_dirs:
      raise InputError(
        f"no clips for the bucket of {moving[0]}; give a text_video dataset"
      )
    for directories, noun, given in (
      (self.video_dirs, "clips", moving),
      (self.image_dirs, "pictures", stills),
    ):
      if directories:
        mixture = Mixture.open(directories, self.seed)
        assigned, report = assign(mixture, noun, given)
        self._mixtures |= assigned
        self.report += report
    if max(self._rows.values()) > 1:
      self.report += [
        f"batches of {bucket}: {count * self.batch_size} rows"
        for bucket, count in self._rows.items()
      ]

  def bucket(self, step: int) -> Bucket:
    """The bucket of a step, which has the shapes of its batch."""
    weights = np.array([bucket.weight for bucket in self._buckets])
    rng = np.random.default_rng((self.seed, 0, step))
    return self._buckets[rng.choice(len(weights), p=weights / weights.sum())]

  def batch(self, step: int, rows: Iterable[int] | None = None) -> Batch:
    """Rows of the global batch of a step.

    Args:
      step: number of the step, from 0.
      rows: numbers below `batch_size`, such as those of the rows on this
        process's devices; None for all. With `equal_work` each may be several
        rows of the batch.

    Raises:
      InputError: More records than `max_damaged` are damaged, or hold latents
        of another size.
    """
    rows = range(self.batch_size) if rows is None else rows
    return _batch([self._examples(step, int(row)) for row in rows])

  def examples(self) -> list[Batch]:
    """What a row is in each bucket, which shows the shapes of its batches."""
    return [
      _batch([[self._example(0, bucket)] * count])
      for bucket, count in self._rows.items()
    ]

  def iterate(
    self, start_step: int = 0, rows: Iterable[int] | None = None
  ) -> Iterator[Batch]:
    """Endless batches from a step on, prepared ahead of time by threads.

    There is a thread for each core; they read the rows of four steps ahead, or
    two for each thread.
    """
    rows = [*(range(self.batch_size) if rows is None else map(int, rows))]
    count = len(rows)

    def read(number: int) -> list[Arrays]:
      step, place = divmod(int(number), count)
      return self._examples(step, rows[place])

    threads = os.cpu_count() or 1
    ahead = max(4 * count, 2 * threads)
    options = grain.ReadOptions(threads, prefetch_buffer_size=ahead)
    numbers = grain.MapDataset.range(start_step * count, sys.maxsize)
    examples = numbers.map(read).to_iter_dataset(options)
    return iter(examples.batch(count, batch_fn=_batch))

  def _examples(self, step: int, row: int) -> list[Arrays]:
    """What a row is in the bucket of a step."""
    bucket = self.bucket(step)
    first = (step * self.batch_size + row) * max(self._rows.values())
    count = self._rows[bucket]
    return [self._example(first + n, bucket) for n in range(count)]

  def _example(self, number: int, bucket: Bucket) -> Arrays:
    index = {"index": np.int64(number).astype(np.int32)}
    mixture = self._mixtures[bucket]
    for substitute in itertools.count(number, _SUBSTITUTE):
      dataset, shard, row = place = mixture.place(substitute)
      name = mixture.datasets[dataset].name
      if (name, shard, row) not in self.damaged:
        try:
          return self._read(place, substitute, bucket) | index
        except InputError as e:
          self.damaged[name, shard, row] = str(e)
          self._check_damaged(mixture, e)

  def _check_damaged(self, mixture: Mixture, error: InputError) -> None:
    count = len(self.damaged)
    if count > self.max_damaged * len(mixture):
      raise InputError(
        f"{error}; {count} of {len(mixture)} records are damaged, more than "
        f"data.max_damaged, {self.max_damaged:g} of them: build the dataset "
        "again, or allow more"
      ) from error

  def _read(self, place: Place, number: int, bucket: Bucket) -> Arrays:
    record = self._mixtures[bucket].read(place)
    rng = np.random.default_rng((self.seed, 1, number))
    # A picture is a clip of one frame at any rate.
    length, fps = record.get("num_frames", 1), record.get("fps", 1.0)
    window = bucket.draw_window(length, fps, rng)
    captions = record["captions"]
    caption = captions[rng.integers(len(captions))].decode()
    view = (self.augmentation or Augmentation()).draw(caption, rng)
    key = ("fps" in record, place, window, view, bucket.size)
    load = self._load_latents if "moments" in record else self._load_pixels
    item = self._cache.get(key, lambda: load(record, window, view, bucket.size))
    return item | {
      "token_ids": self._token_ids(caption),
      "fps": np.float32(window.fps),
    }

  def _load_pixels(
    self, record: dict, window: Window, view: View, size: tuple[int, int]
  ) -> Arrays:
    fps = record.get("fps", 1.0)
    nearest = functools.partial(window.nearest_frames, native_fps=fps)
    until = window.seconds(fps)[-1]
    if view.share == 1:
      frames, first = load_to_cover(record, nearest, size, until)
    else:
      frames, _ = load_frames(record, nearest, until)
      first = frames[0]
    crops = [
      preprocessing.center_crop_wide(view.of(frame), *size) for frame in frames
    ]
    clip_image = None
    if self.clip_size is not None:
      shown = view.of(first)
      clip_image = preprocessing.clip_view(shown, size[0], self.clip_size)
    return {"frames": np.stack(crops), "clip_images": clip_image}

  def _load_latents(
    self, record: dict, window: Window, view: View, size: tuple[int, int]
  ) -> Arrays:
    encoded = record["width"], record["height"]
    if encoded != tuple(size) or view != View():
      raise InputError(
        f"{record['id'].decode()} is encoded at {encoded[0]}x{encoded[1]}, but"
        f" the bucket needs {size[0]}x{size[1]} or an augmented view; encode it"
        " at the size of the buckets, with data.augmentation at 1.0 and 0.0"
      )
    times = np.array(record["times"])
    chosen = window.nearest_frames(times, record.get("fps", 1.0))
    moments, embeds = latents.encoded_of(record)
    return {
      "moments": moments[chosen],
      "image_embeds": None if embeds is None else embeds[chosen[0]],
    }

  def _token_ids(self, caption: str) -> Int[np.ndarray, "n"] | None:
    if self.tokenizer is None:
      return None
    with self._token_lock:  # the tokenizer is not thread-safe
      ids, (cut,) = self.tokenizer([caption])
      self.captions_read += 1
      self.captions_cut += cut > 0
    return np.asarray(ids[0])


def _batch(rows: Sequence[Sequence[Arrays]]) -> Batch:
  examples = [*itertools.chain(*rows)]
  return Batch(**{n: _stack([e[n] for e in examples]) for n in examples[0]})


def _stack(column: Sequence[Any]) -> np.ndarray | None:
  return None if column[0] is None else np.stack(column)
