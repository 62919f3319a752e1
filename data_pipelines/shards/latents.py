"""From shards of pixels to shards of what frozen networks make of them.

Each record keeps the autoencoder's mean and log variance of every frame, so
that a training still samples, and chooses frames and rate; and CLIP's vector
of every frame, as any may be the first. Text stays text: its context is larger
than the clip's own H.264.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float16, UInt8

from data_pipelines.media import video
from data_pipelines.running.runner import Progress
from data_pipelines.shards import tfrecord
from data_pipelines.shards.dataset import (
  SCORES,
  Dataset,
  Kind,
  dataset_dir,
  describe,
  shard_path,
)
from i2vgen_jax import preprocessing
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import write_json

# What the latents of each kind of pixels are called.
LATENT_KINDS: dict[Kind, Kind] = {
  "text_video": "latent_video",
  "text_image": "latent_image",
}


class Encoded(NamedTuple):
  """What the networks make of some frames.

  Attributes:
    moments: mean, then log variance of the latents, on channels.
    image_embeds: CLIP's vectors; None without a tower.
  """

  moments: Float16[np.ndarray, "n h w c2"]
  image_embeds: Float16[np.ndarray, "n e"] | None


# (frames at the latents' size, their CLIP views) -> Encoded
Encoder = Callable[
  [UInt8[np.ndarray, "n H W 3"], Float[np.ndarray, "n s s 3"]], Encoded
]


def encode_dataset(
  source_dir: Path,
  output_dir: Path,
  encoder: Encoder,
  *,
  size: tuple[int, int],
  clip_size: int,
  identity: dict[str, Any],
  shards: slice = slice(None),
  progress: Progress | None = None,
) -> int:
  """Encodes the shards of a dataset, one by one; those that are there stay.

  Args:
    source_dir: `<data_dir>/text_video/1.0.0` or one of pictures.
    output_dir: data_dir of the latents; they go on where they were.
    encoder: what runs the networks.
    size: (width, height) in pixels of the frames that are encoded.
    clip_size: side of the CLIP view, in pixels.
    identity: of the networks; latents of others are refused.
    shards: which ones this process encodes.
    progress: called after every shard.

  Returns:
    How many examples there are, once all shards are; else 0.

  Raises:
    InputError: no dataset there, or latents of other networks.
  """
  pixels = Dataset([source_dir])
  kind, split = pixels.kind, pixels.split
  if kind not in LATENT_KINDS:
    raise InputError(f"{source_dir} holds {kind} already; name one of pixels")
  target, count = LATENT_KINDS[kind], pixels.num_shards
  directory = dataset_dir(output_dir, target)
  _check_identity(directory, identity | {"size": list(size)})
  todo = range(count)[shards]
  for done, number in enumerate(todo, 1):
    path = shard_path(output_dir, target, split, number, count)
    if not path.exists():
      tfrecord.write_shard(
        path,
        (
          _encoded(record, encoder, size, clip_size)
          for record in pixels.shard(number)
        ),
      )
    if progress:
      progress(f"{target} shards", done, len(todo))
  paths = [
    shard_path(output_dir, target, split, n, count) for n in range(count)
  ]
  if not all(map(Path.exists, paths)):
    return 0
  return describe(output_dir, target, split, count)


def _check_identity(directory: Path, identity: dict[str, Any]) -> None:
  path = directory / "encoder.json"
  if path.exists() and json.loads(path.read_text()) != identity:
    raise InputError(
      f"{directory} holds latents of other networks or another size; give "
      "another output"
    )
  directory.mkdir(parents=True, exist_ok=True)
  write_json(path, identity)


def _encoded(
  record: dict[str, Any],
  encoder: Encoder,
  size: tuple[int, int],
  clip_size: int,
) -> tfrecord.Record:
  frames, times = _frames(record)
  width, height = size
  views = [preprocessing.clip_view(frame, width, clip_size) for frame in frames]
  crops = [preprocessing.center_crop_wide(frame, *size) for frame in frames]
  moments, embeds = encoder(np.stack(crops), np.stack(views))
  _, h, w, c = moments.shape
  values = {
    name: record[name]
    for name in ("captions", "id", "source", "fps", "start", *SCORES)
    if name in record
  }
  values |= {
    "moments": moments.tobytes(),
    "image_embeds": b"" if embeds is None else embeds.tobytes(),
    "times": times.tolist(),
    "num_frames": len(frames),
    "width": width,
    "height": height,
    "latent_width": w,
    "latent_height": h,
    "latent_channels": c // 2,
  }
  data = tfrecord.encode_example(values)
  return tfrecord.Record(data, len(frames), width, height)


def _frames(
  record: dict[str, Any],
) -> tuple[UInt8[np.ndarray, "n H W 3"], Float[np.ndarray, "n"]]:
  name = record["id"].decode()
  if "image" in record:
    return preprocessing.load_picture(record["image"], name)[None], np.zeros(1)
  return video.decode_mp4(record["video"], name=name)


def moments_of(record: dict[str, Any]) -> Float16[np.ndarray, "n h w c2"]:
  """Mean and log variance of every frame of a record of latents."""
  shape = (
    record["num_frames"],
    record["latent_height"],
    record["latent_width"],
    2 * record["latent_channels"],
  )
  return np.frombuffer(record["moments"], np.float16).reshape(shape)


def embeds_of(record: dict[str, Any]) -> Float16[np.ndarray, "n e"] | None:
  """CLIP's vector of every frame, if there was a tower."""
  raw = record["image_embeds"]
  if not raw:
    return None
  return np.frombuffer(raw, np.float16).reshape(record["num_frames"], -1)


def identity_of(directory: Path) -> dict[str, Any]:
  """What encoded the latents of a dataset.

  Raises:
    InputError: they do not say.
  """
  try:
    return json.loads((directory / "encoder.json").read_text())
  except (OSError, ValueError) as error:
    raise InputError(
      f"{directory} does not say what encoded it ({error}); encode it again"
    ) from error


def batches(
  frames: UInt8[np.ndarray, "n H W 3"],
  views: Float[np.ndarray, "n s s 3"],
  size: int,
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
  """Pieces of one shape, the last one filled up with its last frame.

  Yields:
    Frames, views, and how many of them count.
  """
  for first in range(0, len(frames), size):
    some, few = frames[first : first + size], views[first : first + size]
    missing = size - len(some)
    fill = [(0, missing), (0, 0), (0, 0), (0, 0)]
    yield np.pad(some, fill, "edge"), np.pad(few, fill, "edge"), len(some)
