"""Manifests: lists of media files and their captions, or a folder of them.

Rows are read one by one: neither a long list nor a long line fills the memory.
"""

import contextlib
import csv
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from data_pipelines.footage.quarantine import Drop, one_line
from data_pipelines.media import pictures
from i2vgen_jax.errors import InputError, reading
from i2vgen_jax.files import check_file

_VIDEO_SUFFIXES = (
  ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts",
  ".wmv", ".flv", ".gif",
)  # fmt: skip
_MAX_ROW_CHARACTERS = 1 << 20
_MAX_CAPTION_CHARACTERS = 10_000


class ManifestRow(NamedTuple):
  """One row of a manifest.

  Attributes:
    row: its number, from 1.
    path: path or URI of the file as the manifest gives it.
    location: absolute path or URI of the file.
    captions: at least one.
    start: seconds at which the used part starts.
    stop: seconds at which it ends; infinity for the end of the file.
  """

  row: int
  path: str
  location: str
  captions: tuple[str, ...]
  start: float | int = 0.0
  stop: float | int = math.inf

  @property
  def is_picture(self) -> bool:
    """Whether the file name is that of a still picture."""
    return pictures.is_picture(self.path)


def read_manifest(path: Path) -> Iterator[ManifestRow | Drop]:
  """Reads the rows of a list, or finds the media in a folder.

  Args:
    path: .jsonl, .csv with a header, or a folder; text is UTF-8. A row has
      `path` (relative to the list) or a URI, `caption` or `captions`, and
      optionally `start` and `end` in seconds. Other columns are ignored, and
      blank lines do not count. In a folder, NAME.mp4 has its captions in
      NAME.txt, one per line; links to other folders are not followed.

  Yields:
    A `Drop` for every row that cannot be used.

  Raises:
    InputError: there is no such manifest.
  """
  rows = _folder_rows(path) if path.is_dir() else _list_rows(path)
  folder = os.path.abspath(path if path.is_dir() else path.parent)
  for number, row in enumerate(rows, 1):
    try:
      yield _parsed(number, row, folder)
    except ValueError as e:
      name = row.get("path") if isinstance(row, dict) else None
      name = name if isinstance(name, str) else None
      reason = e.reason if isinstance(e, InputError) else "bad-row"
      yield Drop(number, name, None, reason, one_line(str(e)))


def _parsed(number: int, row: Any, folder: str) -> ManifestRow:
  if isinstance(row, ValueError):
    raise row
  if not isinstance(row, dict):
    raise ValueError("the row is not a JSON object")
  path = row.get("path")
  if not isinstance(path, str) or not path.strip():
    raise ValueError("the row has no path")
  if "\0" in _utf8(path, "path"):
    raise ValueError("the path contains a zero byte")
  start, stop = _seconds(row, "start", 0.0), _seconds(row, "end", math.inf)
  if not 0 <= start < stop:
    raise ValueError(
      f"start must be at least 0 and less than end, got {start} and {stop}"
    )
  # Not by pathlib, which interns every name: the interpreter's table of
  # interned strings would grow with the rows.
  location = path if "://" in path else os.path.join(folder, path)
  return ManifestRow(number, path, location, _captions(row), start, stop)


def _utf8(text: str, name: str) -> str:
  try:
    text.encode()
  except UnicodeEncodeError as e:
    raise ValueError(f"the {name} is not UTF-8") from e
  return text


def _captions(row: dict) -> tuple[str, ...]:
  given = row.get("captions") or row.get("caption") or []
  captions = []
  for text in given if isinstance(given, list) else [given]:
    if text is not None and not isinstance(text, str):
      raise ValueError(f"a caption must be text, got {text!r:.40}")
    if text and text.strip():
      captions.append(_utf8(text.strip(), "caption"))
  if not captions:
    raise InputError("the row has no caption", "no-caption")
  if sum(map(len, captions)) > _MAX_CAPTION_CHARACTERS:
    raise ValueError(
      f"the captions have more than {_MAX_CAPTION_CHARACTERS} characters"
    )
  return tuple(captions)


def _seconds(row: dict, name: str, default: float) -> float:
  value = row.get(name)
  if value is None or value == "":
    return default
  try:
    if isinstance(value, bool):
      raise TypeError
    return float(value)
  except (TypeError, ValueError, OverflowError) as e:
    raise ValueError(f"{name} must be in seconds, got {value!r:.40}") from e


# Rows as they are written, not yet checked: a dict or any other JSON value, or
# an error that concerns one row.


def _list_rows(path: Path) -> Iterator[Any]:
  if path.suffix not in (".csv", ".jsonl"):
    raise InputError(
      f"manifest {path} must be a .jsonl or .csv file, or a folder of media"
    )
  check_file(path, f"manifest {path}")
  with (
    reading(path),
    path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as f,
  ):
    yield from _csv_rows(f, path) if path.suffix == ".csv" else _json_rows(f)


def _json_rows(file: TextIO) -> Iterator[Any]:
  while line := file.readline(_MAX_ROW_CHARACTERS):
    if len(line) == _MAX_ROW_CHARACTERS and not line.endswith(("\n", "\r")):
      while line and not line.endswith(("\n", "\r")):
        line = file.readline(_MAX_ROW_CHARACTERS)
      yield ValueError(
        f"the row has more than {_MAX_ROW_CHARACTERS} characters"
      )
    elif line.strip():
      try:
        yield json.loads(line)
      except (ValueError, RecursionError) as e:
        yield ValueError(f"the row is not JSON: {e}")


def _csv_rows(file: TextIO, path: Path) -> Iterator[Any]:
  reader = csv.DictReader(file)
  names: list[str] = []
  with contextlib.suppress(csv.Error):
    names = [name.strip() for name in reader.fieldnames or ()]
  if "path" not in names:
    raise InputError(
      f"manifest {path} has no column path; its first line must name the"
      " columns, separated by commas"
    )
  reader.fieldnames = names
  while True:
    try:
      yield from reader
      return
    except csv.Error as e:  # Reading continues with the next row.
      yield ValueError(f"the row is not CSV: {e}")


def _folder_rows(top: Path) -> Iterator[Any]:
  with reading(top):
    yield from _media(top, top)


def _media(folder: Path, top: Path) -> Iterator[Any]:
  """Media by name, folder by folder; memory holds the names of one folder."""
  for path in sorted(folder.iterdir()):
    name = str(path.relative_to(top))
    if path.is_symlink() and path.is_dir():
      yield InputError(
        f"{name} is a link to a folder, which is not followed; list its files",
        "no-file",
      )
    elif path.is_dir():
      if os.access(path, os.R_OK | os.X_OK):
        yield from _media(path, top)
      else:
        yield InputError(f"folder {name} is not readable", "missing")
    elif path.suffix.lower() in _VIDEO_SUFFIXES or pictures.is_picture(path):
      yield _media_row(path, name)


def _media_row(path: Path, name: str) -> Any:
  texts = path.with_suffix(".txt")
  if not texts.is_file():
    return {"path": name}
  try:
    with texts.open(encoding="utf-8-sig", errors="surrogateescape") as file:
      lines = file.read(_MAX_ROW_CHARACTERS).splitlines()
  except OSError as e:
    return InputError(
      f"cannot read the captions of {name}: {e.strerror}", "missing"
    )
  return {"path": name, "captions": lines}
