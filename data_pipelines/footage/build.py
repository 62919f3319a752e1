"""Builds datasets from lists of videos and photos.

    manifest -> clips, in groups                  (rows of a clip are joined)
             -> scan: shots, scores, drops         (a task per group)
             -> select: limits, duplicates, order  (in this process)
             -> write: decode, encode, one shard   (a task per shard)
             -> TFDS metadata, quarantine.jsonl, build.json

The bytes depend neither on the runner nor on interruptions.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data_pipelines.footage.groups import Groups, bad_rows
from data_pipelines.footage.quarantine import Drop, read_drops
from data_pipelines.footage.scan import CANDIDATES, DROPS, scan_group
from data_pipelines.footage.scores import load_hook
from data_pipelines.footage.selection import select
from data_pipelines.footage.settings import FootageSettings
from data_pipelines.footage.write import publish, write_shard
from data_pipelines.running.build_directory import BuildDirectory, Built
from data_pipelines.running.runner import (
  FolderTasks,
  Progress,
  Runner,
  in_order,
)
from data_pipelines.shards.dataset import Kind, shard_path
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import replacing


def build_footage(
  manifest: str | Path,
  output_dir: str | Path,
  settings: FootageSettings,
  *,
  run: Runner = in_order,
  progress: Progress | None = None,
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
  identity = {
    "manifest": groups.digest,
    "settings": dataclasses.asdict(settings),
  }
  directory = BuildDirectory(output_dir, identity)
  if built := directory.begin():
    return built
  with directory.lock():
    return _build(groups, directory, settings, run, progress)


def _build(
  groups: Groups,
  directory: BuildDirectory,
  settings: FootageSettings,
  run: Runner,
  progress: Progress | None,
) -> Built:
  work = directory.work
  groups.write(work)
  fill = functools.partial(scan_group, work, settings)
  scans = FolderTasks(work / "scan", groups.count, fill)
  scanned = scans.run(run, "scan", progress)
  left_out = work / "unselected.jsonl"
  candidates = [folder / CANDIDATES for folder in scanned]
  selected = select(candidates, settings.limits, settings.seed, left_out)
  drops = [bad_rows(work), *(folder / DROPS for folder in scanned), left_out]
  if not any(map(len, selected.values())):
    first = next(_read(drops), None)
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
    fill = functools.partial(write_shard, kind, order, scans, settings)
    shards = FolderTasks(work / kind, count, fill)
    written = shards.run(run, f"{kind} shards", progress)
    for number, folder in enumerate(written):
      shard = shard_path(directory.path, kind, settings.split, number, count)
      publish(folder, shard)
      drops.append(folder / DROPS)
  return directory.finish(settings.split, counts, _read(drops))


def _read(files: Iterable[Path]) -> Iterator[Drop]:
  return itertools.chain.from_iterable(map(read_drops, files))
