"""What a build leaves out, and why: one row each, with a reason to count by."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from i2vgen_jax.errors import InputError

# Every reason there is, and what it says.
REASONS = {
  "bad-row": "the manifest's row cannot be read",
  "no-caption": "nobody says what it shows",
  "missing": "no such file, or nobody may read it",
  "no-file": "a folder, a pipe or a device",
  "empty": "a file of 0 bytes",
  "damaged": "no container, codec or picture that can be decoded",
  "truncated": "cut short: less than the file promises",
  "no-video": "sound or subtitles alone",
  "no-frames": "a video stream without a frame",
  "no-times": "frames without increasing times",
  "interlaced": "two half pictures in each frame",
  "resized": "frames that change their size",
  "hdr": "brightness beyond what 8 bits show",
  "too-large": "more pixels than is allowed",
  "too-small": "fewer pixels a side than show anything",
  "too-long": "a longer film than is allowed",
  "stalled": "decoding did not come to an end in time",
  "crashed": "decoding killed its process",
  "failed": "an error that nobody foresaw, here or in a function of yours",
  "no-shot": "black, a fade, a dissolve or cuts too close: no single shot",
  "few-frames": "a shot of fewer frames than is asked for",
  "duplicate": "looks like another that is kept",
  "changed": "the file is no longer what was scanned",
  "min_motion": "less motion than is asked for",
  "max_motion": "more motion than is asked for",
  "min_sharpness": "less sharp than is asked for",
  "min_brightness": "darker than is asked for",
  "max_text_share": "more overlaid text than is allowed",
  "min_subject_share": "a smaller subject than is asked for",
  "min_aesthetics": "less beautiful than is asked for",
}


class Drop(NamedTuple):
  """One row of `quarantine.jsonl`.

  Attributes:
    row: of the manifest, from 1.
    path: of the file, as the manifest has it; None if it has none.
    start: of the shot in the file, in seconds; None for the whole file.
    reason: a key of `REASONS`.
    detail: one sentence.
  """

  row: int
  path: str | None
  start: float | None
  reason: str
  detail: str


def dropped(
  row: int, path: str | None, start: float | None, error: InputError
) -> Drop:
  """The drop of a file, or of a shot of it, that raised an error."""
  return Drop(row, path, start, error.reason, one_line(str(error)))


def one_line(text: str) -> str:
  """Text that a terminal may get: strangers name files and write headers."""
  plain = (c if c.isprintable() else "?" for c in " ".join(text.split()))
  return "".join(plain)


def read_drops(path: Path) -> Iterator[Drop]:
  """The rows of a file with one drop a line."""
  with path.open() as file:
    for line in file:
      yield Drop(**json.loads(line))
