"""The second round of a build: each task writes the examples of one shard."""

import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipelines.footage.fetch import call_on_file
from data_pipelines.footage.quarantine import Drop, drop
from data_pipelines.footage.scan import CANDIDATES, DROPS, Candidate
from data_pipelines.footage.selection import read_candidate
from data_pipelines.footage.settings import FootageSettings
from data_pipelines.media import pictures, video
from data_pipelines.running.runner import FolderTasks
from data_pipelines.shards import tfrecord
from data_pipelines.shards.dataset import Example, Kind
from i2vgen_jax import preprocessing
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import write_json_lines

# x264 rate factor: visually lossless.
_CRF = 18
_SHARD = "shard.tfrecord"


def write_shard(
  kind: Kind,
  order: Path,
  scans: FolderTasks,
  settings: FootageSettings,
  number: int,
  folder: Path,
) -> None:
  """Writes one shard; see `running.runner.FolderTasks`.

  Args:
    kind: kind of the examples.
    order: .npy file with the selected candidates; see `selection.Places`.
    scans: tasks whose folders hold the candidates.
    settings: settings of the build.
    number: number of the shard.
    folder: folder for the shard, its index and its drops.
  """
  first = number * settings.shard_size
  places = np.load(order, mmap_mode="r")[first : first + settings.shard_size]
  drops: list[Drop] = []

  def records() -> Iterator[tfrecord.Record]:
    for group, offset in places.tolist():
      candidate = read_candidate(scans.folder(group) / CANDIDATES, offset)
      try:
        example = call_on_file(
          encode, candidate, settings.short_side, seconds=settings.stall_seconds
        )
        yield example.record(kind)
      except InputError as e:
        drops.append(drop(candidate, candidate.start, e))

  tfrecord.write_shard(folder / _SHARD, records())
  write_json_lines(folder / DROPS, (d._asdict() for d in drops))


def publish(folder: Path, shard: Path) -> None:
  """Moves the shard in the folder of a task to its final path."""
  shard.parent.mkdir(parents=True, exist_ok=True)
  # The shard last, because its index must be there as soon as it is.
  written = folder / _SHARD
  indices = tfrecord.sidecar(written), tfrecord.sidecar(shard)
  for source, target in (indices, (written, shard)):
    if source.exists():
      os.replace(source, target)


def encode(candidate: Candidate, file: Path, short_side: int) -> Example:
  """The example of a candidate, read from its file.

  Raises:
    InputError: the file has changed since it was scanned.
  """
  if candidate.kind == "text_image":
    image = pictures.shrink(preprocessing.load_picture(file), short_side)
    height, width = image.shape[:2]
    fps, media = 0.0, pictures.encode_jpeg(image)
  else:
    clip = _read_clip(candidate, file, short_side)
    _, image = first = next(clip)
    height, width = image.shape[:2]
    fps = (candidate.num_frames - 1) / (candidate.last - candidate.start)
    media = video.encode_stream(
      itertools.chain([first], clip), fps, (width, height), crf=_CRF
    )
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


def _read_clip(
  candidate: Candidate, file: Path, short_side: int
) -> Iterator[tuple[float, video.Frame]]:
  """Frames of even width and height, and their times from the first one."""
  count = 0
  # Times are exact: they are those of the scan.
  frames = video.stream(
    file,
    short_side=short_side,
    start=candidate.start,
    stop=math.nextafter(candidate.last, math.inf),
  )
  for time, frame in frames:
    count += 1
    height, width = (side // 2 * 2 for side in frame.shape[:2])
    yield time - candidate.start, frame[:height, :width]
  if count != candidate.num_frames:
    raise InputError(
      f"{candidate.path} has {count} frames where there were "
      f"{candidate.num_frames}; build again",
      "changed",
    )
