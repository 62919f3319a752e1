"""Weighted mixtures of datasets in an endless shuffled order."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from data_pipelines.loading.buckets import Bucket
from data_pipelines.shards.dataset import Choice, Dataset
from data_pipelines.shards.tfrecord import Entry
from i2vgen_jax.errors import InputError

Directories = Sequence[str | Path | tuple[str | Path, float | int]]


# Location of a record: dataset of the mixture, shard and row.
Place = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Datasets of one kind; each goes through its own shuffled epochs.

  Every stretch of the order has the datasets in proportion to their weights.
  The place of example n is computed from n alone: there is no state, and no
  memory that grows with the datasets.

  Attributes:
    datasets: the datasets; empty ones are left out of the order.
    weights: weights of the datasets.
    seed: seed of the order of every epoch.
  """

  datasets: Sequence[Dataset]
  weights: Sequence[float | int]
  seed: int

  @classmethod
  def open(cls, directories: Directories, seed: int) -> "Mixture":
    """Opens the datasets.

    Args:
      directories: either plain folders, which are read as one large dataset;
        or pairs of a folder and its weight, whatever their sizes.
      seed: seed of the order.

    Raises:
      InputError: A dataset does not exist, or the weights are wrong.
    """
    pairs = [d for d in directories if not isinstance(d, str | Path)]
    if not pairs:
      return cls([Dataset(directories)], [1], seed)
    if len(pairs) < len(directories) or not all(w > 0 for _, w in pairs):
      raise InputError(
        f"cannot weigh {tuple(directories)}; give every directory as"
        " (directory, weight) with a positive weight, or none"
      )
    folders, weights = zip(*pairs, strict=True)
    return cls([Dataset([folder]) for folder in folders], weights, seed)

  def where(self, choice: Choice) -> "Mixture":
    """The mixture of the chosen records."""
    chosen = [dataset.where(choice) for dataset in self.datasets]
    return dataclasses.replace(self, datasets=chosen)

  def __len__(self) -> int:
    return sum(map(len, self.datasets))

  @functools.cached_property
  def _order(self) -> grain.MapDataset:
    """Pairs (number of the dataset, number of the record), endlessly."""
    filled = [n for n, dataset in enumerate(self.datasets) if len(dataset)]
    epochs = [
      grain.MapDataset.range(len(self.datasets[n]))
      .shuffle(seed=self.seed)
      .repeat()
      .map(lambda record, n=n: (n, int(record)))
      for n in filled
    ]
    return grain.MapDataset.mix(epochs, [self.weights[n] for n in filled])

  def place(self, number: int) -> Place:
    """The place of example `number` of the order."""
    dataset, record = self._order[number]
    return dataset, *self.datasets[dataset].place(record)

  def read(self, place: Place) -> dict[str, Any]:
    """The record at a place.

    Raises:
      InputError: The record is damaged.
    """
    return self.datasets[place[0]].read(place[1:])


def assign(
  mixture: Mixture, noun: str, buckets: Sequence[Bucket]
) -> tuple[dict[Bucket, Mixture], list[str]]:
  """Selects the records that each bucket draws from, without decoding any.

  Args:
    mixture: records that the buckets share.
    noun: name of the records in messages, such as "clips".
    buckets: buckets that draw from them.

  Returns:
    The mixture of each bucket, the same object for buckets that take the same
    records; and lines that report how many records each takes, and how many
    fit no bucket.

  Raises:
    InputError: A bucket fits no record.
  """
  if not buckets:
    return {}, [f"no bucket draws from the {len(mixture)} {noun}"]
  ratios = sorted({bucket.ratio for bucket in buckets})
  shared: dict[tuple, Mixture] = {}
  report = []
  for bucket in buckets:
    if bucket.group in shared:
      continue
    chosen = mixture.where(functools.partial(bucket.fits, ratios))
    if not len(chosen):
      short = mixture.where(
        lambda rows, least=bucket.num_frames: Entry(*rows.T).num_frames < least
      )
      names = ", ".join(dataset.name for dataset in mixture.datasets)
      raise InputError(
        f"no {noun} for the bucket of {bucket}: {len(short)} of {len(mixture)}"
        f" {noun} in {names} have fewer than {bucket.num_frames} frames, and"
        " the others have the shape of another bucket; remove the bucket or"
        f" build such {noun}"
      )
    shared[bucket.group] = chosen
    counts = ", ".join(
      f"{len(dataset)} {noun} of {dataset.name}" for dataset in chosen.datasets
    )
    width, height = bucket.size
    report.append(
      f"{bucket.num_frames} frames in the shape of {width}x{height}: {counts}"
    )
  left_out = mixture.where(
    lambda index: ~np.any([b.fits(ratios, index) for b in buckets], axis=0)
  )
  if len(left_out):
    report.append(
      f"{len(left_out)} of {len(mixture)} {noun} fit no bucket, because they"
      " are too short for those of their shape; they are left out"
    )
  return {bucket: shared[bucket.group] for bucket in buckets}, report
