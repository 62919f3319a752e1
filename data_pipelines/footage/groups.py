"""A list of any length, on disk in groups: memory never holds all its rows."""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.footage.manifest import Source, read_manifest
from data_pipelines.footage.quarantine import Drop
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import replacing, write_json_lines

# Files of one group, which one task scans; fewer where there are few, so that
# every core has some, and more of them rather than more groups than can be
# looked through in a moment.
_GROUP, _FEW, _MANY = 16, 64, 100_000


class Listing:
  """A list of media, read once as a whole.

  Attributes:
    manifest: its path.
    rows: how many there are, usable or not.
    sources: how many of them name a file.
    digest: of all rows. Where the files lie on this machine is no part of it,
      as that changes nothing that is written.
  """

  def __init__(self, manifest: Path):
    """Reads the list, a row at a time.

    Raises:
      InputError: there is no such list.
    """
    self.manifest = manifest
    for _ in self._read():
      pass

  def _read(self) -> Iterator[Source | Drop]:
    self.rows = self.sources = 0
    # The text is that of one JSON list.
    told = hashlib.blake2b(b"[", digest_size=16)
    for row in read_manifest(self.manifest):
      text = json.dumps(row._asdict() | {"location": None})
      told.update((", " if self.rows else "").encode() + text.encode())
      self.rows += 1
      self.sources += isinstance(row, Source)
      yield row
    told.update(b"]")
    self.digest = told.hexdigest()

  @property
  def group_size(self) -> int:
    """Sources of each group but the last."""
    few = max(self.sources // _FEW, 1)
    return max(min(few, _GROUP), math.ceil(self.sources / _MANY))

  @property
  def groups(self) -> int:
    """How many groups there are."""
    return math.ceil(self.sources / self.group_size)

  def spread(self, work: Path) -> None:
    """Writes the groups, and into one file the rows that cannot be used.

    Raises:
      InputError: the list is no longer what it was.
    """
    size, digest = self.group_size, self.digest
    with replacing(bad_rows(work)) as unfinished, unfinished.open("w") as file:

      def sources() -> Iterator[Source]:
        for row in self._read():
          if isinstance(row, Source):
            yield row
          else:
            file.write(json.dumps(row._asdict()) + "\n")

      rows = sources()
      for number in itertools.count():
        group = list(itertools.islice(rows, size))
        if not group:
          break
        if not (path := _group(work, number)).exists():
          write_json_lines(path, (row._asdict() for row in group))
    if self.digest != digest:
      raise InputError(
        f"manifest {self.manifest} changed while it was read; build again"
      )


def read_group(work: Path, number: int) -> Iterator[Source]:
  """The sources of a group."""
  with _group(work, number).open() as file:
    for line in file:
      values = json.loads(line)
      yield Source(**values | {"captions": tuple(values["captions"])})


def bad_rows(work: Path) -> Path:
  """Where the drops of the list itself are."""
  return work / "bad-rows.jsonl"


def _group(work: Path, number: int) -> Path:
  return work / f"list-{number:06d}.jsonl"
