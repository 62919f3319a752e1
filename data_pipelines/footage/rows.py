"""The rows of a list, or the media of a folder, as they are written there.

One after the other: neither a long list nor a long line fills the memory.
"""

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from data_pipelines.media import pictures
from i2vgen_jax.errors import InputError

_VIDEO_SUFFIXES = (
  ".mp4",
  ".m4v",
  ".mov",
  ".mkv",
  ".webm",
  ".avi",
  ".mpg",
  ".mpeg",
  ".ts",
  ".wmv",
  ".flv",
  ".gif",
)
# Characters beyond which it is no row.
_LONGEST_ROW = 1 << 20


def list_rows(path: Path) -> Iterator[str | dict | InputError]:
  """The rows of a list.

  Args:
    path: .jsonl or .csv with a header.

  Yields:
    Of JSONL lines still to be parsed, of CSV dicts, or what is wrong with one.
    Bytes that are not UTF-8 are surrogates.

  Raises:
    InputError: there is no such list, or it is nothing of the kind.
  """
  if path.suffix not in (".csv", ".jsonl"):
    raise InputError(
      f"manifest {path} must be a .jsonl or .csv file, or a folder of media"
    )
  # A pipe could be waited for without end, and is not read twice.
  if path.exists() and not path.is_file():
    raise InputError(f"manifest {path} is no regular file; give one")
  try:
    with path.open(
      encoding="utf-8-sig", errors="surrogateescape", newline=""
    ) as file:
      yield from _table(file, path) if path.suffix == ".csv" else _lines(file)
  except (OSError, csv.Error) as error:
    raise InputError(f"cannot read manifest {path}: {error}") from error


def _lines(file: TextIO) -> Iterator[str | InputError]:
  while line := file.readline(_LONGEST_ROW):
    is_whole = line.endswith(("\n", "\r")) or len(line) < _LONGEST_ROW
    rest = line
    while not rest.endswith(("\n", "\r")) and rest:
      rest = file.readline(_LONGEST_ROW)
    if not is_whole:
      yield InputError(
        f"the row is longer than {_LONGEST_ROW} characters", "bad-row"
      )
    elif line.strip():
      yield line


def _table(file: TextIO, path: Path) -> Iterator[dict | InputError]:
  reader = csv.DictReader(file)
  reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
  if "path" not in reader.fieldnames:
    raise InputError(
      f"manifest {path} has no column path; its first line must name the"
      " columns, with commas between them"
    )
  while True:
    try:
      yield next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      yield InputError(f"the row is not CSV: {error}", "bad-row")


def folder_rows(top: Path) -> Iterator[dict | InputError]:
  """The media below a folder, and what is wrong in it.

  Args:
    top: folder of NAME.mp4 with captions in NAME.txt, one a line.

  Raises:
    InputError: it cannot be read.
  """
  try:
    yield from _media(top, top)
  except OSError as error:
    raise InputError(f"cannot read folder {top}: {error.strerror}") from error


def _media(folder: Path, top: Path) -> Iterator[dict | InputError]:
  """By name, folder by folder; memory holds the names of one."""
  for path in sorted(folder.iterdir()):
    name = str(path.relative_to(top))
    if path.is_symlink() and path.is_dir():
      yield InputError(
        f"{name} is a link to a folder; list its files", "no-file"
      )
    elif path.is_dir():
      if not os.access(path, os.R_OK | os.X_OK):
        yield InputError(f"cannot read folder {name}; allow it", "missing")
        continue
      yield from _media(path, top)
    elif path.suffix.lower() in _VIDEO_SUFFIXES or pictures.is_picture(path):
      yield _row(path, name)


def _row(path: Path, name: str) -> dict | InputError:
  words = path.with_suffix(".txt")
  if not words.is_file():
    return {"path": name}
  try:
    with words.open(encoding="utf-8-sig", errors="surrogateescape") as file:
      return {"path": name, "captions": file.read(_LONGEST_ROW).splitlines()}
  except OSError as error:
    return InputError(
      f"cannot read the captions of {name}: {error.strerror}", "missing"
    )
