"""What a build leaves out and why: the lines of `quarantine.jsonl`."""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.footage.settings import Limits
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import write_json_lines


def _meaning(limit: str) -> str:
  side, score = limit.split("_", 1)
  relation = "below" if side == "min" else "above"
  return f"{score.replace('_', ' ')} {relation} the limit"


# Every reason and its meaning.
REASONS = {
  "bad-row": "the row of the manifest cannot be parsed",
  "no-caption": "the row of the manifest has no caption",
  "missing": "the file does not exist or cannot be read",
  "no-file": "a folder, pipe or device instead of a file",
  "empty": "the file has 0 bytes",
  "damaged": "the file cannot be decoded",
  "truncated": "the end of the file is missing",
  "no-video": "the file has no video track",
  "no-frames": "the video has no frames, or none between start and end",
  "no-times": "frame times are missing or do not increase",
  "interlaced": "the video is interlaced",
  "resized": "the frame size changes within the video",
  "hdr": "the video has high dynamic range",
  "too-large": "more pixels or memory than allowed",
  "too-small": "too few pixels to measure anything",
  "too-long": "the video is longer than allowed",
  "stalled": "decoding timed out",
  "crashed": "decoding crashed its process",
  "failed": "an unexpected error, here or in a function of yours",
  "no-shot": "not a single shot: black, a fade, a dissolve or rapid cuts",
  "few-frames": "a shot or a whole video with too few frames",
  "duplicate": "looks like another clip or picture, which is kept",
  "changed": "the file changed after it was scanned",
  **{f.name: _meaning(f.name) for f in dataclasses.fields(Limits)},
}


class Drop(NamedTuple):
  """One line of `quarantine.jsonl`.

  Attributes:
    row: row of the manifest, from 1.
    path: path of the file as the manifest gives it; None if the row has none.
    start: start of the shot in seconds; None for the whole file.
    reason: a key of `REASONS`.
    detail: one sentence.
  """

  row: int
  path: str | None
  start: float | None
  reason: str
  detail: str

  @classmethod
  def of(cls, row: Any, start: float | None, error: InputError) -> "Drop":
    """The drop of a manifest row, or of the shot at `start` in its file."""
    return cls(row.row, row.path, start, error.reason, one_line(str(error)))


def one_line(text: str) -> str:
  """Printable text in one line; names and headers may contain anything."""
  text = " ".join(text.split())
  return "".join(c if c.isprintable() else "?" for c in text)


def read_drops(path: Path) -> Iterator[Drop]:
  """The drops in a file with one JSON object per line."""
  with path.open() as file:
    for line in file:
      yield Drop(**json.loads(line))


def write_drops(path: Path, drops: Iterable[Drop]) -> None:
  """Writes one JSON object per line."""
  write_json_lines(path, (drop._asdict() for drop in drops))
