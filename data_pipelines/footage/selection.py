"""Which candidates become records, and in which order."""

import dataclasses
import hashlib
import itertools
import json
import math
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from data_pipelines.footage import fingerprint
from data_pipelines.footage.quarantine import Drop, one_line
from data_pipelines.footage.scan import Candidate
from i2vgen_jax.files import write_json_lines


@dataclasses.dataclass(frozen=True)
class Limits:
  """Bounds on the scores; None is no bound.

  A score that was not measured passes: pictures have no motion, and beauty
  needs a function of the user's.
  """

  min_motion: float | int | None = None
  max_motion: float | int | None = None
  min_sharpness: float | int | None = None
  min_brightness: float | int | None = None
  max_text_share: float | int | None = None
  min_subject_share: float | int | None = None
  min_aesthetics: float | int | None = None

  def broken(self, candidate: Candidate) -> tuple[str, str] | None:
    """The first bound that the candidate breaks, and a sentence."""
    for name, bound in dataclasses.asdict(self).items():
      side, score = name.split("_", 1)
      value = candidate.scores.get(score, math.nan)
      if bound is None:
        continue
      if value < bound if side == "min" else value > bound:
        return name, f"{score} is {value:.4g}, and {name} is {bound:g}"
    return None


class Place(NamedTuple):
  """Where a candidate is written: a line of a file of the scan."""

  file: int
  offset: int


def read_candidate(path: Path, offset: int) -> Candidate:
  """The candidate of a line."""
  with path.open("rb") as file:
    file.seek(offset)
    return _parsed(file.readline())


def select(
  files: Sequence[Path], limits: Limits, seed: int, left_out: Path
) -> dict[str, Int64[np.ndarray, "n 2"]]:
  """Applies limits, drops what looks alike, shuffles.

  Of candidates that look alike the first one stays; the pieces of one calm
  shot may look alike. The order is that of hashes of seed and id, so that it
  depends neither on the runner nor on the manifest's order. Some 100 bytes are
  held of each candidate, whatever its captions.

  Args:
    files: one candidate a line, in the manifest's order.
    limits: bounds on the scores.
    seed: of the order.
    left_out: file to write, of what limits and duplicates left out.

  Returns:
    What is left of each kind, in the order of the records; see `Place`.
  """
  # Numbers side by side; as objects they would take ten times as much.
  tables = {"text_video": array("Q"), "text_image": array("Q")}
  chosen: dict[str, Int64[np.ndarray, "n 2"]] = {}

  def drops() -> Iterator[Drop]:
    for place, candidate in _lines(files):
      if broken := limits.broken(candidate):
        yield _drop(candidate, *broken)
        continue
      key = hashlib.blake2b(f"{seed}\n{candidate.id}".encode(), digest_size=8)
      order = int.from_bytes(key.digest(), "big")
      tables[candidate.kind].extend(
        (*place, candidate.fingerprint, candidate.row, order)
      )
    for kind, table in tables.items():
      numbers = np.frombuffer(table, np.uint64).reshape(-1, 5)
      at = numbers[:, :2].astype(np.int64)
      first = first_alike(numbers[:, 2], numbers[:, 3])
      alone = first == np.arange(len(first))
      for number in np.flatnonzero(~alone):
        candidate, kept = (
          read_candidate(files[file], offset)
          for file, offset in at[[number, first[number]]].tolist()
        )
        text = f"looks like row {kept.row}, {kept.path} at {kept.start:.2f} s"
        yield _drop(candidate, "duplicate", one_line(text))
      kept = np.flatnonzero(alone)
      chosen[kind] = at[kept[np.argsort(numbers[kept, 4], kind="stable")]]

  write_json_lines(left_out, (drop._asdict() for drop in drops()))
  return chosen


def first_alike(
  looks: UInt64[np.ndarray, "n"], rows: UInt64[np.ndarray, "n"]
) -> Int64[np.ndarray, "n"]:
  """The number of the first one of another row that each one is alike to.

  Two that differ in few bits agree in one of several parts, so that only
  those that share a part are compared. Up to 65,000 fingerprints this misses
  none; beyond, the parts grow to 16 bits, or the work would grow with the
  square: of 35 million, those within 3 bits are still found for certain, and
  many of the others.
  """
  first = np.arange(len(looks))
  exact = 64 // (fingerprint.SAME + 1)
  width = min(max(len(looks).bit_length() - 9, exact), 16)
  edges = np.linspace(0, 64, 64 // width + 1).round().astype(int).tolist()
  named = _worth_naming(looks, rows)
  for low, high in itertools.pairwise(edges):
    mask = np.uint64((1 << (high - low)) - 1)
    part = looks >> np.uint64(low) & mask
    order = np.argsort(part, kind="stable")
    starts = np.flatnonzero(np.diff(part[order])) + 1
    for group in np.split(order, starts):
      targets = group[named[group]]
      places = np.searchsorted(targets, group)
      for place, number in zip(places.tolist(), group.tolist(), strict=True):
        before = targets[:place]
        differ = np.bitwise_count(looks[before] ^ looks[number])
        alike = before[
          (differ <= fingerprint.SAME) & (rows[before] != rows[number])
        ]
        if len(alike):
          first[number] = min(first[number], alike[0])
  return first


def _worth_naming(
  looks: UInt64[np.ndarray, "n"], rows: UInt64[np.ndarray, "n"]
) -> Bool[np.ndarray, "n"]:
  """The first of each look, and the first of another row than that one's.

  Whatever else has the same look comes later than one of these: a file that
  is listed a million times costs no more than its million rows.
  """
  worth = np.zeros(len(looks), bool)
  order = np.argsort(looks, kind="stable")
  heads = np.diff(looks[order], prepend=looks[order[:1]] ^ np.uint64(1)) != 0
  group = np.cumsum(heads) - 1
  others = rows[order] != rows[order[heads]][group]
  _, second = np.unique(group[others], return_index=True)
  worth[order[heads]] = worth[order[others][second]] = True
  return worth


def _lines(files: Sequence[Path]) -> Iterator[tuple[Place, Candidate]]:
  for number, path in enumerate(files):
    with path.open("rb") as file:
      offset = 0
      for line in file:
        yield Place(number, offset), _parsed(line)
        offset += len(line)


def _parsed(line: bytes) -> Candidate:
  values = json.loads(line)
  values["captions"] = tuple(values["captions"])
  return Candidate(**values)


def _drop(candidate: Candidate, reason: str, detail: str) -> Drop:
  return Drop(candidate.row, candidate.path, candidate.start, reason, detail)
