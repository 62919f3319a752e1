"""From the procedural world, or from a list of files, to datasets on disk."""

import contextlib
import csv
import functools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines import images, procedural, records, video
from data_pipelines.dataset import Example, Kind, describe, shard_path
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
  examples = functools.partial(
    _procedural_example, split, seed, size, num_frames, fps
  )
  count = math.ceil(num_clips / shard_size)
  with _new_directory(Path(output_dir)) as data_dir:
    for shard in range(count):
      numbers = range(
        shard * shard_size, min((shard + 1) * shard_size, num_clips)
      )
      for kind in ("text_video", "text_image"):
        path = shard_path(data_dir, kind, split, shard, count)
        path.parent.mkdir(parents=True, exist_ok=True)
        records.write_shard(
          path, (examples(kind, n).record(kind) for n in numbers)
        )
      if progress:
        progress(numbers.stop, num_clips)
    for kind in ("text_video", "text_image"):
      describe(data_dir, kind, split, count)
  return Built(num_clips, num_clips, 0)


def _procedural_example(
  split: procedural.Split,
  seed: int,
  size: tuple[int, int],
  num_frames: int,
  fps: float | int,
  kind: Kind,
  number: int,
) -> Example:
  scene = procedural.numbered_scene(seed, number, split)
  frames = procedural.render(scene, size, num_frames)
  name = f"procedural-{split}-{seed}-{number:06d}"
  width, height = size
  if kind == "text_image":
    still = frames[np.random.default_rng(number).integers(num_frames)]
    text = procedural.still_caption(scene)
    return Example(images.encode_jpeg(still), [text], name, 1, width, height)
  mp4 = video.encode_mp4(frames, fps, crf=_PROCEDURAL_CRF, full_colour=True)
  text = procedural.caption(scene)
  return Example(mp4, [text], name, num_frames, width, height, fps)
