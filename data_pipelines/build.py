"""From the procedural world, or from a list of files, to datasets on disk."""

import contextlib
import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines import images, procedural, video
from data_pipelines.dataset import DatasetWriter
from i2vgen_jax.errors import InputError

Progress = Callable[[int, int], None]

# Visually lossless; the small procedural clips have edges that must stay sharp.
_PROCEDURAL_CRF, _FOOTAGE_CRF = 14, 18


class Built(NamedTuple):
  """What a build wrote and what it had to leave out."""

  num_videos: int
  num_images: int
  num_quarantined: int


@contextlib.contextmanager
def _new_directory(final: Path) -> Iterator[Path]:
  """A directory to fill that takes its final name only when all went well.

  Raises:
    InputError: the final directory exists already or cannot be made.
  """
  if final.exists():
    raise InputError(f"{final} exists already; remove it or give another name")
  unfinished = final.with_name(f"{final.name}.tmp-{os.getpid()}")
  try:
    unfinished.mkdir(parents=True)
  except OSError as error:
    raise InputError(
      f"cannot make {unfinished}: {error.strerror}; give a writable directory"
    ) from error
  try:
    yield unfinished
    unfinished.rename(final)
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)


def build_procedural(
  output_dir: str | Path,
  num_clips: int,
  split: procedural.Split,
  *,
  size: tuple[int, int] = (128, 128),
  num_frames: int = 8,
  fps: float | int = 8,
  seed: int = 0,
  shard_size: int = 512,
  progress: Progress | None = None,
) -> Built:
  """Writes a text_video and a text_image set of the procedural world.

  Clip n is a function of (seed, n, split) alone. The pictures are one frame
  of each clip, and their captions leave the motion out.

  Args:
    output_dir: data_dir to make.
    num_clips: clips, and pictures, to write.
    split: which side of the held-out combinations.
    size: (width, height) in pixels, even.
    num_frames: frames per clip.
    fps: frames per second.
    seed: of all scenes.
    shard_size: examples per shard.
    progress: called with (done, total) after every clip.

  Raises:
    InputError: nothing to write, or a directory that cannot be made.
  """
  if num_clips < 1 or num_frames < 1:
    raise InputError(
      f"cannot build {num_clips} clips of {num_frames} frames;"
      " both must be at least 1"
    )
  with _new_directory(Path(output_dir)) as data_dir:
    videos = DatasetWriter(data_dir, "text_video", split, shard_size)
    pictures = DatasetWriter(data_dir, "text_image", split, shard_size)
    for number in range(num_clips):
      scene = procedural.numbered_scene(seed, number, split)
      frames = procedural.render(scene, size, num_frames)
      name = f"procedural-{split}-{seed}-{number:06d}"
      mp4 = video.encode_mp4(frames, fps, crf=_PROCEDURAL_CRF, full_colour=True)
      text = procedural.caption(scene)
      videos.add_video(mp4, text, name, fps, num_frames)
      still = frames[np.random.default_rng(number).integers(num_frames)]
      text = procedural.still_caption(scene)
      pictures.add_image(images.encode_jpeg(still), text, name)
      if progress:
        progress(number + 1, num_clips)
    videos.close()
    pictures.close()
  return Built(num_clips, num_clips, 0)


def build_from_manifest(
  manifest: str | Path,
  output_dir: str | Path,
  *,
  split: str = "train",
  min_frames: int = 8,
  short_side: int = 720,
  shard_size: int = 256,
  progress: Progress | None = None,
) -> Built:
  """Writes the clips and photos that a list names, with their captions.

  A row has `path` (relative to the manifest) and `caption`. Clips keep their
  frame times, photos and clips larger than `short_side` are scaled down. A
  row that cannot be used becomes a line of `quarantine.jsonl` in the output,
  with the reason.

  Args:
    manifest: JSONL, or CSV with a header line.
    output_dir: data_dir to make.
    split: name of the only split.
    min_frames: clips with fewer frames go to quarantine.
    short_side: largest length of the shorter side, in pixels.
    shard_size: examples per shard.
    progress: called with (done, total) after every row.

  Raises:
    InputError: no such manifest, not one usable row, or a directory that
      cannot be made.
  """
  manifest = Path(manifest)
  rows = _rows(manifest)
  quarantined = []
  with _new_directory(Path(output_dir)) as data_dir:
    videos = DatasetWriter(data_dir, "text_video", split, shard_size)
    pictures = DatasetWriter(data_dir, "text_image", split, shard_size)
    for number, text in enumerate(rows, 1):
      row: dict = {}
      try:
        row = _parsed(text)
        path = manifest.parent / row["path"]
        if images.is_picture(path):
          _add_photo(pictures, path, row, short_side)
        else:
          _add_clip(videos, path, row, short_side, min_frames)
      except InputError as error:
        place = {"row": number, "path": row.get("path")}
        quarantined.append(place | {"reason": str(error)})
      if progress:
        progress(number, len(rows))
    if len(quarantined) == len(rows):
      first = f"; the first: {quarantined[0]['reason']}" if rows else ""
      raise InputError(
        f"none of the {len(rows)} rows of {manifest} is usable{first}"
      )
    videos.close()
    pictures.close()
    lines = "".join(json.dumps(entry) + "\n" for entry in quarantined)
    (data_dir / "quarantine.jsonl").write_text(lines)
  return Built(videos.num_examples, pictures.num_examples, len(quarantined))


def _rows(manifest: Path) -> list[str | dict]:
  """JSONL: lines still to be parsed; CSV: dicts."""
  try:
    text = manifest.read_text(encoding="utf-8-sig")
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"cannot read manifest {manifest}: {error}") from error
  lines = text.splitlines()
  if manifest.suffix == ".csv":
    return list(csv.DictReader(lines))
  if manifest.suffix == ".jsonl":
    return [line for line in lines if line.strip()]
  raise InputError(f"manifest {manifest} must be a .jsonl or .csv file")


def _parsed(row: str | dict) -> dict:
  try:
    row = json.loads(row) if isinstance(row, str) else row
  except ValueError as error:
    raise InputError(f"the row is not JSON: {error}") from error
  for key in ("path", "caption"):
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, str) or not value.strip():
      raise InputError(f"the row has no {key}; give it one")
  return row


def _add_photo(
  writer: DatasetWriter, path: Path, row: dict, short_side: int
) -> None:
  image = images.shrink(images.load_image(path), short_side)
  writer.add_image(images.encode_jpeg(image), row["caption"], row["path"])


def _add_clip(
  writer: DatasetWriter,
  path: Path,
  row: dict,
  short_side: int,
  min_frames: int,
) -> None:
  frames, times = video.decode_mp4(path, short_side=short_side)
  count, height, width, _ = frames.shape
  if count < max(min_frames, 2):
    raise InputError(
      f"video {path} has only {count} frames, fewer than {min_frames}"
    )
  if not (np.diff(times) > 0).all():
    raise InputError(f"the frame times of video {path} do not increase")
  frames = frames[:, : height // 2 * 2, : width // 2 * 2]
  fps = (count - 1) / times[-1]
  mp4 = video.encode_mp4(frames, fps, crf=_FOOTAGE_CRF, times=times)
  writer.add_video(mp4, row["caption"], row["path"], fps, count)
