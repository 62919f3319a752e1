"""Which files a build shall read, and what their captions are."""

import contextlib
import csv
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines import images
from data_pipelines.quarantine import Drop, Unusable
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


class Source(NamedTuple):
  """One row of a manifest.

  Attributes:
    row: its number, from 1.
    path: as the manifest has it.
    location: absolute path or URI of the file.
    captions: what people say of it; at least one.
    start: seconds from which on it is used; 0 for all.
    stop: seconds up to which it is used; infinity for all.
  """

  row: int
  path: str
  location: str
  captions: tuple[str, ...]
  start: float | int = 0.0
  stop: float | int = math.inf

  @property
  def is_picture(self) -> bool:
    """Whether it is a photo rather than a film, by its name."""
    return images.is_picture(self.path)


def read_manifest(path: Path) -> Iterator[Source | Drop]:
  """The rows of a list, or the media of a folder, one after the other.

  Args:
    path: .jsonl, .csv with a header, or a folder. A row has `path` (relative
      to the list) or a URI, `caption` or `captions`, and perhaps `start` and
      `end` in seconds. In a folder, NAME.mp4 has its captions in NAME.txt, one
      a line.

  Yields:
    A `Drop` for every row that cannot be used.

  Raises:
    InputError: there is no such list.
  """
  rows = _folder_rows(path) if path.is_dir() else _list_rows(path)
  folder = path if path.is_dir() else path.parent
  for number, row in enumerate(rows, 1):
    try:
      row = _parsed(row)
      yield _source(number, row, folder)
    except Unusable as error:
      name = row.get("path") if isinstance(row, Mapping) else None
      name = name if isinstance(name, str) else None
      yield Drop(number, name, None, error.reason, str(error))


@contextlib.contextmanager
def local_file(location: str) -> Iterator[Path]:
  """The file itself, or for the time being a copy of what a URI names.

  Raises:
    Unusable: it cannot be fetched.
  """
  if "://" not in location:
    yield Path(location)
    return
  from etils import epath

  with tempfile.TemporaryDirectory() as folder:
    copy = Path(folder) / ("file" + Path(location).suffix)
    try:
      epath.Path(location).copy(copy)
    except Exception as error:  # Whatever the store's own library raises.
      raise Unusable("missing", f"cannot fetch {location}: {error}") from error
    yield copy


def _list_rows(path: Path) -> Iterator[str | dict]:
  """JSONL: lines still to be parsed; CSV: dicts."""
  if path.suffix not in (".csv", ".jsonl"):
    raise InputError(
      f"manifest {path} must be a .jsonl or .csv file, or a folder of media"
    )
  try:
    with path.open(encoding="utf-8-sig", newline="") as file:
      if path.suffix == ".csv":
        yield from csv.DictReader(file)
      else:
        yield from (line for line in file if line.strip())
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise InputError(f"cannot read manifest {path}: {error}") from error


def _folder_rows(folder: Path) -> Iterator[dict]:
  for path in sorted(folder.rglob("*")):
    known = path.suffix.lower() in _VIDEO_SUFFIXES or images.is_picture(path)
    if not known or path.is_dir():
      continue
    words = path.with_suffix(".txt")
    row: dict[str, Any] = {"path": str(path.relative_to(folder))}
    if words.is_file():
      lines = words.read_text(encoding="utf-8-sig", errors="replace")
      row["captions"] = [x for x in lines.splitlines() if x.strip()]
    yield row


def _parsed(row: str | dict) -> dict:
  try:
    row = json.loads(row) if isinstance(row, str) else row
  except ValueError as error:
    raise Unusable("bad-row", f"the row is not JSON: {error}") from error
  if not isinstance(row, dict):
    raise Unusable("bad-row", "the row is no object with names; give it some")
  return row


def _source(number: int, row: dict, folder: Path) -> Source:
  path = row.get("path")
  if not isinstance(path, str) or not path.strip():
    raise Unusable("bad-row", "the row has no path; give it one")
  location = path if "://" in path else str((folder / path).absolute())
  start, stop = _seconds(row, "start", 0.0), _seconds(row, "end", math.inf)
  if not 0 <= start < stop:
    raise Unusable(
      "bad-row", f"{path} shall start at {start} and end at {stop}"
    )
  return Source(number, path, location, _captions(row), start, stop)


def _captions(row: dict) -> tuple[str, ...]:
  given = row.get("captions", row.get("caption"))
  given = [given] if isinstance(given, str) else given
  if not isinstance(given, list) or not all(isinstance(x, str) for x in given):
    given = []
  captions = tuple(text.strip() for text in given if text.strip())
  if not captions:
    raise Unusable("no-caption", "the row has no caption; give it one")
  return captions


def _seconds(row: dict, name: str, default: float) -> float:
  value = row.get(name)
  if value is None or value == "":
    return default
  try:
    return float(value)
  except (TypeError, ValueError) as error:
    raise Unusable(
      "bad-row", f"the row's {name} is {value!r}; give seconds"
    ) from error
