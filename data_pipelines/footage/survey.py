"""A look into what a build wrote: a random sample, and what was left out.

However large a dataset is, a bounded number of its records is read; of the
others only that their sidecars count them.
"""

import collections
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from data_pipelines.footage.quarantine import REASONS, read_drops
from data_pipelines.media import video
from data_pipelines.shards.dataset import SCORES, Dataset, Kind, dataset_dir
from i2vgen_jax import preprocessing
from i2vgen_jax.errors import InputError

# Records that are read for the figures.
RECORDS = 1000
# Frames of a clip that are shown.
FRAMES = 6
# Lines of the quarantine that are searched for examples.
_LINES = 100_000

# What a person reads of the scores.
_LABELS = {
  "motion": "motion, shorter sides a second",
  "sharpness": "sharpness, variance",
  "brightness": "brightness, 0 to 1",
  "text_share": "share of overlaid text",
  "subject_share": "share of the main subject",
  "aesthetics": "aesthetics",
}

Row = Mapping[str, Any]


class Shown(NamedTuple):
  """A clip or picture to look at.

  Attributes:
    row: the record without its media.
    frames: some of its frames, evenly spread from the first to the last.
  """

  row: Row
  frames: UInt8[np.ndarray, "f h w 3"]


class Sample(NamedTuple):
  """Records drawn at random from a dataset.

  Attributes:
    total: records of the whole dataset.
    rows: those drawn, without their media.
    shown: the first of them, decoded.
    damaged: a line for each that cannot be read or decoded.
  """

  total: int
  rows: list[Row]
  shown: list[Shown]
  damaged: list[str]


class LeftOut(NamedTuple):
  """What a build left out for one reason.

  Attributes:
    reason: a key of `quarantine.REASONS`.
    count: how often.
    meaning: of the reason.
    example: what the quarantine says of one; None if it is not at hand.
  """

  reason: str
  count: int
  meaning: str
  example: str | None


def sample(
  data_dir: Path, kind: Kind, num_shown: int, seed: int
) -> Sample | None:
  """Draws records of one kind, each at most once.

  Args:
    data_dir: what `i2vgen data build` wrote.
    kind: of the records.
    num_shown: how many of them are decoded.
    seed: of the draw.

  Returns:
    The sample, or None where there is no dataset of this kind.

  Raises:
    InputError: its metadata or an index is unusable.
  """
  directory = dataset_dir(data_dir, kind)
  if not directory.exists():
    return None
  dataset = Dataset([directory])
  made = Sample(len(dataset), [], [], [])
  rng = np.random.default_rng(seed)
  count = min(len(dataset), RECORDS)
  for number in rng.choice(len(dataset), count, replace=False).tolist():
    try:
      row = dataset[number]
      media = row.pop("image" if kind == "text_image" else "video")
      if len(made.shown) < num_shown:
        frames = _decoded(kind, media, row["id"].decode())
        made.shown.append(Shown(row, frames))
      made.rows.append(row)
    except InputError as error:
      made.damaged.append(str(error))
  return made


def _decoded(
  kind: Kind, media: bytes, name: str
) -> UInt8[np.ndarray, "f h w 3"]:
  if kind == "text_image":
    return preprocessing.load_picture(media, name)[None]
  frames, _ = video.decode_mp4(
    media, lambda times: _spread(len(times)), name=name
  )
  return frames


def _spread(count: int) -> list[int]:
  places = np.linspace(0, count - 1, min(count, FRAMES))
  return np.rint(places).astype(int).tolist()


def figures(
  kind: Kind, rows: Sequence[Row]
) -> dict[str, Float[np.ndarray, "_"]]:
  """What can be counted, by name; a score that nobody measured is empty."""

  def values(name: str) -> Float[np.ndarray, "_"]:
    return np.array([row[name] for row in rows], np.float64)

  captions = [caption for row in rows for caption in row["captions"]]
  width, height = values("width"), values("height")
  found = {}
  if kind == "text_video":
    found["duration, seconds"] = values("num_frames") / values("fps")
    found["frames per second"] = values("fps")
  found |= {
    "shorter side, pixels": np.minimum(width, height),
    "width to height": width / height,
    "words in a caption": np.array([len(c.split()) for c in captions], float),
  }
  scores = {_LABELS[name]: values(name) for name in SCORES}
  return found | {n: v[np.isfinite(v)] for n, v in scores.items()}


def told(data_dir: Path) -> dict[str, Any]:
  """What `build.json` says; nothing where there is none.

  Raises:
    InputError: it is damaged.
  """
  path = data_dir / "build.json"
  if not path.exists():
    return {}
  try:
    summary = json.loads(path.read_text())
    return {"identity": summary["identity"], "dropped": summary["dropped"]}
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(
      f"{path} is damaged ({error}); build or copy the dataset again"
    ) from error


def left_out(data_dir: Path, dropped: Mapping[str, int]) -> list[LeftOut]:
  """What is in the quarantine, the most frequent reason first.

  Args:
    data_dir: what `i2vgen data build` wrote.
    dropped: counts by reason; see `told`.

  Raises:
    InputError: `quarantine.jsonl` is damaged.
  """
  path, examples = data_dir / "quarantine.jsonl", {}
  try:
    lines = read_drops(path) if path.exists() else iter(())
    for drop in itertools.islice(lines, _LINES):
      at = "" if drop.start is None else f" at {drop.start:.2f} s"
      text = f"row {drop.row}{at}: {drop.detail}"
      examples.setdefault(drop.reason, text)
      if examples.keys() >= dropped.keys():
        break
  except (OSError, ValueError, TypeError) as error:
    raise InputError(
      f"{path} is damaged ({error}); build or copy the dataset again"
    ) from error
  return [
    LeftOut(reason, count, REASONS.get(reason, ""), examples.get(reason))
    for reason, count in collections.Counter(dropped).most_common()
  ]
