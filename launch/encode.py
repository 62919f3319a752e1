"""`i2vgen data encode`: what the frozen networks make of a dataset, once.

    i2vgen data encode DATA/text_video/1.0.0 --output LATENTS \\
        --weights CASCADE --size 448x256

A training whose `data.video_dirs` name LATENTS/latent_video/1.0.0 then skips
the autoencoder and CLIP's picture tower. Shards that are there already stay,
so that a run that was killed goes on; of several processes each encodes its
share.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tyro.conf import Positional

from data_pipelines.shards import latents
from data_pipelines.shards.latents import Encoded, Encoder
from i2vgen_jax import autoencoding, interop, sharding
from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.formats import native
from i2vgen_jax.models.build import Network
from launch.arguments import Count, Size
from launch.progress import ProgressBar, note


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encode:
  """Latents and CLIP embeddings of a dataset, computed before training.

  For example: i2vgen data encode DATA/text_video/1.0.0 --output LATENTS
  --weights CASCADE --size 448x256

  Attributes:
    source: DATA_DIR/text_video/1.0.0 or DATA_DIR/text_image/1.0.0.
    output: data_dir of the latents.
    weights: Weights with an autoencoder, in any form.
    size: Size that frames are encoded at, in pixels.
    chunk: Number of frames on each device at once.
  """

  source: Positional[Path]
  output: Path
  weights: str
  size: Size
  chunk: Count = 8


def run(args: Encode) -> None:
  """Encodes this process's share of the shards.

  Raises:
    InputError: no dataset, no autoencoder, or a size that does not fit it.
  """
  found = interop.open_weights(args.weights).networks
  if "vae" not in found:
    raise InputError(f"no vae in {args.weights}; name weights that have one")
  mesh = sharding.make_mesh(devices=jax.local_devices())
  towers = {
    name: found[name].load(mesh=mesh)
    for name in ("vae", "image_encoder")
    if name in found
  }
  factor = 2 ** (len(towers["vae"].module.block_channels) - 1)
  if args.size[0] % factor or args.size[1] % factor:
    raise InputError(
      f"--size {args.size[0]}x{args.size[1]} does not fit the autoencoder; "
      f"give multiples of {factor}"
    )
  with ProgressBar() as progress:
    count = latents.encode_dataset(
      args.source,
      args.output,
      make_encoder(towers, mesh, args.chunk),
      size=args.size,
      clip_size=clip_size(towers),
      identity=identity(towers),
      shards=slice(jax.process_index(), None, jax.process_count()),
      progress=progress,
    )
  if count:
    note(f"{count} examples are encoded in {args.output}")


def clip_size(towers: dict[str, Network]) -> int:
  """Side of the CLIP views; 1 if no network reads them."""
  tower = towers.get("image_encoder")
  return tower.module.image_size if tower else 1


def identity(towers: dict[str, Network]) -> dict[str, Any]:
  """Digests of the weights, by network."""
  return {name: native.digest(tower.params) for name, tower in towers.items()}


def make_encoder(
  towers: dict[str, Network], mesh: jax.sharding.Mesh, chunk: int
) -> Encoder:
  """Runs the networks over the devices of a mesh, `chunk` frames on each."""
  rows = sharding.rows_sharding(mesh)
  vae, tower = towers["vae"], towers.get("image_encoder")

  @jax.jit
  def run_networks(params, frames, views):
    pixels = autoencoding.to_unit_range(frames)
    tree = {"params": params["vae"]}
    posterior = vae.module.apply(tree, pixels, method="encode")
    embeds = None
    if tower:
      tree = {"params": params["image_encoder"]}
      embeds = tower.module.apply(tree, views).astype(jnp.float16)
    return posterior.moments.astype(jnp.float16), embeds

  params = {name: network.params for name, network in towers.items()}
  size = chunk * mesh.devices.size

  def encoder(frames: np.ndarray, views: np.ndarray) -> Encoded:
    # Full chunks only, so that there is one compiled program.
    count, encoded = len(frames), []
    numbers = np.minimum(np.arange(count + -count % size), count - 1)
    for chosen in numbers.reshape(-1, size):
      placed = jax.device_put((frames[chosen], views[chosen]), rows)
      encoded.append(jax.device_get(run_networks(params, *placed)))
    return Encoded(
      *jax.tree.map(lambda *x: np.concatenate(x)[:count], *encoded)
    )

  return encoder
