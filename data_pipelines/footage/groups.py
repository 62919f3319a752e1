"""Rows of a manifest on disk, in groups of files that one task scans.

Manifests may have any length; memory never holds all rows.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from data_pipelines.footage.manifest import ManifestRow, read_manifest
from data_pipelines.footage.quarantine import Drop
from i2vgen_jax.errors import InputError, writing
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
      replacing(bad_rows(work)) as temporary,
      temporary.open("w") as file,
      contextlib.closing(sqlite3.connect(f"{folder}/rows")) as rows,
    ):
      try:
        clips = _joined(rows, self._usable(file))
        self.count = self._write_groups(work, clips)
      except sqlite3.OperationalError as e:
        if e.sqlite_errorcode == sqlite3.SQLITE_FULL:
          raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from e
        raise OSError(str(e)) from e
    if self.digest != digest:
      raise InputError(
        f"manifest {self.manifest} changed while it was read; build again"
      )

  def _usable(self, bad: TextIO) -> Iterator[ManifestRow]:
    for row in self._read():
      if isinstance(row, ManifestRow):
        yield row
      else:
        bad.write(json.dumps(row._asdict()) + "\n")

  def _write_groups(self, work: Path, clips: Iterator[ManifestRow]) -> int:
    dicts = (clip._asdict() for clip in clips)
    groups = iter(lambda: list(itertools.islice(dicts, self.size)), [])
    number = -1
    for number, group in enumerate(groups):
      path = _group(work, number)
      if not path.exists():
        write_json_lines(path, group)
    return number + 1


def _joined(
  rows: sqlite3.Connection, given: Iterable[ManifestRow]
) -> Iterator[ManifestRow]:
  """Clips in the order of their first rows; sorts on disk.

  Memory holds the captions of one clip.
  """
  rows.executescript("""
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    CREATE TABLE clips (clip TEXT PRIMARY KEY, first INTEGER) WITHOUT ROWID;
    CREATE TABLE rows (
      first INTEGER, number INTEGER, text TEXT, PRIMARY KEY (first, number)
    ) WITHOUT ROWID;
  """)
  for row in given:
    clip = json.dumps((row.path, row.start, row.stop))
    rows.execute("INSERT OR IGNORE INTO clips VALUES (?, ?)", (clip, row.row))
    rows.execute(
      "INSERT INTO rows SELECT first, ?, ? FROM clips WHERE clip = ?",
      (row.row, json.dumps(row), clip),
    )
  found = rows.execute("SELECT first, text FROM rows ORDER BY first, number")
  for _, same in itertools.groupby(found, key=lambda pair: pair[0]):
    parsed = (_row(json.loads(text)) for _, text in same)
    first = next(parsed)
    captions = dict.fromkeys(first.captions)
    for row in parsed:
      captions.update(dict.fromkeys(row.captions))
    yield first._replace(captions=tuple(captions))


def _row(values: list) -> ManifestRow:
  row = ManifestRow(*values)
  return row._replace(captions=tuple(row.captions))


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
