"""Cost of building a dataset, measured by rebuilding some of its examples."""

import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.footage import clips
from data_pipelines.footage.build import build_footage
from data_pipelines.footage.manifest import ManifestRow
from data_pipelines.footage.settings import FootageSettings, ScanSettings
from data_pipelines.running.guard import guarded
from data_pipelines.running.runner import Runner, beam_runner, in_order
from data_pipelines.shards.dataset import Dataset, Kind, dataset_dir, media_of
from launch.benchmarks.table import cell, row
from launch.progress import ProgressBar

_SUFFIXES: dict[Kind, str] = {"text_video": ".mp4", "text_image": ".jpg"}


def measure(data_dir: Path, count: int, seed: int) -> str:
  """Scans and writes at most `count` clips and pictures of a dataset again.

  Returns:
    A table with the means of frames and size, and median CPU times.
  """
  rows = ["Building on one core, measured by rebuilding stored examples"]
  rows.append(row("", "frames", "kB", "scan ms", "write ms", "s an example"))
  for kind, suffix in _SUFFIXES.items():
    directory = dataset_dir(data_dir, kind)
    if directory.exists():
      with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"example{suffix}"
        rows.append(_measure_kind(kind, directory, file, count, seed))
  return "\n".join(rows)


def _measure_kind(
  kind: Kind, directory: Path, file: Path, count: int, seed: int
) -> str:
  dataset = Dataset([directory])
  count = min(count, len(dataset))
  rng = np.random.default_rng(seed)
  chosen = rng.choice(len(dataset), count, replace=False).tolist()
  costs = []
  with ProgressBar() as progress:
    for done, number in enumerate(chosen, 1):
      costs.append(_costs(dataset[number], file))
      progress(f"{kind}, rebuilt", done, count)
  frames, kilobytes, *_ = np.mean(costs, axis=0).tolist()
  *_, scan_ms, write_ms = np.nanmedian(costs, axis=0).tolist()
  times = scan_ms, write_ms, frames * (scan_ms + write_ms) / 1e3
  return row(kind, cell(frames), cell(kilobytes), *(cell(x, 2) for x in times))


def _costs(
  record: Mapping[str, Any], file: Path
) -> tuple[int, float, float, float]:
  """Frames, kB, and CPU ms per frame to scan and to write an example again."""
  media, frames = media_of(record), record.get("num_frames", 1)
  file.write_bytes(media)
  source = ManifestRow(1, file.name, str(file), ("",))
  settings = ScanSettings(min_frames=1, max_seconds=math.inf)
  start = time.process_time()
  candidates, _ = clips.scan(source, file, settings)
  scanned = time.process_time()
  write_ms = math.nan
  for candidate in candidates[:1]:
    clips.encode(candidate, file, min(record["width"], record["height"]))
    write_ms = 1e3 * (time.process_time() - scanned) / candidate.num_frames
  return frames, len(media) / 1e3, 1e3 * (scanned - start) / frames, write_ms


# Numbers of rows that are built, to tell the cost of a row from that of a
# build, and seconds that a call in a child process may take.
_FEW, _MANY, _LIMIT = 20, 200, 600


def measure_rows() -> str:
  """CPU time of a build of small files outside of scanning and encoding.

  Returns:
    A table with seconds for each build or child process, and milliseconds for
    each row; a picture takes two calls in a child process.
  """
  rows = ["Building small files, without scanning and encoding, in CPU time"]
  rows.append(row("", "s a build", "ms a row"))
  used = [guarded(_used, seconds=_LIMIT) for _ in range(_FEW)]
  calls = 2e3 * (used[-1] - used[0]) / (_FEW - 1)
  for name, run in {"in order": in_order, "by Beam": beam_runner([])}.items():
    few, many = _build_seconds(_FEW, run), _build_seconds(_MANY, run)
    each = (many - few) / (_MANY - _FEW)
    rows.append(row(name, cell(few - _FEW * each, 2), cell(1e3 * each, 2)))
  return "\n".join([*rows, row("a child", cell(used[0], 2), cell(calls, 2))])


def _used() -> float:
  """CPU seconds of a child process, after its imports."""
  return time.process_time()


def _build_seconds(count: int, run: Runner) -> float:
  """CPU seconds that this process spends on a build of small pictures."""
  rng = np.random.default_rng(0)
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    for number in range(count):
      pixels = rng.integers(256, size=(4, 6, 3), dtype=np.uint8)
      Image.fromarray(pixels).resize((96, 64)).save(folder / f"{number}.jpg")
      (folder / f"{number}.txt").write_text("small")
    start = time.process_time()
    build_footage(folder, folder / "built", FootageSettings(), run=run)
    return time.process_time() - start
