"""Encodes shards of pixels to shards of latents and CLIP embeddings.

Each record keeps the autoencoder's mean and log variance of every frame, so
that training still samples latents, frames and frame rates, and the CLIP
embedding of every frame, since any may be the first. Captions stay text: their
embedding is larger than the clip's own H.264.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float16, UInt8

from data_pipelines.running.runner import Progress
from data_pipelines.shards import tfrecord
from data_pipelines.shards.dataset import (
  Dataset,
  Kind,
  dataset_dir,
  describe,
  make_record,
  shard_path,
  stream_frames,
)
from i2vgen_jax import preprocessing
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import read_json, write_json

# Kind of pixels -> kind of their latents.
LATENT_KINDS: dict[Kind, Kind] = {
  "text_video": "latent_video",
  "text_image": "latent_image",
}


class Encoded(NamedTuple):
  """Outputs of the networks for some frames.

  Attributes:
    moments: mean and log variance of the latents, concatenated on channels.
    image_embeds: CLIP embeddings; None without an image encoder.
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
  """Encodes the shards of a dataset one by one, skipping those that exist.

  Args:
    source_dir: `<data_dir>/text_video/1.0.0` or `<data_dir>/text_image/1.0.0`.
    output_dir: data_dir of the latents; an interrupted one is continued.
    encoder: runs the networks.
    size: (width, height) in pixels at which frames are encoded.
    clip_size: side of the CLIP view, in pixels.
    identity: identifies the networks; latents of others are refused.
    shards: the shards that this process encodes.
    progress: called after every shard.

  Returns:
    Number of examples once all shards exist; else 0.

  Raises:
    InputError: There is no dataset of pixels, or `output_dir` holds latents of
      other networks or another size.
  """
  pixels = Dataset([source_dir])
  if pixels.kind not in LATENT_KINDS:
    raise InputError(
      f"{source_dir} holds {pixels.kind} already; give a dataset of pixels"
    )
  kind, split, count = (
    LATENT_KINDS[pixels.kind],
    pixels.split,
    pixels.num_shards,
  )
  directory = dataset_dir(output_dir, kind)
  _check_identity(directory, identity | {"size": list(size)})
  paths = [
    shard_path(output_dir, kind, split, number, count)
    for number in range(count)
  ]
  todo = range(count)[shards]
  for done, number in enumerate(todo, 1):
    if not paths[number].exists():
      records = pixels.shard(number)
      encoded = (_encode(kind, r, encoder, size, clip_size) for r in records)
      tfrecord.write_shard(paths[number], encoded)
    if progress:
      progress(f"{kind} shards", done, len(todo))
  if not all(path.exists() for path in paths):
    return 0
  return describe(output_dir, kind, split, count)


def _check_identity(directory: Path, identity: dict[str, Any]) -> None:
  path = directory / "encoder.json"
  if path.exists() and identity_of(directory) != identity:
    raise InputError(
      f"{directory} holds latents of other networks or another size; give "
      "another output"
    )
  directory.mkdir(parents=True, exist_ok=True)
  write_json(path, identity)


def _encode(
  kind: Kind,
  record: dict[str, Any],
  encoder: Encoder,
  size: tuple[int, int],
  clip_size: int,
) -> tfrecord.Record:
  """A record of latents for a record of pixels."""
  width, height = size
  times, views, crops = [], [], []
  # One by one, because a clip may not fit into memory at its full size.
  for time, frame in stream_frames(record):
    times.append(time)
    views.append(preprocessing.clip_view(frame, width, clip_size))
    crops.append(preprocessing.center_crop_wide(frame, *size))
  moments, embeds = encoder(np.stack(crops), np.stack(views))
  _, h, w, c = moments.shape
  encoded = {
    "moments": moments.tobytes(),
    "image_embeds": b"" if embeds is None else embeds.tobytes(),
    "times": times,
    "num_frames": len(times),
    "width": width,
    "height": height,
    "latent_width": w,
    "latent_height": h,
    "latent_channels": c // 2,
  }
  return make_record(kind, record | encoded)


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
  """CLIP embedding of every frame; None without an image encoder."""
  raw = record["image_embeds"]
  if not raw:
    return None
  return np.frombuffer(raw, np.float16).reshape(record["num_frames"], -1)


def identity_of(directory: Path) -> dict[str, Any]:
  """The networks and the size that a dataset of latents was encoded with.

  Raises:
    InputError: The file that records them is missing or damaged.
  """
  return read_json(directory / "encoder.json", advice="encode it again")
