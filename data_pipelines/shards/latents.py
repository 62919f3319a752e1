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
from jaxtyping import Float16

from data_pipelines.media import video
from data_pipelines.running.runner import Progress
from data_pipelines.shards import dataset, tfrecord
from data_pipelines.shards.dataset import Kind
from i2vgen_jax import preprocessing
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import read_json, write_json


class Encoded(NamedTuple):
  """Outputs of the networks for some frames.

  Attributes:
    moments: mean and log variance of the latents, concatenated on channels.
    image_embeds: CLIP embeddings; None without an image encoder.
  """

  moments: Float16[np.ndarray, "n h w c2"]
  image_embeds: Float16[np.ndarray, "n e"] | None


# (uint8[n H W 3] frames at the latents' size, float32[n s s 3] CLIP views of
# the same frames) -> Encoded
Encoder = Callable[[np.ndarray, np.ndarray], Encoded]


def encode_dataset(
  source: Path,
  output: Path,
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
    source: `<data_dir>/text_video/1.0.0` or `<data_dir>/text_image/1.0.0`.
    output: data_dir of the latents; an interrupted one is continued.
    encoder: runs the networks.
    size: (width, height) in pixels at which frames are encoded.
    clip_size: side of the CLIP view, in pixels.
    identity: identifies the networks; latents of others are refused.
    shards: the shards that this process encodes.
    progress: called after every shard.

  Returns:
    Number of examples once all shards exist; else 0.

  Raises:
    InputError: There is no dataset of pixels, or `output` holds latents of
      other networks or another size.
  """
  pixels = dataset.Dataset([source])
  kind: Kind = pixels.kind.replace("text", "latent")
  if kind == pixels.kind:
    raise InputError(f"{source} holds {kind} already; give a dataset of pixels")
  directory = dataset.dataset_dir(output, kind)
  path, identity = directory / "encoder.json", identity | {"size": list(size)}
  if path.exists() and identity_of(directory) != identity:
    raise InputError(
      f"{directory} holds latents of other networks or another size;"
      " give another output"
    )
  directory.mkdir(parents=True, exist_ok=True)
  write_json(path, identity)
  count = len(pixels.shards)
  paths = [
    dataset.shard_path(output, kind, pixels.split, number, count)
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
  return dataset.describe(output, kind, pixels.split, count)


def _encode(
  kind: Kind, record: dict, encoder: Encoder, size: tuple[int, int], side: int
) -> tfrecord.Record:
  """A record of latents for a record of pixels."""
  width, height = size
  times, views, crops = [], [], []
  if "image" in record:
    [picture], _ = dataset.load_frames(record)
    shown = [(0.0, picture, picture)]
  else:
    # One by one, because a clip may not fit into memory at its full size.
    name = record["id"].decode()
    shown = video.stream_to_cover(record["video"], size, name=name)
  for time, frame, whole in shown:
    times.append(time)
    views.append(preprocessing.clip_view(whole, width, side))
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
  return dataset.make_record(kind, record | encoded)


def encoded_of(record: dict[str, Any]) -> Encoded:
  """The outputs of the networks in a record of latents."""
  sides = (record[f"latent_{name}"] for name in ("height", "width"))
  moments = np.frombuffer(record["moments"], np.float16)
  embeds = np.frombuffer(record["image_embeds"], np.float16)
  return Encoded(
    moments.reshape(record["num_frames"], *sides, -1),
    embeds.reshape(record["num_frames"], -1) if len(embeds) else None,
  )


def identity_of(directory: Path) -> dict[str, Any]:
  """The networks and the size that a dataset of latents was encoded with.

  Raises:
    InputError: The file that records them is missing or damaged.
  """
  return read_json(directory / "encoder.json", advice="encode it again")
