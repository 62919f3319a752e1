"""The second round of a build: each task writes the examples of one shard."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from data_pipelines.footage import scanning, selection
from data_pipelines.footage.manifest import local_file
from data_pipelines.footage.quarantine import Drop, dropped
from data_pipelines.footage.scan import Candidate
from data_pipelines.media import pictures, video
from data_pipelines.running.builds import work_dir
from data_pipelines.running.guard import guarded
from data_pipelines.shards import tfrecord
from data_pipelines.shards.dataset import Example, Kind, shard_path
from i2vgen_jax import preprocessing
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import replacing, replacing_folder, write_json_lines

# Of x264: visually lossless.
_CRF = 18


class Shards(NamedTuple):
  """The shards of one kind that a build writes.

  Attributes:
    kind: of the examples.
    output_dir: data_dir of the build.
    split: name of the only split.
    size: examples of each shard but the last.
    count: of shards.
    short_side: larger frames are scaled down to this, in pixels.
    seconds: after which the work on one file is given up.
  """

  kind: Kind
  output_dir: Path
  split: str
  size: int
  count: int
  short_side: int
  seconds: float | int

  def plan(self, places: Int64[np.ndarray, "n 2"]) -> None:
    """Puts down what the shards shall hold; see `selection.Place`."""
    with replacing(self._order) as unfinished, unfinished.open("wb") as file:
      np.save(file, places)

  def write(self, number: int) -> None:
    """Writes one shard; it, its index and its drops appear together."""
    if self.is_written(number):
      return
    drops: list[Drop] = []
    with replacing_folder(self._result(number)) as folder:
      examples = self._examples(number, drops)
      tfrecord.write_shard(folder / self._path(number).name, examples)
      write_json_lines(folder / "drops.jsonl", (d._asdict() for d in drops))

  def is_written(self, number: int) -> bool:
    """Whether a shard is done."""
    return self._result(number).exists()

  def publish(self, number: int) -> Path:
    """Gives a shard that is done its final place; returns its drops."""
    path, folder = self._path(number), self._result(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The shard last: where it is, all of it is.
    for final in (tfrecord.sidecar(path), path):
      if (folder / final.name).exists():
        os.replace(folder / final.name, final)
    return folder / "drops.jsonl"

  def _examples(
    self, number: int, drops: list[Drop]
  ) -> Iterator[tfrecord.Record]:
    first = number * self.size
    places = np.load(self._order, mmap_mode="r")[first : first + self.size]
    for group, offset in places.tolist():
      path = scanning.candidates_of(work_dir(self.output_dir), group)
      candidate = selection.read_candidate(path, offset)
      try:
        with local_file(candidate.location, seconds=self.seconds) as file:
          example = guarded(
            encode, candidate, file, self.short_side, seconds=self.seconds
          )
        yield example.record(self.kind)
      except InputError as error:
        drops.append(
          dropped(candidate.row, candidate.path, candidate.start, error)
        )

  @property
  def _order(self) -> Path:
    return work_dir(self.output_dir) / f"order-{self.kind}.npy"

  def _result(self, number: int) -> Path:
    return work_dir(self.output_dir) / f"{self.kind}-{number:06d}"

  def _path(self, number: int) -> Path:
    return shard_path(
      self.output_dir, self.kind, self.split, number, self.count
    )


def encode(candidate: Candidate, file: Path, short_side: int) -> Example:
  """The example of a candidate, from the file it was found in.

  Raises:
    InputError: the file is no longer the same.
  """
  if candidate.kind == "text_image":
    image = pictures.shrink(preprocessing.load_picture(file), short_side)
    media, fps = pictures.encode_jpeg(image), 0.0
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
    raise InputError(
      f"{candidate.path} has {len(decoded)} frames where there were "
      f"{candidate.num_frames}; build again",
      "changed",
    )
  times, frames = zip(*decoded, strict=True)
  height, width = (side // 2 * 2 for side in frames[0].shape[:2])
  even = np.stack([frame[:height, :width] for frame in frames])
  at = np.array(times) - times[0]
  fps = (len(at) - 1) / float(at[-1])
  mp4 = video.encode_mp4(even, fps, crf=_CRF, times=at)
  return mp4, fps, width, height
