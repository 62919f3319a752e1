"""Manifests: lists of media files and their captions, or a folder of them.

Rows are read one by one: neither a long list nor a long line fills the memory.
"""

import collections
import copy
import itertools
import json
import math
import os
import re
import urllib.parse
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
# Characters of a row.
_MAX_ROW = 1 << 20
_TOO_LONG = f"the row has more than {_MAX_ROW} characters"
_MAX_CAPTION_CHARACTERS = 10_000
_TEXT = {"encoding": "utf-8-sig", "errors": "surrogateescape"}
_QUOTES = "a quote is not closed, or a quote inside quotes is not doubled"


class ManifestRow(NamedTuple):
  """One row of a manifest.

  Attributes:
    row: its number, from 1.
    path: path or URI of the file as the manifest gives it.
    location: absolute path of the file, or its URI if it is not local.
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
      optionally `start` and `end` in seconds. In CSV, several captions are a
      JSON list in one cell. Other columns are ignored, and blank lines do not
      count. In a folder, NAME.mp4 has its captions in
      NAME.txt, one per line; links to other folders are not followed.

  Yields:
    A `Drop` for every row that cannot be used.

  Raises:
    InputError: there is no such manifest.
  """
  rows = _media(path, path) if path.is_dir() else _list_rows(path)
  folder = os.path.abspath(path if path.is_dir() else path.parent)
  with reading(path):
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
  name = _local_path(path) if path.lower().startswith("file://") else path
  if "\0" in _utf8(name, "path"):
    raise ValueError("the path contains a zero byte")
  start, stop = _seconds(row, "start", 0.0), _seconds(row, "end", math.inf)
  if not 0 <= start < stop:
    raise ValueError(
      f"start must be at least 0 and less than end, got {start} and {stop}"
    )
  # Not by pathlib, which interns every name: the interpreter's table of
  # interned strings would grow with the rows.
  location = name if "://" in name else os.path.join(folder, name)
  return ManifestRow(number, path, location, _captions(row), start, stop)


def _local_path(uri: str) -> str:
  host, slash, path = uri[len("file://") :].partition("/")
  if host.lower() not in ("", "localhost") or not slash:
    raise ValueError(
      f"a file URI must be file:///PATH with an absolute path, got {uri:.60}"
    )
  return f"/{urllib.parse.unquote(path, errors='surrogateescape')}"


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


# Rows before they are checked: any JSON value, usually an object, or an error
# that concerns one row only.


def _list_rows(path: Path) -> Iterator[Any]:
  if path.suffix not in (".csv", ".jsonl"):
    raise InputError(
      f"manifest {path} must be a .jsonl or .csv file, or a folder of media"
    )
  check_file(path, f"manifest {path}")
  with path.open(**_TEXT, newline="") as file:
    lines = _lines(file)
    is_csv = path.suffix == ".csv"
    yield from _csv_rows(lines, path) if is_csv else _json_rows(lines)


def _lines(file: TextIO) -> Iterator[str]:
  """Lines, cut to one character more than a row may have."""
  while line := file.readline(_MAX_ROW + 1):
    yield line
    while len(line) > _MAX_ROW and not line.endswith(("\n", "\r")):
      line = file.readline(_MAX_ROW + 1)


def _json_rows(lines: Iterator[str]) -> Iterator[Any]:
  for line in filter(str.strip, lines):
    try:
      yield json.loads(line) if len(line) <= _MAX_ROW else ValueError(_TOO_LONG)
    except (ValueError, RecursionError) as e:
      yield ValueError(f"the row is not JSON: {e}")


def _csv_rows(lines: Iterator[str], path: Path) -> Iterator[Any]:
  """The rows of a CSV file.

  Only the first line of a row with an unclosed quote is lost: the lines that
  the quote would include are read again as rows.
  """
  (lines,) = itertools.tee(lines, 1)
  header = next(filter(str.strip, lines), "")
  with reading(f"the columns of manifest {path}", "correct its first line"):
    names = _row_cells(header, lines)
  if "path" not in names:
    raise InputError(
      f"manifest {path} has no column path; its first line must name the"
      " columns, separated by commas"
    )
  # Spreadsheets leave columns without a name, which are ignored.
  counts = collections.Counter(filter(None, names))
  [(name, count)] = counts.most_common(1)
  if count > 1:
    raise InputError(
      f"manifest {path} has {count} columns named {name!r}; remove or rename"
      " all but one"
    )
  while line := next(lines, ""):
    if line.strip():
      more = copy.copy(lines)
      try:
        cells = _row_cells(line, more, len(names))
        lines = more
        yield _csv_row(names, cells)
      except ValueError as e:
        yield e


def _csv_row(names: list[str], cells: list[str]) -> dict[str, Any]:
  if len(cells) != len(names):
    raise ValueError(
      f"the number of cells is {len(cells)}, of columns {len(names)}; put a"
      f" cell that has a comma in double quotes: {','.join(cells):.60}"
    )
  row: dict[str, Any] = dict(zip(names, cells, strict=True))
  for name in {"caption", "captions"} & row.keys():
    if row[name].startswith("["):
      row[name] = _caption_list(row[name])
  return row


def _caption_list(cell: str) -> Any:
  """The list in a cell such as `["one", "two"]`, else the text of the cell."""
  try:
    return json.loads(cell)
  except (ValueError, RecursionError) as e:
    # Text may begin with a bracket too: [music] plays.
    if cell.endswith("]") and cell[1:].lstrip().startswith(('"', "'", "[")):
      raise ValueError(
        f'a list of captions must be JSON: ["one", "two"], got {cell:.40}'
      ) from e
    return cell


# A cell and the comma that ends it; quotes count at the start of a cell only.
_CELL = re.compile(r'\s*+(?:"((?:[^"]++|"")*+)"\s*+|((?!")[^,]*+))(,|\Z)')
_INSIDE_QUOTES = re.compile(r'(?:[^"]++|"")*+\Z')
_OPEN_QUOTE = re.compile(r'\s*+"' + _INSIDE_QUOTES.pattern)


def _row_cells(
  text: str, more: Iterator[str], columns: float | int = math.inf
) -> list[str]:
  """The stripped cells of the row that begins on a line.

  Args:
    text: first line of the row.
    more: the lines after it, read as far as the row extends.
    columns: number of cells that may have several lines. Without this limit,
      reading some rows again and again would take quadratic time.

  Raises:
    ValueError: the quotes do not match, or the row is too long.
  """
  if len(text) > _MAX_ROW:
    raise ValueError(_TOO_LONG)
  cells, at, comma = [], 0, ","
  while comma:
    if len(cells) < columns and _OPEN_QUOTE.match(text, at):
      text, at = text[at:] + _rest_of_cell(more), 0
    match = _CELL.match(text, at)
    if not match:
      raise ValueError(_QUOTES)
    quoted, plain, comma = match.groups()
    cell = plain if quoted is None else quoted.replace('""', '"')
    cells.append(cell.strip())
    at = match.end()
  return cells


def _rest_of_cell(more: Iterator[str]) -> str:
  """The lines up to the one in which an open quote ends."""
  text = ""
  for line in more:
    text += line
    if len(text) > _MAX_ROW:
      break
    if not _INSIDE_QUOTES.match(line):
      return text
  raise ValueError(_QUOTES)


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
    with texts.open(**_TEXT) as file:
      lines = file.read(_MAX_ROW).splitlines()
  except OSError as e:
    return InputError(
      f"cannot read the captions of {name}: {e.strerror}", "missing"
    )
  return {"path": name, "captions": lines}
