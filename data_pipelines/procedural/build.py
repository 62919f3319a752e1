"""Datasets of the procedural world on disk."""

import itertools
import math
from pathlib import Path

import numpy as np

from data_pipelines.media import pictures, video
from data_pipelines.procedural import world
from data_pipelines.running.build_directory import BuildDirectory, Built
from data_pipelines.running.runner import Progress
from data_pipelines.shards import tfrecord
from data_pipelines.shards.dataset import Example, Kind, shard_path
from i2vgen_jax.errors import InputError

_KINDS: tuple[Kind, ...] = ("text_video", "text_image")
# x264 rate factor: small clips have edges that must stay sharp.
_CRF = 14


def build_procedural(
  output: str | Path,
  num_clips: int,
  split: world.Split,
  *,
  size: tuple[int, int] = (128, 128),
  num_frames: int = 8,
  fps: float | int = 8,
  seed: int = 0,
  shard_size: int = 512,
  progress: Progress | None = None,
) -> Built:
  """Writes a text_video and a text_image dataset of the procedural world.

  Clip n is a function of (seed, n, split) alone. Each picture is one frame of
  a clip, and its caption does not mention the motion.

  Args:
    output: data_dir to create.
    num_clips: number of clips, and of pictures.
    split: side of the held-out combinations.
    size: (width, height) in pixels, even.
    num_frames: number of frames in each clip.
    fps: frames per second.
    seed: seed of all scenes.
    shard_size: number of examples in each shard.
    progress: called after every shard.

  Raises:
    InputError: nothing to write, an odd size, or a directory that cannot be
      created.
  """
  if num_clips < 1 or num_frames < 1:
    raise InputError(
      "num_clips and num_frames must be at least 1, got"
      f" {num_clips} and {num_frames}"
    )
  if size[0] % 2 or size[1] % 2:
    raise InputError(
      f"H.264 needs an even width and height, got {size[0]}x{size[1]}"
    )
  scenes = {"split": split, "size": size, "num_frames": num_frames, "fps": fps}
  counts = {"seed": seed, "shard_size": shard_size}
  settings = {"num_clips": num_clips} | scenes | counts
  directory = BuildDirectory(output, {"procedural": settings})
  if built := directory.begin():
    return built

  def example(kind: Kind, number: int) -> Example:
    scene = world.numbered_scene(seed, number, split)
    frames = world.render(scene, size, num_frames)
    name = f"procedural-{split}-{seed}-{number:06d}"
    if kind == "text_image":
      still = frames[np.random.default_rng(number).integers(num_frames)]
      caption = world.still_caption(scene)
      return Example(pictures.encode_jpeg(still), [caption], name, 1, *size)
    mp4 = video.encode_mp4(frames, fps, crf=_CRF, full_colour=True)
    caption = world.caption(scene)
    return Example(mp4, [caption], name, num_frames, *size, fps)

  count = math.ceil(num_clips / shard_size)
  for number, kind in itertools.product(range(count), _KINDS):
    clips = range(number * shard_size, num_clips)[:shard_size]
    path = shard_path(directory.path, kind, split, number, count)
    if not path.exists():
      path.parent.mkdir(parents=True, exist_ok=True)
      records = (example(kind, clip).record(kind) for clip in clips)
      tfrecord.write_shard(path, records)
    if progress:
      progress("clips", clips.stop, num_clips)
  return directory.finish(split, dict.fromkeys(_KINDS, count))
