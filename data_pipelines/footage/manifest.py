"""Which files a build shall read, and what their captions are."""

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from data_pipelines.footage.quarantine import Drop, dropped
from data_pipelines.footage.rows import folder_rows, list_rows
from data_pipelines.media import pictures
from data_pipelines.running.guard import guarded
from i2vgen_jax.errors import InputError

# Characters beyond which it is no caption.
_LONGEST_CAPTION = 10_000


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
    return pictures.is_picture(self.path)


def read_manifest(path: Path) -> Iterator[Source | Drop]:
  """The rows of a list, or the media of a folder, one after the other.

  Args:
    path: .jsonl, .csv with a header, or a folder; text is UTF-8. A row has
      `path` (relative to the list) or a URI, `caption` or `captions`, and
      perhaps `start` and `end` in seconds; what else it has is not looked at,
      and blank lines do not count. In a folder, NAME.mp4 has its captions in
      NAME.txt, one a line; links to other folders are not followed.

  Yields:
    A `Drop` for every row that cannot be used.

  Raises:
    InputError: there is no such list.
  """
  rows = folder_rows(path) if path.is_dir() else list_rows(path)
  folder = path if path.is_dir() else path.parent
  for number, row in enumerate(rows, 1):
    try:
      row = _parsed(row)
      yield _source(number, row, folder)
    except InputError as error:
      name = row.get("path") if isinstance(row, Mapping) else None
      name = name if isinstance(name, str) else None
      yield dropped(number, name, None, error)


@contextlib.contextmanager
def local_file(location: str, *, seconds: float | int) -> Iterator[Path]:
  """The file itself, or for the time being a copy of what a URI names.

  Args:
    location: absolute path or URI.
    seconds: after which fetching is given up.

  Raises:
    InputError: it cannot be fetched.
  """
  if "://" not in location:
    yield Path(location)
    return
  with tempfile.TemporaryDirectory() as folder:
    copy = Path(folder) / ("file" + Path(location).suffix)
    guarded(_fetch, location, copy, seconds=seconds)
    yield copy


def _fetch(location: str, copy: Path) -> None:
  from etils import epath

  try:
    epath.Path(location).copy(copy)
  except Exception as error:  # Whatever the store's own library raises.
    raise InputError(f"cannot fetch {location}: {error}", "missing") from error


def _parsed(row: str | dict | InputError) -> dict:
  if isinstance(row, InputError):
    raise row
  try:
    row = json.loads(row) if isinstance(row, str) else row
  except (ValueError, RecursionError) as error:
    raise InputError(f"the row is not JSON: {error}", "bad-row") from error
  if not isinstance(row, dict):
    raise InputError("the row is no object with names; give it some", "bad-row")
  return row


def _source(number: int, row: dict, folder: Path) -> Source:
  path = row.get("path")
  if not isinstance(path, str) or not path.strip():
    raise InputError("the row has no path; give it one", "bad-row")
  if "\0" in _text(path, "path"):
    raise InputError("the row's path has a zero byte in it", "bad-row")
  # Not with pathlib, which interns the parts of every path: the interpreter's
  # table of interned strings would grow with the rows.
  location = path if "://" in path else os.path.join(folder.absolute(), path)
  start, stop = _seconds(row, "start", 0.0), _seconds(row, "end", math.inf)
  if not 0 <= start < stop:
    raise InputError(
      f"{path} shall start at {start} and end at {stop}", "bad-row"
    )
  return Source(number, path, location, _captions(row), start, stop)


def _captions(row: dict) -> tuple[str, ...]:
  given = row.get("captions") or row.get("caption") or []
  given = given if isinstance(given, list) else [given]
  captions = []
  for text in given:
    if text is not None and not isinstance(text, str):
      raise InputError(
        f"a caption of the row is {text!r:.40}; give text", "bad-row"
      )
    if text and text.strip():
      captions.append(_text(text.strip(), "caption"))
  if not captions:
    raise InputError("the row has no caption; give it one", "no-caption")
  if sum(map(len, captions)) > _LONGEST_CAPTION:
    raise InputError(
      f"the row's captions have more than {_LONGEST_CAPTION} characters",
      "bad-row",
    )
  return tuple(captions)


def _text(text: str, what: str) -> str:
  """The text, which can be written again."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise InputError(
      f"the row's {what} is not UTF-8; write it anew", "bad-row"
    ) from error
  return text


def _seconds(row: dict, name: str, default: float) -> float:
  value = row.get(name)
  if value is None or value == "":
    return default
  try:
    if isinstance(value, bool):
      raise TypeError
    return float(value)
  except (TypeError, ValueError, OverflowError) as error:
    raise InputError(
      f"the row's {name} is {value!r:.40}; give seconds", "bad-row"
    ) from error
