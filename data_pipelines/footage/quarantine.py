"""What a build leaves out and why: the lines of `quarantine.jsonl`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.footage import filters
from i2vgen_jax.errors import InputError

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
  **filters.REASONS,
}


class Drop(NamedTuple):
  """One line of `quarantine.jsonl`.

  Attributes:
    row: row of the manifest, from 1.
    path: path of the file as the manifest gives it, if it does.
    start: start of the shot in seconds; None for the whole file.
    reason: a key of `REASONS`.
    detail: one sentence.
  """

  row: int
  path: str | None
  start: float | None
  reason: str
  detail: str


def drop(source: Any, start: float | None, error: InputError) -> Drop:
  """What an error leaves out of a source: a manifest row or a candidate."""
  text = one_line(str(error))
  return Drop(source.row, source.path, start, error.reason, text)


def one_line(text: str) -> str:
  """Text that is safe to print: names and headers may contain anything."""
  plain = (c if c.isprintable() else "?" for c in " ".join(text.split()))
  return "".join(plain)


def read_drops(path: Path) -> Iterator[Drop]:
  """The drops in a file with one JSON object per line."""
  with path.open() as file:
    for line in file:
      yield Drop(**json.loads(line))
