"""From lists of films and photos to datasets on disk.

Two rounds of tasks, each of which writes one file or shard:

    manifest -> scan: shots, scores, what is wrong   (a task per 16 files)
             -> select: limits, duplicates, order    (here, of a line a clip)
             -> write: decode, encode, one shard     (a task per shard)
             -> TFDS metadata, quarantine.jsonl, build.json

The bytes depend on neither kills nor runner.
"""

import dataclasses
import functools
import hashlib
import json
import math
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data_pipelines import build, images, records, scan, selection, video
from data_pipelines.build import Built, Progress
from data_pipelines.dataset import Example, Kind, shard_path
from data_pipelines.guard import guarded
from data_pipelines.json_files import write_json, write_rows
from data_pipelines.manifest import Source, local_file, read_manifest
from data_pipelines.quarantine import Drop, Unusable, read_drops
from data_pipelines.runner import Runner, in_order
from data_pipelines.scan import Candidate, ScanSettings
from data_pipelines.scores import load_hook
from data_pipelines.selection import Limits
from i2vgen_jax.errors import InputError

# Files of one task of the scan; fewer where there are few.
GROUP, _TASKS = 16, 64
_WATCH_SECONDS = 1.0
# Of x264: visually lossless.
_CRF = 18


@dataclasses.dataclass(frozen=True)
class Settings:
  """What decides every byte of a footage build, beside its manifest.

  Attributes:
    split: name of the only split.
    scan: what counts as a clip.
    limits: bounds on the scores.
    short_side: larger frames are scaled down to this, in pixels.
    shard_size: examples per shard.
    seed: of the order.
    stall_seconds: after which the work on one file is given up.
  """

  split: str = "train"
  scan: ScanSettings = dataclasses.field(default_factory=ScanSettings)
  limits: Limits = dataclasses.field(default_factory=Limits)
  short_side: int = 720
  shard_size: int = 256
  seed: int = 0
  stall_seconds: float | int = 3600


def build_footage(
  manifest: str | Path,
  output_dir: str | Path,
  settings: Settings,
  *,
  run: Runner = in_order,
  progress: Progress | None = None,
) -> Built:
  """Writes the single shots and photos that a list names.

  Clips keep their native frame times. Whatever cannot be used becomes a line
  of `quarantine.jsonl`, with its reason.

  Args:
    manifest: see `read_manifest`.
    output_dir: data_dir to make; an unfinished one of the same build goes on,
      a finished one is left as it is.
    settings: see above.
    run: how the tasks are run; see `runner`.
    progress: called as files and shards are done, from this process.

  Raises:
    InputError: no such manifest or function of the user's, not one usable
      row, or a directory that cannot be made or holds another build.
  """
  manifest, output_dir = Path(manifest), Path(output_dir)
  rows = list(read_manifest(manifest))
  if settings.scan.aesthetics:
    load_hook(settings.scan.aesthetics)
  identity = {
    "manifest": _digest(rows),
    "settings": dataclasses.asdict(settings),
  }
  if done := build.begin(output_dir, identity):
    return done
  work = build.work_dir(output_dir)
  found = _scan(rows, work, settings, run, progress)
  chosen = selection.select(found, settings.limits, settings.seed)
  drops = [row for row in rows if isinstance(row, Drop)]
  for path in found:
    drops += read_drops(_drops_of(path))
  drops += chosen.drops
  if not any(map(len, chosen.places.values())):
    shutil.rmtree(work)
    if not any(output_dir.iterdir()):
      output_dir.rmdir()
    first = f"; the first: {drops[0].detail}" if drops else ""
    raise InputError(
      f"none of the {len(rows)} rows of {manifest} is usable{first}"
    )
  counts = {}
  for kind, places in chosen.places.items():
    if len(places):
      counts[kind] = math.ceil(len(places) / settings.shard_size)
      drops += _write(kind, found, places, output_dir, settings, run, progress)
  return build.finish(output_dir, identity, settings.split, counts, drops)


def _scan(
  rows: list[Source | Drop],
  work: Path,
  settings: Settings,
  run: Runner,
  progress: Progress | None,
) -> list[Path]:
  """Files of candidates, in the manifest's order."""
  sources = [row for row in rows if isinstance(row, Source)]
  size = min(max(len(sources) // _TASKS, 1), GROUP)
  count = math.ceil(len(sources) / size)
  paths = [work / f"scan-{number:06d}.jsonl" for number in range(count)]
  for number, path in enumerate(paths):
    listing = _listing_of(path)
    if not listing.exists():
      group = sources[number * size : (number + 1) * size]
      write_json(listing, [row._asdict() for row in group])
  task = functools.partial(_scan_task, work, settings)
  _run(run, task, paths, "scan", progress)
  return paths


def _scan_task(work: Path, settings: Settings, number: int) -> None:
  path = work / f"scan-{number:06d}.jsonl"
  if path.exists():
    return
  candidates: list[Candidate] = []
  drops: list[Drop] = []
  for values in json.loads(_listing_of(path).read_text()):
    source = Source(**values | {"captions": tuple(values["captions"])})
    try:
      with local_file(source.location) as file:
        good, bad = guarded(
          scan.scan, source, file, settings.scan, seconds=settings.stall_seconds
        )
      candidates += good
      drops += bad
    except InputError as error:
      drops.append(_drop_of(source.row, source.path, None, error))
  write_rows(_drops_of(path), drops)
  write_rows(path, candidates)


def _write(
  kind: Kind,
  found: list[Path],
  places: np.ndarray,
  output_dir: Path,
  settings: Settings,
  run: Runner,
  progress: Progress | None,
) -> list[Drop]:
  """All shards of a kind; returns what could not be written after all."""
  order = build.work_dir(output_dir) / f"order-{kind}.npy"
  np.save(order, places)
  count = math.ceil(len(places) / settings.shard_size)
  paths = [
    shard_path(output_dir, kind, settings.split, number, count)
    for number in range(count)
  ]
  paths[0].parent.mkdir(parents=True, exist_ok=True)
  task = functools.partial(
    _shard_task, kind, order, found, output_dir, settings, count
  )
  _run(run, task, paths, f"{kind} shards", progress)
  drops = (_late_drops(output_dir, kind, n) for n in range(count))
  return [drop for path in drops for drop in read_drops(path)]


def _shard_task(
  kind: Kind,
  order: Path,
  found: list[Path],
  output_dir: Path,
  settings: Settings,
  count: int,
  number: int,
) -> None:
  path = shard_path(output_dir, kind, settings.split, number, count)
  if path.exists():
    return
  drops: list[Drop] = []

  def written() -> Iterator[records.Record]:
    first = number * settings.shard_size
    places = np.load(order, mmap_mode="r")[first : first + settings.shard_size]
    for file, offset in places.tolist():
      candidate = selection.read_candidate(found[file], offset)
      try:
        with local_file(candidate.location) as media:
          yield guarded(
            encode, candidate, media, settings.short_side,
            seconds=settings.stall_seconds,
          ).record(kind)  # fmt: skip
      except InputError as error:
        drops.append(
          _drop_of(candidate.row, candidate.path, candidate.start, error)
        )
    # Before the shard, whose presence says that all of it is done.
    write_rows(_late_drops(output_dir, kind, number), drops)

  records.write_shard(path, written())


def encode(candidate: Candidate, file: Path, short_side: int) -> Example:
  """The example of a candidate, from the file it was found in.

  Raises:
    Unusable: the file is no longer the same.
  """
  if candidate.kind == "text_image":
    image = images.shrink(images.load_image(file), short_side)
    media, fps = images.encode_jpeg(image), 0.0
    height, width, _ = image.shape
  else:
    media, fps, width, height = _clip(candidate, file, short_side)
  return Example(
    media=media,
    captions=candidate.captions,
    id=candidate.id,
    num_frames=candidate.num_frames,
    width=width,
    height=height,
    fps=fps,
    source=candidate.path,
    start=candidate.start,
    scores=candidate.scores,
  )


def _clip(
  candidate: Candidate, file: Path, short_side: int
) -> tuple[bytes, float, int, int]:
  """mp4, mean rate, width and height."""
  # Halfway between two frames of any usual rate, whatever the rounding.
  slack = 1e-3
  decoded = list(
    video.stream(
      file,
      short_side=short_side,
      start=max(candidate.start - slack, 0),
      stop=candidate.last + slack,
    )
  )
  if len(decoded) != candidate.num_frames:
    raise Unusable(
      "changed",
      f"{candidate.path} has {len(decoded)} frames where there were "
      f"{candidate.num_frames}; build again",
    )
  times, frames = zip(*decoded, strict=True)
  height, width = (side // 2 * 2 for side in frames[0].shape[:2])
  even = np.stack([frame[:height, :width] for frame in frames])
  at = np.array(times) - times[0]
  fps = (len(at) - 1) / float(at[-1])
  mp4 = video.encode_mp4(even, fps, crf=_CRF, times=at)
  return mp4, fps, width, height


def _run(
  run: Runner,
  task: Callable[[int], None],
  results: list[Path],
  what: str,
  progress: Progress | None,
) -> None:
  """Runs the tasks whose results are missing, and counts those that appear."""
  missing = [n for n, path in enumerate(results) if not path.exists()]
  over = threading.Event()

  def watch() -> None:
    while not over.wait(_WATCH_SECONDS):
      progress(what, sum(map(Path.exists, results)), len(results))

  watcher = threading.Thread(target=watch, daemon=True)
  if progress:
    watcher.start()
  try:
    run(task, missing)
  finally:
    over.set()
  if progress:
    watcher.join()
    progress(what, len(results), len(results))


def _drop_of(
  row: int, path: str, start: float | None, error: InputError
) -> Drop:
  reason = error.reason if isinstance(error, Unusable) else "damaged"
  return Drop(row, path, start, reason, str(error))


def _listing_of(path: Path) -> Path:
  return path.with_name(path.name.replace("scan", "list"))


def _drops_of(path: Path) -> Path:
  return path.with_name(path.name.replace("scan", "drop"))


def _late_drops(output_dir: Path, kind: Kind, number: int) -> Path:
  return build.work_dir(output_dir) / f"late-{kind}-{number:05d}.jsonl"


def _digest(rows: list[Source | Drop]) -> str:
  # Where the files lie on this machine changes nothing that is written.
  told = [row._asdict() | {"location": None} for row in rows]
  text = json.dumps(told)
  return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
