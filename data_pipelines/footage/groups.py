"""Rows of a manifest on disk, in groups of files that one task scans.

Manifests may have any length; memory never holds all rows.
"""

import contextlib
import hashlib
import itertools
import json
import math
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.footage.manifest import ManifestRow, read_manifest
from data_pipelines.footage.quarantine import Drop, write_drops
from i2vgen_jax.errors import InputError, writing
from i2vgen_jax.files import write_json_lines

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
    size: number of clips in each group but the last.
    count: number of groups that `write` has written.
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
    self.count = 0

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

    Rows of one clip, wherever they are in the manifest, are one row in the
    place of the first, with all captions.

    Raises:
      InputError: the manifest has changed since it was read first, or the disk
        is full.
    """
    digest = self.digest
    with (
      writing(work, "free some space and build again"),
      tempfile.TemporaryDirectory(dir=work) as folder,
      contextlib.closing(sqlite3.connect(f"{folder}/rows")) as rows,
    ):
      try:
        write_drops(bad_rows(work), self._store(rows))
        clips = _joined(rows)
        groups = iter(lambda: list(itertools.islice(clips, self.size)), [])
        for number, group in enumerate(groups):
          self.count = number + 1
          if not _group(work, number).exists():
            write_json_lines(_group(work, number), group)
      except sqlite3.OperationalError as e:
        raise OSError(str(e)) from e
    if self.digest != digest:
      raise InputError(
        f"manifest {self.manifest} changed while it was read; build again"
      )

  def _store(self, rows: sqlite3.Connection) -> Iterator[Drop]:
    """Stores the usable rows in a database and yields the others."""
    rows.executescript("""
      PRAGMA journal_mode = OFF;
      PRAGMA synchronous = OFF;
      CREATE TABLE clips (clip TEXT PRIMARY KEY, first INTEGER) WITHOUT ROWID;
      CREATE TABLE rows (
        first INTEGER, number INTEGER, text TEXT, PRIMARY KEY (first, number)
      ) WITHOUT ROWID;
    """)
    for row in self._read():
      if isinstance(row, Drop):
        yield row
        continue
      clip = json.dumps((row.path, row.start, row.stop))
      rows.execute("INSERT OR IGNORE INTO clips VALUES (?, ?)", (clip, row.row))
      rows.execute(
        "INSERT INTO rows SELECT first, ?, ? FROM clips WHERE clip = ?",
        (row.row, json.dumps(row), clip),
      )


def _joined(rows: sqlite3.Connection) -> Iterator[ManifestRow]:
  """Clips in the order of their first rows.

  Memory holds the captions of one clip.
  """
  found = rows.execute("SELECT first, text FROM rows ORDER BY first, number")
  for _, same in itertools.groupby(found, key=lambda row: row[0]):
    parsed = (_parse(text) for _, text in same)
    first = next(parsed)
    captions = dict.fromkeys(first.captions)
    for row in parsed:
      captions |= dict.fromkeys(row.captions)
    yield first._replace(captions=tuple(captions))


def _parse(line: str) -> ManifestRow:
  row = ManifestRow(*json.loads(line))
  return row._replace(captions=tuple(row.captions))


def read_group(work: Path, number: int) -> Iterator[ManifestRow]:
  """The rows of a group."""
  with _group(work, number).open() as file:
    yield from map(_parse, file)


def bad_rows(work: Path) -> Path:
  """Path of the file with the unusable rows."""
  return work / "bad-rows.jsonl"


def _group(work: Path, number: int) -> Path:
  return work / f"list-{number:06d}.jsonl"
