"""Pictures with prompts, and clips of datasets, as inputs of an evaluation."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.footage.manifest import read_manifest
from data_pipelines.footage.quarantine import Drop
from data_pipelines.loading.buckets import Bucket
from data_pipelines.shards.dataset import Dataset, load_frames, load_to_cover
from data_pipelines.shards.tfrecord import Entry
from i2vgen_jax import preprocessing
from i2vgen_jax.errors import InputError
from i2vgen_jax.stage import Sampling
from launch.evaluation.generation import Given
from launch.progress import note


class Inputs(NamedTuple):
  """What clips can be made of.

  Attributes:
    count: number of inputs.
    read: returns input number n, with the real clip as the stage with these
      settings would see it: of its size, of its number of frames, and nearly of
      its frame rate.
  """

  count: int
  read: Callable[[int, Sampling], Given]

  def drawn(self, count: int, seed: int) -> "Inputs":
    """At most `count` of them, drawn at random, in their order."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(self.count, min(count, self.count), replace=False)
    chosen = np.sort(chosen).tolist()
    return Inputs(len(chosen), lambda n, s: self.read(chosen[n], s))


def of_pictures(path: Path) -> Inputs:
  """Pictures and the first caption of each.

  Args:
    path: a folder with NAME.jpg and NAME.txt, or a list; see `read_manifest`.

  Raises:
    InputError: there is no picture, a row is unusable, or it is a video.
  """
  rows = []
  for row in read_manifest(path):
    if isinstance(row, Drop):
      name = f" ({row.path})" if row.path else ""
      raise InputError(
        f"row {row.row}{name} of {path} cannot be used: {row.detail}; correct "
        "or remove it"
      )
    if not row.is_picture:
      raise InputError(
        f"{row.path} in {path} is not a picture; build a dataset of the videos "
        "with i2vgen data build manifest, and evaluate on that"
      )
    rows.append(row)
  if not rows:
    raise InputError(f"no pictures in {path}; give NAME.jpg with NAME.txt")

  def read(number: int, _: Sampling) -> Given:
    row = rows[number]
    picture = preprocessing.load_picture(row.location)
    return Given(row.path, row.captions[0], picture)

  return Inputs(len(rows), read)


def of_dataset(directory: Path, num_frames: int, seed: int) -> Inputs:
  """Records, with their first captions and, for clips, the real frames.

  Args:
    directory: DATA_DIR/text_video/1.0.0 or DATA_DIR/text_image/1.0.0.
    num_frames: number of frames that a clip must have.
    seed: draws where in a clip the frames are taken.

  Raises:
    InputError: there is no such dataset, it holds latents, or all of its clips
      are too short.
  """
  records = Dataset([directory])
  if records.kind.startswith("latent"):
    raise InputError(f"{directory} has latents; give the dataset of pixels")
  if records.kind == "text_video":
    total, need = len(records), num_frames
    records = records.where(lambda rows: Entry(*rows.T).num_frames >= need)
    if not len(records):
      raise InputError(
        f"none of the {total} clips of {directory} has {need} frames; set "
        "--num-frames, or give longer clips"
      )
    if short := total - len(records):
      note(f"{short} of {total} clips have fewer than {need} frames: left out")

  def read(number: int, sampling: Sampling) -> Given:
    record = records[number]
    name, prompt = record["id"].decode(), record["captions"][0].decode()
    if records.kind == "text_image":
      [picture], _ = load_frames(record)
      return Given(name, prompt, picture)
    bucket = Bucket(sampling.num_frames, sampling.fps, 1, sampling.size)
    rng, fps = np.random.default_rng([seed, number]), record["fps"]
    window = bucket.draw_window(record["num_frames"], fps, rng)
    nearest = functools.partial(window.nearest_frames, native_fps=fps)
    until = window.seconds(fps)[-1]
    frames, picture = load_to_cover(record, nearest, bucket.size, until)
    crop = preprocessing.center_crop_wide
    real = np.stack([crop(frame, *bucket.size) for frame in frames])
    return Given(name, prompt, picture, real, window.fps)

  return Inputs(len(records), read)
