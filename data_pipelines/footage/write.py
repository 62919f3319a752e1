"""The second round of a build: each task writes the examples of one shard."""

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
    frames, fps, media = image[None], 0.0, pictures.encode_jpeg(image)
  else:
    frames, times = _decode_clip(candidate, file, short_side)
    fps = (len(times) - 1) / float(times[-1])
    media = video.encode_mp4(frames, fps, crf=_CRF, times=times)
  height, width = frames.shape[1:3]
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


def _decode_clip(
  candidate: Candidate, file: Path, short_side: int
) -> tuple[video.Frames, video.Times]:
  """Frames of even width and height, and their times from the first one."""
  # More than times are rounded by, less than frames are apart.
  slack = 1e-3
  start, stop = max(candidate.start - slack, 0), candidate.last + slack
  decoded = list(
    video.stream(file, short_side=short_side, start=start, stop=stop)
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
  return even, np.array(times) - times[0]
