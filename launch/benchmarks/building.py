"""Cost of building a dataset, measured by rebuilding some of its examples."""

import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.footage import scan, write
from data_pipelines.footage.manifest import ManifestRow
from data_pipelines.footage.settings import ScanSettings
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
  candidates, _ = scan.scan(source, file, settings)
  scanned = time.process_time()
  write_ms = math.nan
  for candidate in candidates[:1]:
    write.encode(candidate, file, min(record["width"], record["height"]))
    write_ms = 1e3 * (time.process_time() - scanned) / candidate.num_frames
  return frames, len(media) / 1e3, 1e3 * (scanned - start) / frames, write_ms
