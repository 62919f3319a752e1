"""Cost of building a dataset: some of its examples are built once more."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable
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
  headers = "frames", "kB", "scan ms", "write ms", "s an example"
  rows = ["Building, on one core, once more from what was built"]
  rows.append(row("", *headers))
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
  chosen = np.random.default_rng(seed).choice(
    len(dataset), min(count, len(dataset)), replace=False
  )
  settings = ScanSettings(min_frames=1, max_seconds=math.inf)
  frames, sizes, scans, writes = [], [], [], []
  with ProgressBar() as progress:
    for done, number in enumerate(chosen.tolist(), 1):
      record = dataset[number]
      file.write_bytes(media_of(record))
      frames.append(record.get("num_frames", 1))
      sizes.append(len(media_of(record)) / 1e3)
      source = ManifestRow(1, file.name, str(file), ("",))
      seconds, (candidates, _) = _timed(scan.scan, source, file, settings)
      scans.append(1e3 * seconds / frames[-1])
      side = min(record["width"], record["height"])
      for candidate in candidates[:1]:
        seconds, _ = _timed(write.encode, candidate, file, side)
        writes.append(1e3 * seconds / candidate.num_frames)
      progress(f"{kind}, built again", done, len(chosen))
  mean, scan_ms = float(np.mean(frames)), statistics.median(scans)
  write_ms = statistics.median(writes) if writes else math.nan
  return row(
    kind,
    cell(mean),
    cell(float(np.mean(sizes))),
    cell(scan_ms, 2),
    cell(write_ms, 2),
    cell(mean * (scan_ms + write_ms) / 1e3, 2),
  )


def _timed(call: Callable[..., Any], *args: Any) -> tuple[float, Any]:
  """CPU seconds of a call, and its result."""
  start = time.process_time()
  result = call(*args)
  return time.process_time() - start, result
