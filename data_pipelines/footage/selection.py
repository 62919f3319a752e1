"""Which candidates become records, and in which order."""

import hashlib
import itertools
import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from data_pipelines.footage.clips import Candidate
from data_pipelines.footage.fingerprint import SAME
from data_pipelines.footage.manifest import ManifestRow
from data_pipelines.footage.quarantine import Drop, write_drops
from data_pipelines.footage.settings import Limits
from i2vgen_jax.errors import InputError

# Where candidates are: (number of the file, offset of the line).
Places = Int64[np.ndarray, "n 2"]


def read_candidate(path: Path, offset: int) -> Candidate:
  """The candidate on the line at a byte offset."""
  with path.open("rb") as file:
    file.seek(offset)
    return _parse(file.readline())


def _parse(line: bytes) -> Candidate:
  source, *values = json.loads(line)
  return Candidate(ManifestRow(*source), *values)


def select(
  files: Sequence[Path], limits: Limits, seed: int, left_out: Path
) -> dict[str, Places]:
  """Applies limits, removes duplicates, shuffles.

  Of candidates that look alike the first is kept; the parts of one calm shot
  may look alike. The order is that of hashes of seed and id, so that it
  depends neither on the runner nor on the order of the manifest. Memory holds
  about 100 bytes per candidate, whatever its captions.

  Args:
    files: files with one candidate per line, in the order of the manifest.
    limits: bounds on the scores.
    seed: seed of the order.
    left_out: file to write the drops to.

  Returns:
    The selected candidates of each kind, in the order of the records.
  """
  # Five numbers each; Python objects would take ten times the memory.
  tables = {"text_video": array("Q"), "text_image": array("Q")}
  selected: dict[str, Places] = {}

  def drops() -> Iterator[Drop]:
    for number, offset, candidate in _candidates(files):
      try:
        limits.check(candidate.scores)
      except InputError as e:
        yield Drop.of(candidate.source, candidate.start, e)
        continue
      key = hashlib.blake2b(f"{seed}\n{candidate.id}".encode(), digest_size=8)
      order = int.from_bytes(key.digest(), "big")
      look, row = candidate.fingerprint, candidate.source.row
      tables[candidate.kind].extend((number, offset, look, row, order))
    for kind, table in tables.items():
      numbers = np.frombuffer(table, np.uint64).reshape(-1, 5)
      places = numbers[:, :2].astype(np.int64)
      first = first_alike(numbers[:, 2], numbers[:, 3])
      is_first = first == np.arange(len(first))
      for duplicate in np.flatnonzero(~is_first):
        pair = places[[duplicate, first[duplicate]]].tolist()
        copy, kept = (read_candidate(files[n], offset) for n, offset in pair)
        row, path, *_ = kept.source
        text = f"looks like row {row}, {path} at {kept.start:.2f} s"
        yield Drop.of(copy.source, copy.start, InputError(text, "duplicate"))
      order = np.argsort(numbers[is_first, 4], kind="stable")
      selected[kind] = places[is_first][order]

  write_drops(left_out, drops())
  return selected


def _candidates(files: Sequence[Path]) -> Iterator[tuple[int, int, Candidate]]:
  """File number, offset and candidate of every line."""
  for number, path in enumerate(files):
    with path.open("rb") as file:
      for line in file:
        yield number, file.tell() - len(line), _parse(line)


def first_alike(
  looks: UInt64[np.ndarray, "n"], rows: UInt64[np.ndarray, "n"]
) -> Int64[np.ndarray, "n"]:
  """Index of the first fingerprint of another row that each one is alike to.

  Two fingerprints that differ in few bits agree in at least one of several
  parts, so that only those that share a part are compared. Up to 65,000
  fingerprints this finds every pair. Beyond, the parts grow up to 16 bits, or
  the work would grow with the square: among 35 million, pairs within 3 bits
  are still found for certain, and many of the others.
  """
  first = np.arange(len(looks))
  width = min(max(len(looks).bit_length() - 9, 64 // (SAME + 1)), 16)
  edges = np.linspace(0, 64, 64 // width + 1).round().astype(int).tolist()
  is_target = _targets(looks, rows)
  for low, high in itertools.pairwise(edges):
    part = looks >> np.uint64(low) & np.uint64((1 << (high - low)) - 1)
    order = np.argsort(part, kind="stable")
    starts = np.flatnonzero(np.diff(part[order])) + 1
    for group in np.split(order, starts):
      targets = group[is_target[group]]
      places = np.searchsorted(targets, group)
      for place, number in zip(places.tolist(), group.tolist(), strict=True):
        before = targets[:place]
        differ = np.bitwise_count(looks[before] ^ looks[number])
        alike = before[(differ <= SAME) & (rows[before] != rows[number])]
        if len(alike):
          first[number] = min(first[number], alike[0])
  return first


def _targets(
  looks: UInt64[np.ndarray, "n"], rows: UInt64[np.ndarray, "n"]
) -> Bool[np.ndarray, "n"]:
  """The first of each fingerprint, and the first of it in another row.

  Any other index with the same fingerprint comes later than one of these, so
  that a file listed a million times costs no more than its million rows.
  """
  _, first, group = np.unique(looks, return_index=True, return_inverse=True)
  others = np.flatnonzero(rows != rows[first][group])
  _, second = np.unique(group[others], return_index=True)
  is_target = np.zeros(len(looks), bool)
  is_target[first] = is_target[others[second]] = True
  return is_target
