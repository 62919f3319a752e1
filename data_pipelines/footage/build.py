"""Builds datasets from lists of videos and photos.

    manifest -> clips, in groups                  (rows of a clip are joined)
             -> scan: shots, scores, drops         (a task per group)
             -> select: limits, duplicates, order  (in this process)
             -> write: decode, encode, one shard   (a task per shard)
             -> TFDS metadata, quarantine.jsonl, build.json

The bytes depend neither on the runner nor on interruptions.
"""

import functools
import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data_pipelines.footage.clips import Candidate, encode, scan
from data_pipelines.footage.fetch import local_file
from data_pipelines.footage.groups import Groups, bad_rows, read_group
from data_pipelines.footage.quarantine import Drop, read_drops, write_drops
from data_pipelines.footage.scores import load_hook
from data_pipelines.footage.selection import read_candidate, select
from data_pipelines.footage.settings import FootageSettings
from data_pipelines.running import runner
from data_pipelines.running.build_directory import BuildDirectory, Built
from data_pipelines.running.guard import guarded
from data_pipelines.running.runner import FolderTasks
from data_pipelines.shards import tfrecord
from data_pipelines.shards.dataset import Kind, shard_path
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import replacing, write_json_lines

# Files in the folder of a task.
_CANDIDATES, _SHARD = "candidates.jsonl", "shard.tfrecord"
_DROPS = "drops.jsonl"


def build_footage(
  manifest: str | Path,
  output_dir: str | Path,
  settings: FootageSettings,
  *,
  run: runner.Runner = runner.in_order,
  progress: runner.Progress | None = None,
) -> Built:
  """Writes the single shots and photos of a manifest as datasets.

  Clips keep their native frame times. Whatever cannot be used becomes a line
  of `quarantine.jsonl` with its reason.

  Args:
    manifest: list or folder; see `manifest.read_manifest`.
    output_dir: data_dir to create; an unfinished build of the same inputs is
      resumed, a finished one is left unchanged.
    settings: settings of the build.
    run: runner of the tasks; see `running.runner`.
    progress: called as files and shards are done, in this process.

  Raises:
    InputError: no such manifest or user function, no usable row, or a
      directory that cannot be created or holds another build.
  """
  if settings.scan.aesthetics:
    load_hook(settings.scan.aesthetics)
  groups = Groups(Path(manifest))
  identity = {"manifest": groups.digest, "settings": asdict(settings)}
  directory = BuildDirectory(output_dir, identity)
  if built := directory.begin():
    return built
  with directory.lock():
    return _build(groups, directory, settings, run, progress)


def _build(
  groups: Groups,
  directory: BuildDirectory,
  settings: FootageSettings,
  run: runner.Runner,
  progress: runner.Progress | None,
) -> Built:
  work = directory.work
  groups.write(work)
  fill = functools.partial(_scan_group, work, settings)
  scans = FolderTasks(work / "scan", groups.count, fill)
  scanned = scans.run(run, "scan", progress)
  left_out = work / "unselected.jsonl"
  candidates = [folder / _CANDIDATES for folder in scanned]
  selected = select(candidates, settings.limits, settings.seed, left_out)
  files = [bad_rows(work), *(folder / _DROPS for folder in scanned), left_out]
  # Read at the end, with the files that the shards add.
  drops = itertools.chain.from_iterable(map(read_drops, files))
  if not any(map(len, selected.values())):
    first = next(drops, None)
    directory.abandon()
    raise InputError(
      f"none of the {groups.num_rows} rows of {groups.manifest} is usable"
      + (f"; the first: {first.detail}" if first else "")
    )
  counts: dict[Kind, int] = {}
  for kind, places in selected.items():
    if not len(places):
      continue
    order = work / f"order-{kind}.npy"
    with replacing(order) as temporary, temporary.open("wb") as file:
      np.save(file, places)
    counts[kind] = count = math.ceil(len(places) / settings.shard_size)
    fill = functools.partial(_write_shard, kind, order, scans, settings)
    shards = FolderTasks(work / kind, count, fill)
    folders = shards.run(run, f"{kind} shards", progress)
    for number, folder in enumerate(folders):
      shard = shard_path(directory.path, kind, settings.split, number, count)
      _publish(folder / _SHARD, shard)
      files.append(folder / _DROPS)
  return directory.finish(settings.split, counts, drops)


# What tasks do; see `FolderTasks.fill`. A group or a shard has a number, and
# its result goes into a folder.


def _scan_group(
  work: Path, settings: FootageSettings, number: int, folder: Path
) -> None:
  """Writes the candidates in the files of a group, and the drops."""
  candidates: list[Candidate] = []
  drops: list[Drop] = []
  limit = settings.stall_seconds
  for row in read_group(work, number):
    try:
      with local_file(row.location, seconds=limit) as file:
        good, bad = guarded(scan, row, file, settings.scan, seconds=limit)
      candidates += good
      drops += bad
    except InputError as e:
      drops.append(Drop.of(row, None, e))
  write_json_lines(folder / _CANDIDATES, candidates)
  write_drops(folder / _DROPS, drops)


def _write_shard(
  kind: Kind,
  order: Path,
  scans: FolderTasks,
  settings: FootageSettings,
  number: int,
  folder: Path,
) -> None:
  """Writes a shard, its index and the drops.

  Args:
    kind: kind of the examples.
    order: .npy file with the selected candidates; see `selection.Places`.
    scans: tasks whose folders hold the candidates.
    settings: settings of the build.
    number: number of the shard.
    folder: folder to write to.
  """
  first = number * settings.shard_size
  places = np.load(order, mmap_mode="r")[first : first + settings.shard_size]
  limit, side = settings.stall_seconds, settings.short_side
  drops: list[Drop] = []

  def records() -> Iterator[tfrecord.Record]:
    for group, offset in places.tolist():
      candidate = read_candidate(scans.folder(group) / _CANDIDATES, offset)
      source = candidate.source
      try:
        with local_file(source.location, seconds=limit) as file:
          example = guarded(encode, candidate, file, side, seconds=limit)
        yield example.record(kind)
      except InputError as e:
        drops.append(Drop.of(source, candidate.start, e))

  tfrecord.write_shard(folder / _SHARD, records())
  write_drops(folder / _DROPS, drops)


def _publish(written: Path, shard: Path) -> None:
  """Moves a shard and its index to their final paths."""
  shard.parent.mkdir(parents=True, exist_ok=True)
  # The shard last, because its index must be there as soon as it is.
  indices = tfrecord.sidecar(written), tfrecord.sidecar(shard)
  for source, target in (indices, (written, shard)):
    if source.exists():
      os.replace(source, target)
