"""The second round of a build: each task writes the examples of one shard."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipelines.footage.fetch import local_file
from data_pipelines.footage.quarantine import Drop, drop
from data_pipelines.footage.scan import CANDIDATES, DROPS, Candidate
from data_pipelines.footage.selection import read_candidate
from data_pipelines.footage.settings import FootageSettings
from data_pipelines.media import pictures, video
from data_pipelines.running.guard import guarded
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
        yield _example(candidate, settings).record(kind)
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


def _example(candidate: Candidate, settings: FootageSettings) -> Example:
  seconds = settings.stall_seconds
  with local_file(candidate.location, seconds=seconds) as file:
    return guarded(
      encode, candidate, file, settings.short_side, seconds=seconds
    )


def encode(candidate: Candidate, file: Path, short_side: int) -> Example:
  """The example of a candidate, read from its file.

  Raises:
    InputError: the file has changed since it was scanned.
  """
  if candidate.kind == "text_image":
    image = pictures.shrink(preprocessing.load_picture(file), short_side)
    media, fps = pictures.encode_jpeg(image), 0.0
    height, width, _ = image.shape
  else:
    media, fps, width, height = _encode_clip(candidate, file, short_side)
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


def _encode_clip(
  candidate: Candidate, file: Path, short_side: int
) -> tuple[bytes, float, int, int]:
  """mp4, mean frame rate, width and height."""
  # More than times are rounded by, less than frames are apart.
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
    raise InputError(
      f"{candidate.path} has {len(decoded)} frames where there were "
      f"{candidate.num_frames}; build again",
      "changed",
    )
  times, frames = zip(*decoded, strict=True)
  height, width = (side // 2 * 2 for side in frames[0].shape[:2])
  even = np.stack([frame[:height, :width] for frame in frames])
  times = np.array(times) - times[0]
  fps = (len(times) - 1) / float(times[-1])
  mp4 = video.encode_mp4(even, fps, crf=_CRF, times=times)
  return mp4, fps, width, height
