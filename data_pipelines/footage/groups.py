"""Rows of a manifest on disk, in groups of files that one task scans.

Manifests may have any length; memory never holds all rows.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.footage.manifest import ManifestRow, read_manifest
from data_pipelines.footage.quarantine import Drop
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import replacing, write_json_lines

# Files in each group. Small manifests have smaller groups, so that there are
# tasks for every core, and very long ones larger groups, so that there are no
# more than can be listed quickly.
_GROUP, _MIN_GROUPS, _MAX_GROUPS = 16, 64, 100_000


class Groups:
  """The rows of a manifest, divided into groups.

  Attributes:
    manifest: path of the manifest.
    num_rows: number of rows, usable or not.
    num_files: number of usable rows.
    digest: hash of all rows, but not of where the files are on this machine.
    size: number of rows in each group but the last.
    count: number of groups.
  """

  def __init__(self, manifest: Path):
    """Reads the manifest once, a row at a time.

    Raises:
      InputError: there is no such manifest.
    """
    self.manifest = manifest
    for _ in self._read():
      pass
    size = min(max(self.num_files // _MIN_GROUPS, 1), _GROUP)
    self.size = max(size, math.ceil(self.num_files / _MAX_GROUPS))
    self.count = math.ceil(self.num_files / self.size)

  def _read(self) -> Iterator[ManifestRow | Drop]:
    self.num_rows = self.num_files = 0
    # The hashed text is that of one JSON list.
    digest = hashlib.blake2b(b"[", digest_size=16)
    for row in read_manifest(self.manifest):
      text = json.dumps(row._asdict() | {"location": None})
      digest.update((", " if self.num_rows else "").encode() + text.encode())
      self.num_rows += 1
      self.num_files += isinstance(row, ManifestRow)
      yield row
    digest.update(b"]")
    self.digest = digest.hexdigest()

  def write(self, work: Path) -> None:
    """Writes the groups, and one file with the unusable rows.

    Raises:
      InputError: the manifest has changed since it was read first.
    """
    digest = self.digest
    with replacing(bad_rows(work)) as temporary, temporary.open("w") as file:

      def usable() -> Iterator[dict]:
        for row in self._read():
          if isinstance(row, ManifestRow):
            yield row._asdict()
          else:
            file.write(json.dumps(row._asdict()) + "\n")

      rows = usable()
      groups = iter(lambda: list(itertools.islice(rows, self.size)), [])
      for number, group in enumerate(groups):
        path = _group(work, number)
        if not path.exists():
          write_json_lines(path, group)
    if self.digest != digest:
      raise InputError(
        f"manifest {self.manifest} changed while it was read; build again"
      )


def read_group(work: Path, number: int) -> Iterator[ManifestRow]:
  """The rows of a group."""
  with _group(work, number).open() as file:
    for line in file:
      values = json.loads(line)
      yield ManifestRow(**values | {"captions": tuple(values["captions"])})


def bad_rows(work: Path) -> Path:
  """Path of the file with the unusable rows."""
  return work / "bad-rows.jsonl"


def _group(work: Path, number: int) -> Path:
  return work / f"list-{number:06d}.jsonl"
