"""Datasets of the object world and the camera world on disk."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from data_pipelines.media import pictures, video
from data_pipelines.procedural import camera, world
from data_pipelines.procedural.photographs import Photographs
from data_pipelines.running.build_directory import BuildDirectory, Built
from data_pipelines.running.runner import Progress
from data_pipelines.shards import tfrecord
from data_pipelines.shards.dataset import Example, Kind, shard_path
from i2vgen_jax.errors import InputError
from i2vgen_jax.preprocessing import center_crop_wide

World = Literal["objects", "camera"]
_KINDS: tuple[Kind, ...] = ("text_video", "text_image")
# x264 rate factor: small clips have edges that must stay sharp.
_CRF = 14


@dataclasses.dataclass(frozen=True)
class Clip:
  """A clip of either world, and what it is known to show.

  Attributes:
    frames: uint8[f h w 3].
    caption: a sentence that names the motion.
    still_caption: a sentence for single frames, without the motion.
    scene: parameters of the clip.
  """

  frames: UInt8[np.ndarray, "f h w 3"]
  caption: str
  still_caption: str
  scene: world.Scene | camera.Shot

  @property
  def motion(self) -> str:
    """Name of the motion, in `world.MOTIONS` or `camera.MOVES`."""
    scene = self.scene
    return scene.move if isinstance(scene, camera.Shot) else scene.motion


def numbered_clip(
  shows: World,
  photographs: Photographs | None,
  seed: int,
  number: int,
  split: world.Split,
  *,
  size: tuple[int, int],
  num_frames: int = 8,
) -> Clip:
  """Clip `number` of the endless sequence of a world, seed and split.

  Args:
    shows: objects that move, or a camera that moves over photographs.
    photographs: those of the split, without which there is no camera; every
      second object moves over one.
    seed: seed of all clips.
    number: number of the clip.
    split: side of the held-out combinations.
    size: (width, height) in pixels.
    num_frames: number of frames.
  """
  rng = world.rng_of(seed, number, split)
  if shows == "camera":
    shot = camera.sample_shot(rng)
    frames = camera.render(shot, photographs.draw(rng), size, num_frames)
    return Clip(frames, camera.caption(shot, rng), "a photograph", shot)
  over = photographs is not None and number % 2 == 1
  scene = world.sample_scene(rng, split, photograph=over)
  ground = center_crop_wide(photographs.draw(rng), *size) if over else None
  frames = world.render(scene, size, num_frames, ground)
  caption = world.caption(scene)
  return Clip(frames, caption, world.still_caption(scene), scene)


def build_procedural(
  output: str | Path,
  num_clips: int,
  split: world.Split,
  *,
  shows: World = "objects",
  photographs: str | Path | None = None,
  size: tuple[int, int] = (128, 128),
  num_frames: int = 8,
  fps: float | int = 8,
  seed: int = 0,
  shard_size: int = 512,
  progress: Progress | None = None,
) -> Built:
  """Writes a text_video and a text_image dataset of one world.

  Clip n is a function of (seed, n, split) and the photographs alone. Each
  picture is one frame of a clip, and its caption does not mention the motion.

  Args:
    output: data_dir to create.
    num_clips: number of clips, and of pictures.
    split: side of the held-out combinations and photographs.
    shows: objects that move, or a camera that moves over photographs.
    photographs: folder of pictures. Half of the objects move over them.
    size: (width, height) in pixels, even.
    num_frames: number of frames in each clip.
    fps: frames per second.
    seed: seed of all scenes.
    shard_size: number of examples in each shard.
    progress: called after every shard.

  Raises:
    InputError: nothing to write, an odd size, no photographs for the camera, or
      a directory that cannot be created.
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
  pool = None if photographs is None else Photographs(photographs, split)
  if shows == "camera" and pool is None:
    raise InputError(
      "a moving camera needs photographs; give a folder of pictures"
    )
  scenes = {"split": split, "size": size, "num_frames": num_frames, "fps": fps}
  source = {"shows": shows, "photographs": len(pool.paths) if pool else 0}
  counts = {"seed": seed, "shard_size": shard_size}
  settings = {"num_clips": num_clips} | source | scenes | counts
  directory = BuildDirectory(output, {"procedural": settings})
  if built := directory.begin():
    return built

  def examples(number: int) -> dict[Kind, Example]:
    clip = numbered_clip(
      shows, pool, seed, number, split, size=size, num_frames=num_frames
    )
    name = f"{shows}-{split}-{seed}-{number:06d}"
    mp4 = video.encode_mp4(clip.frames, fps, crf=_CRF, full_colour=True)
    still = clip.frames[np.random.default_rng(number).integers(num_frames)]
    jpeg = pictures.encode_jpeg(still)
    captions = [clip.caption], [clip.still_caption]
    return {
      "text_video": Example(mp4, captions[0], name, num_frames, *size, fps),
      "text_image": Example(jpeg, captions[1], name, 1, *size),
    }

  count = math.ceil(num_clips / shard_size)
  for number in range(count):
    clips = range(number * shard_size, num_clips)[:shard_size]
    paths = {
      k: shard_path(directory.path, k, split, number, count) for k in _KINDS
    }
    if not all(path.exists() for path in paths.values()):
      rows = [examples(clip) for clip in clips]
      for kind, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        tfrecord.write_shard(path, (row[kind].record(kind) for row in rows))
    if progress:
      progress("clips", clips.stop, num_clips)
  return directory.finish(split, dict.fromkeys(_KINDS, count))
