"""Random sample of a dataset, and a summary of what its build left out.

However large a dataset is, a bounded number of records is read; the total
comes from the indices of the shards.
"""

import collections
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from data_pipelines.footage.quarantine import REASONS, read_drops
from data_pipelines.media import video
from data_pipelines.shards import dataset
from data_pipelines.shards.dataset import Kind
from i2vgen_jax.errors import InputError, reading
from i2vgen_jax.files import read_json

# Number of records that are drawn.
RECORDS = 1000
# Number of frames of a clip that are shown.
FRAMES = 6
# Number of lines of the quarantine that are searched for examples.
_LINES = 100_000
_ADVICE = "build or copy the dataset again"

Row = Mapping[str, Any]
Values = Float[np.ndarray, "_"]


class Sample(NamedTuple):
  """Records drawn at random from a dataset.

  Attributes:
    total: number of records in the dataset.
    rows: the drawn records without their media.
    shown: the first of them, each with some of its frames, evenly spread from
      the first to the last.
    damaged: a message for each record that cannot be read or decoded.
  """

  total: int
  rows: list[Row]
  shown: list[tuple[Row, video.Frames]]
  damaged: list[str]


class LeftOut(NamedTuple):
  """What a build left out for one reason.

  Attributes:
    reason: a key of `quarantine.REASONS`.
    count: number of files, rows or shots.
    meaning: meaning of the reason.
    example: description of one of them; None if the search found none.
  """

  reason: str
  count: int
  meaning: str
  example: str | None


def sample(data_dir: Path, kind: Kind, count: int, seed: int) -> Sample | None:
  """Draws records of one kind, each at most once.

  Args:
    data_dir: output of `i2vgen data build`.
    kind: kind of the records.
    count: number of records that are decoded.
    seed: seed of the draw.

  Returns:
    The sample, or None if there is no dataset of this kind.

  Raises:
    InputError: the metadata or an index is unusable.
  """
  directory = dataset.dataset_dir(data_dir, kind)
  if not directory.exists():
    return None
  records = dataset.Dataset([directory])
  total = len(records)
  drawn = Sample(total, [], [], [])
  rng = np.random.default_rng(seed)
  for number in rng.choice(total, min(total, RECORDS), replace=False).tolist():
    try:
      row = records[number]
      if len(drawn.shown) < count:
        drawn.shown.append((row, dataset.load_frames(row, _spread)[0]))
      row.pop("image" if kind == "text_image" else "video")
      drawn.rows.append(row)
    except InputError as e:
      drawn.damaged.append(str(e))
  return drawn


def _spread(times: video.Times) -> list[int]:
  places = np.linspace(0, len(times) - 1, min(len(times), FRAMES))
  return np.rint(places).astype(int).tolist()


def figures(kind: Kind, rows: Sequence[Row]) -> dict[str, Values]:
  """Values of the records by label, without scores that were not measured."""

  def values(name: str) -> Values:
    return np.array([row.get(name, np.nan) for row in rows], np.float64)

  words = [len(text.split()) for row in rows for text in row["captions"]]
  width, height = values("width"), values("height")
  found = {}
  if kind == "text_video":
    found["duration, seconds"] = values("num_frames") / values("fps")
    found["frames per second"] = values("fps")
  found["shorter side, pixels"] = np.minimum(width, height)
  found["width to height"] = width / height
  found["words in a caption"] = np.array(words, np.float64)
  for name, label in dataset.SCORES.items():
    found[label] = values(name)[np.isfinite(values(name))]
  return found


def read_summary(data_dir: Path) -> dict[str, Any]:
  """Identity and drop counts in `build.json`; empty if there is no such file.

  Raises:
    InputError: the file is damaged.
  """
  path = data_dir / "build.json"
  if not path.exists():
    return {}
  summary = read_json(path, advice=_ADVICE)
  with reading(path, _ADVICE):
    return {name: summary[name] for name in ("identity", "dropped")}


def left_out(data_dir: Path, dropped: Mapping[str, int]) -> list[LeftOut]:
  """Summarises the quarantine, the most frequent reason first.

  Args:
    data_dir: output of `i2vgen data build`.
    dropped: counts by reason; see `read_summary`.

  Raises:
    InputError: `quarantine.jsonl` is damaged.
  """
  path, examples = data_dir / "quarantine.jsonl", {}
  with reading(path, _ADVICE):
    lines = read_drops(path) if path.exists() else iter(())
    for drop in itertools.islice(lines, _LINES):
      at = "" if drop.start is None else f" at {drop.start:.2f} s"
      text = f"row {drop.row}{at}: {drop.detail}"
      examples.setdefault(drop.reason, text)
      if examples.keys() >= dropped.keys():
        break
  return [
    LeftOut(reason, count, REASONS.get(reason, ""), examples.get(reason))
    for reason, count in collections.Counter(dropped).most_common()
  ]
