"""Cost of building a dataset: some of its examples are built once more."""

import math
import statistics
import tempfile
import time
from pathlib import Path

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
  count = min(count, len(dataset))
  rng = np.random.default_rng(seed)
  chosen = rng.choice(len(dataset), count, replace=False).tolist()
  settings = ScanSettings(min_frames=1, max_seconds=math.inf)
  source = ManifestRow(1, file.name, str(file), ("",))
  frames, sizes, scans, writes = [], [], [], []
  with ProgressBar() as progress:
    for done, number in enumerate(chosen, 1):
      record = dataset[number]
      file.write_bytes(media_of(record))
      frames.append(record.get("num_frames", 1))
      sizes.append(len(media_of(record)) / 1e3)
      start = time.process_time()
      candidates, _ = scan.scan(source, file, settings)
      scans.append(1e3 * (time.process_time() - start) / frames[-1])
      for candidate in candidates[:1]:
        start = time.process_time()
        write.encode(candidate, file, min(record["width"], record["height"]))
        seconds = time.process_time() - start
        writes.append(1e3 * seconds / candidate.num_frames)
      progress(f"{kind}, built again", done, count)
  mean, scan_ms = float(np.mean(frames)), statistics.median(scans)
  write_ms = statistics.median(writes) if writes else math.nan
  total = mean * (scan_ms + write_ms) / 1e3
  cells = cell(mean), cell(float(np.mean(sizes)))
  return row(kind, *cells, *(cell(x, 2) for x in (scan_ms, write_ms, total)))
