"""`i2vgen data encode`: outputs of the frozen networks, computed in advance.

A training whose `data.video_dirs` name LATENTS/latent_video/1.0.0 does not run
the autoencoder and the image encoder. Shards that exist are skipped, so that
an interrupted run continues; each of several processes encodes its share.
"""

import dataclasses
from pathlib import Path

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
from launch.arguments import Count, Size, Weights
from launch.progress import ProgressBar, note


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encode:
  """Latents and CLIP embeddings of a dataset, computed before training.

  For example: i2vgen data encode DIR --output OUT --weights W --size 448x256

  Attributes:
    source: DATA_DIR/text_video/1.0.0 or DATA_DIR/text_image/1.0.0.
    output: data_dir of the latents.
    weights: Weights with an autoencoder, in any form.
    size: Size that frames are encoded at, in pixels.
    chunk: Number of frames on each device at once.
  """

  source: Positional[Path]
  output: Path
  weights: Weights
  size: Size
  chunk: Count = 8


def run(args: Encode) -> None:
  """Encodes this process's share of the shards.

  Raises:
    InputError: There is no dataset or no autoencoder, or the size does not fit
      it.
  """
  found = interop.open_weights(args.weights).networks
  if "vae" not in found:
    raise InputError(f"no vae in {args.weights}; name weights that have one")
  mesh = sharding.make_mesh(devices=jax.local_devices())
  names = [name for name in ("vae", "image_encoder") if name in found]
  towers = {name: found[name].load(mesh=mesh) for name in names}
  width, height = args.size
  factor = towers["vae"].module.shrink
  if width % factor or height % factor:
    raise InputError(
      f"--size {width}x{height} does not fit the autoencoder; give multiples of"
      f" {factor}"
    )
  tower = towers.get("image_encoder")
  with ProgressBar() as progress:
    count = latents.encode_dataset(
      args.source,
      args.output,
      make_encoder(towers, mesh, args.chunk),
      size=args.size,
      clip_size=tower.module.image_size if tower else 1,
      identity={n: native.digest(net.params) for n, net in towers.items()},
      shards=slice(jax.process_index(), None, jax.process_count()),
      progress=progress,
    )
  if count:
    note(f"wrote latents of {count} examples to {args.output}")


def make_encoder(
  towers: dict[str, Network], mesh: jax.sharding.Mesh, chunk: int
) -> Encoder:
  """Runs the networks on a mesh, with `chunk` frames on each device."""
  rows = sharding.rows_sharding(mesh)
  vae, tower = towers["vae"], towers.get("image_encoder")

  @jax.jit
  def run_networks(params, frames, views):
    pixels = autoencoding.to_unit_range(frames)
    posterior = vae.module.apply(params["vae"], pixels, method="encode")
    embeds = None
    if tower:
      embeds = tower.module.apply(params["image_encoder"], views)
      embeds = embeds.astype(jnp.float16)
    return posterior.moments.astype(jnp.float16), embeds

  params = {name: {"params": net.params} for name, net in towers.items()}
  size = chunk * mesh.devices.size

  def encoder(frames: np.ndarray, views: np.ndarray) -> Encoded:
    # Full chunks only, so that there is one compiled program.
    count, encoded = len(frames), []
    numbers = np.minimum(np.arange(count + -count % size), count - 1)
    for chosen in numbers.reshape(-1, size):
      placed = jax.device_put((frames[chosen], views[chosen]), rows)
      with jax.set_mesh(mesh):
        encoded.append(jax.device_get(run_networks(params, *placed)))
    whole = jax.tree.map(lambda *x: np.concatenate(x)[:count], *encoded)
    return Encoded(*whole)

  return encoder
