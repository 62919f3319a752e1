"""Training of the autoencoder, from scratch or of its decoder alone."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from i2vgen_jax import interop
from i2vgen_jax.autoencoding import to_pixels, to_unit_range
from i2vgen_jax.errors import InputError
from i2vgen_jax.models import build
from i2vgen_jax.training import task
from i2vgen_jax.training.step import Metrics
from i2vgen_jax.types import Array, Batch, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoencoder(task.Task):
  """Reconstruction of frames, and a weak pull to a unit Gaussian.

  Attributes:
    vae: AutoencoderKL.
    config: `module` of its `config.json`.
    scales: (shrink factor, rows of the batch) of each resolution, together all
      rows; one network serves both stages, so it has to see both resolutions.
      The loss is the mean over scales.
    l1_weight: weight of the mean absolute error of pixels in [-1, 1].
    l2_weight: weight of their mean squared error.
    edge_weight: weight of the mean absolute error of the differences between
      neighbouring pixels, which keeps outlines sharp.
    kl_weight: weight of the mean KL divergence per latent value, in nats.
    decoder_only: keeps the encoder, and with it the latents that other
      networks were trained on.
    scaling_factor: factor on the latents that is exported; None measures it.
  """

  vae: Any
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  scales: tuple[tuple[int, int], ...]
  l1_weight: float
  l2_weight: float
  edge_weight: float
  kl_weight: float
  decoder_only: bool = False
  scaling_factor: float | None = None

  @classmethod
  def from_config(cls, config: ConfigDict, mesh: Mesh) -> "Autoencoder":
    """The task of a config with the groups vae and autoencoder.

    Raises:
      InputError: decoder_only without the autoencoder to start from.
    """
    fields, scaling_factor = config.vae.to_dict(), None
    if config.autoencoder.decoder_only:
      if config.init_from is None:
        raise InputError(
          "config.autoencoder.decoder_only needs an autoencoder to start from; "
          "name its folder: --config.init_from=CASCADE/vae"
        )
      scaling_factor = _stored(config.init_from).config["scaling_factor"]
    return cls(
      vae=build.make_module("vae", fields, "config.vae"),
      config=fields,
      scaling_factor=scaling_factor,
      **config.autoencoder.to_dict(),
    )

  def init_params(self, rng: task.Rng) -> Params:
    return build.init_params(self.vae, rng)

  def load_params(self, path: str | Path, rng: task.Rng) -> Params:
    """Weights of the same autoencoder in any form."""
    network = _stored(path).load(jnp.float32)
    for field, want in self.config.items():
      have = getattr(network.module, field)
      if have != want:
        raise InputError(
          f"weights of another autoencoder, in {path}: {field} is {have} there "
          f"and {want} in config.vae; make them agree"
        )
    return network.params

  def loss(
    self, params: Params, frozen: task.Networks, batch: Batch, rng: task.Rng
  ) -> task.Loss:
    rows = sum(count for _, count in self.scales)
    if rows != len(batch.index):
      raise InputError(
        f"scales of {rows} rows in a batch of {len(batch.index)}, in "
        "autoencoder.scales; make them add up to train.batch_size"
      )
    metrics, loss, start = {}, 0.0, 0
    for factor, count in self.scales:
      part = slice(start, start + count)
      frames = shrink(to_unit_range(batch.frames[part]), factor)
      values = self._reconstruction(params, frames, rng, batch.index[part])
      loss += values.pop("loss") / len(self.scales)
      metrics |= {f"{k}_{frames.shape[3]}": v for k, v in values.items()}
      start += count
    return loss, metrics

  def _reconstruction(
    self,
    params: Params,
    frames: Float[Array, "b k h w 3"],
    rng: task.Rng,
    index: Int[Array, "b"],
  ) -> Metrics:
    """Losses of frames of one resolution."""
    x = frames.reshape(-1, *frames.shape[2:])
    posterior = self.vae.apply({"params": params}, x, method="encode")
    if self.decoder_only:
      posterior = jax.lax.stop_gradient(posterior)
    mean, logvar = posterior.mean, posterior.logvar
    noise = task.row_noise(rng, index, (frames.shape[1], *mean.shape[1:]))
    latents = posterior.sample(noise.reshape(mean.shape))
    error = self.vae.apply({"params": params}, latents, method="decode") - x
    l1, l2 = jnp.abs(error).mean(), jnp.square(error).mean()
    edge = sum(jnp.abs(jnp.diff(error, axis=axis)).mean() for axis in (1, 2))
    kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).mean()
    return {
      "loss": self.l1_weight * l1
      + self.l2_weight * l2
      + self.edge_weight * edge
      + self.kl_weight * kl,
      "kl": kl,
      # In dB over the range of 2; the scaling factor is 1 / latents_std.
      "psnr": 10 * jnp.log10(4 / l2),
      "latents_std": latents.std(),
    }

  def sample_picture(
    self, params: Params, frozen: task.Networks, batch: Batch
  ) -> task.Picture:
    """Frames, and below each its reconstruction."""
    rebuilt = to_pixels(self.vae.apply({"params": params}, _flat(batch)))
    rebuilt = rebuilt.reshape(batch.frames.shape)
    return task.grid(jnp.stack([batch.frames, rebuilt], axis=1))

  def exports(self, params: Params, batch: Batch) -> task.Exports:
    factor = self.scaling_factor
    if factor is None:
      # Scaled latents have unit variance on the training data.
      tree = {"params": params}
      latents = self.vae.apply(tree, _flat(batch), method="encode").mean
      factor = float(1 / latents.std())
    config = {"module": dict(self.config), "scaling_factor": factor}
    return {"vae": (config, params)}


def _stored(path: str | Path) -> interop.StoredNetwork:
  networks = interop.open_weights(path).networks
  if "vae" not in networks:
    raise InputError(f"no autoencoder in {path}; correct config.init_from")
  return networks["vae"]


def _flat(batch: Batch) -> Float[Array, "n h w 3"]:
  """All frames of a batch as pixels in [-1, 1]."""
  return to_unit_range(batch.frames).reshape(-1, *batch.frames.shape[2:])


def shrink(
  frames: Float[Array, "b k h w 3"], factor: int
) -> Float[Array, "b k h2 w2 3"]:
  """Means over squares of `factor` pixels."""
  b, k, h, w, _ = frames.shape
  squares = frames.reshape(b, k, h // factor, factor, w // factor, factor, 3)
  return squares.mean(axis=(3, 5))
