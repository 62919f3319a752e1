"""From lists of films and photos to datasets on disk.

Two rounds of tasks, each of which writes one folder:

    manifest -> listing: the rows in groups of files
             -> scan: shots, scores, what is wrong   (a task per group)
             -> select: limits, duplicates, order    (here, of a line a clip)
             -> write: decode, encode, one shard     (a task per shard)
             -> TFDS metadata, quarantine.jsonl, build.json

The bytes depend on neither kills nor runner.
"""

import dataclasses
import functools
import itertools
import math
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_pipelines.footage import groups, scanning, selection
from data_pipelines.footage.groups import Listing
from data_pipelines.footage.quarantine import Drop, read_drops
from data_pipelines.footage.scan import ScanSettings
from data_pipelines.footage.scores import load_hook
from data_pipelines.footage.selection import Limits
from data_pipelines.footage.writing import Shards
from data_pipelines.running import builds
from data_pipelines.running.builds import Built, Progress
from data_pipelines.running.runner import Runner, in_order, run_missing
from data_pipelines.shards.dataset import Kind
from i2vgen_jax.errors import InputError


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
  output_dir = Path(output_dir)
  if settings.scan.aesthetics:
    load_hook(settings.scan.aesthetics)
  listed = Listing(Path(manifest))
  identity = {
    "manifest": listed.digest,
    "settings": dataclasses.asdict(settings),
  }
  if done := builds.begin(output_dir, identity):
    return done
  with builds.alone(output_dir):
    return _build(listed, output_dir, identity, settings, run, progress)


def _build(
  listed: Listing,
  output_dir: Path,
  identity: dict,
  settings: Settings,
  run: Runner,
  progress: Progress | None,
) -> Built:
  work = builds.work_dir(output_dir)
  listed.spread(work)
  found = _scan(work, listed.groups, settings, run, progress)
  unselected = work / "unselected.jsonl"
  chosen = selection.select(found, settings.limits, settings.seed, unselected)
  drops = [
    groups.bad_rows(work),
    *(scanning.drops_of(work, number) for number in range(listed.groups)),
    unselected,
  ]
  if not any(map(len, chosen.values())):
    first = next(_read(drops), None)
    shutil.rmtree(work)
    if not any(output_dir.iterdir()):
      output_dir.rmdir()
    raise InputError(
      f"none of the {listed.rows} rows of {listed.manifest} is usable"
      + (f"; the first: {first.detail}" if first else "")
    )
  counts: dict[Kind, int] = {}
  for kind, places in chosen.items():
    if len(places):
      counts[kind] = math.ceil(len(places) / settings.shard_size)
      shards = Shards(
        kind,
        output_dir,
        settings.split,
        settings.shard_size,
        counts[kind],
        settings.short_side,
        settings.stall_seconds,
      )
      shards.plan(places)
      drops += _write(shards, run, progress)
  return builds.finish(
    output_dir, identity, settings.split, counts, _read(drops)
  )


def _scan(
  work: Path,
  groups: int,
  settings: Settings,
  run: Runner,
  progress: Progress | None,
) -> list[Path]:
  """Files of candidates, in the manifest's order."""
  task = functools.partial(
    scanning.scan_task, work, settings.scan, settings.stall_seconds
  )
  is_done = functools.partial(scanning.is_scanned, work)
  run_missing(run, task, is_done, groups, "scan", progress)
  return [scanning.candidates_of(work, number) for number in range(groups)]


def _write(
  shards: Shards, run: Runner, progress: Progress | None
) -> list[Path]:
  """All shards of a kind; returns what could not be written after all."""
  what = f"{shards.kind} shards"
  run_missing(
    run, shards.write, shards.is_written, shards.count, what, progress
  )
  return [shards.publish(number) for number in range(shards.count)]


def _read(files: Iterable[Path]) -> Iterator[Drop]:
  return itertools.chain.from_iterable(map(read_drops, files))
