"""Datasets of one kind behind endless rows of shuffled epochs."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Bool

from data_pipelines.loading.buckets import Bucket, fits
from data_pipelines.shards.dataset import Choice, Dataset
from data_pipelines.shards.tfrecord import Entry, Index
from i2vgen_jax.errors import InputError

Directory = str | Path
Directories = Sequence[Directory | tuple[Directory, float | int]]


class Place(NamedTuple):
  """Where a record lies: the dataset of the source, its shard, the row."""

  dataset: int
  shard: int
  row: int


class EndlessRow:
  """Records of several datasets; each dataset goes through its own epochs.

  Which one is example n is arithmetic: no state, and no memory that grows
  with the datasets. Every stretch of the row has the datasets in proportion
  to their weights.

  Attributes:
    counts: records of each dataset.
  """

  def __init__(
    self, datasets: Sequence[Dataset], weights: Sequence[float | int], seed: int
  ):
    """Shuffles the datasets, of which empty ones are left out.

    Args:
      datasets: what to draw from; not all empty.
      weights: of each dataset.
      seed: of the order of every epoch.
    """
    self._datasets = datasets
    self.counts = [len(dataset) for dataset in datasets]
    filled = np.flatnonzero(self.counts).tolist()
    epochs = [
      grain.MapDataset.range(self.counts[n]).shuffle(seed=seed).repeat()
      for n in filled
    ]
    numbered = [
      row.map(lambda record, n=n: (n, int(record)))
      for n, row in zip(filled, epochs, strict=True)
    ]
    self._row = grain.MapDataset.mix(numbered, [weights[n] for n in filled])

  def place(self, number: int) -> Place:
    """Where example `number` of the row lies."""
    dataset, record = self._row[number]
    return Place(dataset, *self._datasets[dataset].place(record))

  def read(self, place: Place) -> dict[str, Any]:
    """The record at a place.

    Raises:
      InputError: it is damaged.
    """
    return self._datasets[place.dataset].read(place[1:])


class Source:
  """Datasets of one kind, by weight or, without weights, by size."""

  def __init__(self, directories: Directories):
    """Opens the datasets.

    Args:
      directories: either plain ones, which make one large dataset; or pairs
        of a directory and its weight, whatever their sizes.

    Raises:
      InputError: no such dataset, or wrong weights.
    """
    pairs = [d for d in directories if not isinstance(d, str | Path)]
    if not pairs:
      self.names = [", ".join(map(str, directories))]
      self._datasets, self._weights = [Dataset(directories)], [1]
      return
    if len(pairs) < len(directories) or not all(w > 0 for _, w in pairs):
      raise InputError(
        f"cannot weigh {tuple(directories)}; give every directory as"
        " (directory, weight) with a positive weight, or none"
      )
    self.names = [str(directory) for directory, _ in pairs]
    self._datasets = [Dataset([directory]) for directory, _ in pairs]
    self._weights = [weight for _, weight in pairs]

  def __len__(self) -> int:
    return sum(map(len, self._datasets))

  def count(self, choice: Choice) -> int:
    """How many records are chosen."""
    return sum(len(dataset.where(choice)) for dataset in self._datasets)

  def endless(self, choice: Choice, seed: int) -> EndlessRow | None:
    """The chosen records, if there are any."""
    chosen = [dataset.where(choice) for dataset in self._datasets]
    if not any(map(len, chosen)):
      return None
    return EndlessRow(chosen, self._weights, seed)


def deal(
  source: Source, noun: str, buckets: Sequence[Bucket], seed: int
) -> tuple[dict[Bucket, EndlessRow], list[str]]:
  """What each bucket draws from, by shape and length; decodes nothing.

  Args:
    source: what all of them draw from.
    noun: what messages call its records.
    buckets: those that draw from it.
    seed: of the order.

  Returns:
    A row for each bucket, the same for those that take the same records; and
    lines that say how many these are and how many fit no bucket.

  Raises:
    InputError: nothing fits a bucket.
  """
  if not buckets:
    return {}, [f"no bucket draws from the {len(source)} {noun}"]
  ratios = sorted({bucket.ratio for bucket in buckets})
  shared: dict[tuple[int, float], EndlessRow] = {}
  report = []
  for bucket in buckets:
    kind = bucket.num_frames, bucket.ratio
    if kind in shared:
      continue
    row = source.endless(functools.partial(fits, bucket, ratios), seed)
    if row is None:
      raise _nothing_fits(source, noun, bucket)
    shared[kind] = row
    parts = ", ".join(
      f"{count} {noun} of {name}"
      for count, name in zip(row.counts, source.names, strict=True)
    )
    width, height = bucket.size
    report.append(
      f"{bucket.num_frames} frames in the shape of {width}x{height}: {parts}"
    )

  def fits_none(index: Index) -> Bool[np.ndarray, "n"]:
    return ~np.any([fits(bucket, ratios, index) for bucket in buckets], axis=0)

  if left_out := source.count(fits_none):
    report.append(
      f"{left_out} of {len(source)} {noun} fit no bucket, as too short for"
      " those of their shape; they are left out"
    )
  rows = {b: shared[b.num_frames, b.ratio] for b in buckets}
  return rows, report


def _nothing_fits(source: Source, noun: str, bucket: Bucket) -> InputError:
  short = source.count(
    lambda index: Entry(*index.T).num_frames < bucket.num_frames
  )
  return InputError(
    f"no {noun} for the bucket of {bucket}: {short} of {len(source)} {noun} in"
    f" {', '.join(source.names)} have fewer than {bucket.num_frames} frames,"
    " and the others the shape of another bucket; leave the bucket out or"
    f" build such {noun}"
  )
