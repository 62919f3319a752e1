"""What the models learn: three pure losses with one signature.

`objective(params, frozen, batch, rng) -> (loss, metrics)`, where `frozen`
holds the arrays that are read and not trained. Every draw of a row derives
from `rng` and `batch.index`, so neither mesh nor host count changes it, and
the rng may be the same at every step.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Float, Int, Key

from i2vgen_jax import encode
from i2vgen_jax.diffusion.losses import diffusion_loss, per_row_rngs
from i2vgen_jax.diffusion.schedules import NoiseSchedule
from i2vgen_jax.errors import InputError
from i2vgen_jax.sharding import constrain_latents
from i2vgen_jax.training.step import Metrics, Objective
from i2vgen_jax.types import Array, Batch, Conditioning, Params


def drop_rows(
  rng: Key[Array, ""],
  index: Int[Array, "b"],
  probability: float,
  values: Array,
  null: Array,
) -> Array:
  """`values` with `null` in the rows that a draw of their index selects."""
  draw = jax.vmap(jax.random.uniform)(per_row_rngs(rng, index))
  dropped = (draw < probability).reshape(-1, *(1,) * (values.ndim - 1))
  return jnp.where(dropped, null, values)


# ---- The denoiser ----


def diffusion_objective(
  *,
  unet: Any,
  vae: Any,
  text_encoder: Any,
  image_encoder: Any,
  schedule: NoiseSchedule,
  mesh: Mesh,
  scaling_factor: float,
  encode_chunk: int,
  text_dropout: float,
  image_dropout: float,
  prediction_type: str,
  noise_offset: float,
  max_timestep: int | None,
  timestep_shift: float,
) -> Objective:
  """The loss of a stage; the fields of `unet` say what conditions it.

  The objective's `frozen` has `vae`, `text_encoder`, `image_encoder` (params)
  and `null_token_ids` [n], the caption of guidance's other branch. Text and
  CLIP vector are dropped by independent draws; the picture's latents and fps
  stay, as in guidance of variant (c).

  Args:
    mesh: pins the latents.
    scaling_factor: of the latents; 0.18215 for the public autoencoder.
    encode_chunk: frames of each clip per pass of the autoencoder.
    text_dropout: probability of the null caption (0.1 in ModelScope).
    image_dropout: probability of a zero CLIP vector.
    max_timestep: T_r of the refine stage; None trains all levels.
    timestep_shift: see `diffusion_loss`.
  """

  def condition(
    frozen: Any, batch: Batch, latents: Array, rng: Array
  ) -> Conditioning:
    rng_text, rng_image = jax.random.split(rng)
    text = image = None
    if unet.use_text:
      # The null caption goes through the tower in the row that it replaces.
      null = frozen["null_token_ids"]
      ids = drop_rows(
        rng_text, batch.index, text_dropout, batch.token_ids, null
      )
      tower = {"params": frozen["text_encoder"]}
      text = text_encoder.apply(tower, ids).context
    if unet.use_image_embeds:
      image = batch.image_embeds
      if image is None:
        tower = {"params": frozen["image_encoder"]}
        image = image_encoder.apply(tower, batch.clip_images)
      image = image.astype(jnp.float32)
      image = drop_rows(
        rng_image, batch.index, image_dropout, image, jnp.zeros_like(image)
      )
    return encode.conditioning(
      unet,
      text_context=text,
      image_embeds=image,
      image_latents=latents[:, 0],
      fps=batch.fps,
    )

  def objective(
    params: Params, frozen: Any, batch: Batch, rng: Key[Array, ""]
  ) -> tuple[Array, Metrics]:
    rng_encode, rng_drop, rng_loss, rng_net = jax.random.split(rng, 4)
    moments = batch.moments
    if moments is None:
      frames = encode.to_unit_range(batch.frames)
      moments = encode.encode_moments(vae, frozen["vae"], frames, encode_chunk)
    latents = encode.sample_latents(
      moments,
      _posterior_noise(moments, rng_encode, batch.index),
      scaling_factor,
    )
    latents = constrain_latents(latents, mesh)
    cond = condition(frozen, batch, latents, rng_drop)

    network = encode.denoiser(
      unet,
      params,
      deterministic=False,
      rngs={"dropout": jax.random.fold_in(rng_net, batch.index[0])},
    )

    def denoise_fn(xt: Array, t: Array, cond: Conditioning) -> Array:
      return network(constrain_latents(xt, mesh), t, cond)

    loss, _ = diffusion_loss(
      denoise_fn,
      schedule,
      latents,
      cond,
      rng_loss,
      batch.index,
      prediction_type=prediction_type,
      noise_offset=noise_offset,
      max_timestep=max_timestep,
      timestep_shift=timestep_shift,
    )
    return loss, {}

  return objective


def _posterior_noise(
  moments: Float[Array, "b f h w c2"],
  rng: Key[Array, ""],
  index: Int[Array, "b"],
) -> Float[Array, "b f h w c"]:
  """What selects each row's sample of the autoencoder's posterior."""
  shape = (*moments.shape[1:-1], moments.shape[-1] // 2)
  return jax.vmap(lambda key: jax.random.normal(key, shape))(
    per_row_rngs(rng, index)
  )


# ---- The autoencoder ----


def autoencoder_objective(
  *,
  vae: Any,
  scales: tuple[tuple[int, int], ...],
  l1_weight: float,
  l2_weight: float,
  edge_weight: float,
  kl_weight: float,
  decoder_only: bool,
) -> Objective:
  """Reconstruction of frames, and a weak pull to a unit Gaussian.

  Args:
    scales: (shrink factor, rows of the batch) each, together all rows; one
      network serves both stages, so it has to see both resolutions. The loss
      is the mean over scales.
    l1_weight: on the mean absolute error of pixels in [-1, 1].
    l2_weight: on their mean squared error.
    edge_weight: on the mean absolute error of the differences between
      neighbouring pixels, which keeps outlines sharp.
    kl_weight: on the mean KL divergence per latent number, in nats.
    decoder_only: the encoder stays as it is, and with it the latents that
      other networks have learned.
  """

  def reconstruct(params, frames, rng, index):
    x = frames.reshape(-1, *frames.shape[2:])
    posterior = vae.apply({"params": params}, x, method="encode")
    if decoder_only:
      posterior = jax.lax.stop_gradient(posterior)
    mean, logvar = posterior.mean, posterior.logvar
    shape = (frames.shape[1], *mean.shape[1:])
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(
      per_row_rngs(rng, index)
    )
    latents = posterior.sample(noise.reshape(mean.shape))
    error = vae.apply({"params": params}, latents, method="decode") - x
    l1, l2 = jnp.abs(error).mean(), jnp.square(error).mean()
    edge = sum(jnp.abs(jnp.diff(error, axis=axis)).mean() for axis in (1, 2))
    kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).mean()
    return {
      "loss": l1_weight * l1
      + l2_weight * l2
      + edge_weight * edge
      + kl_weight * kl,
      "kl": kl,
      # In dB over the range of 2; the scaling factor is 1 / latents_std.
      "psnr": 10 * jnp.log10(4 / l2),
      "latents_std": latents.std(),
    }

  def objective(
    params: Params, frozen: Any, batch: Batch, rng: Key[Array, ""]
  ) -> tuple[Array, Metrics]:
    counts = [count for _, count in scales]
    if sum(counts) != len(batch.index):
      raise InputError(
        f"scales of {sum(counts)} rows in a batch of {len(batch.index)}, in "
        "autoencoder.scales; make them add up to train.batch_size"
      )
    metrics, loss, start = {}, 0.0, 0
    for factor, count in scales:
      rows = slice(start, start + count)
      frames = encode.to_unit_range(batch.frames[rows])
      frames = shrink(frames, factor)
      values = reconstruct(params, frames, rng, batch.index[rows])
      loss += values.pop("loss") / len(scales)
      metrics |= {f"{k}_{frames.shape[3]}": v for k, v in values.items()}
      start += count
    return loss, metrics

  return objective


def shrink(
  frames: Float[Array, "b k h w 3"], factor: int
) -> Float[Array, "b k h2 w2 3"]:
  """Means over squares of `factor` pixels."""
  b, k, h, w, _ = frames.shape
  squares = frames.reshape(b, k, h // factor, factor, w // factor, factor, 3)
  return squares.mean(axis=(3, 5))


# ---- The CLIP towers ----


def contrastive_objective(
  *, text_encoder: Any, image_encoder: Any
) -> Objective:
  """CLIP's symmetric loss between captions and pictures of the batch.

  The objective's `params` has `text_encoder`, `image_encoder` and
  `logit_scale` (logarithm; CLIP starts at log(1 / 0.07) and caps it at
  log 100). Rows with the same caption are each other's match as well.
  """

  def objective(
    params: Params, frozen: Any, batch: Batch, rng: Key[Array, ""]
  ) -> tuple[Array, Metrics]:
    text = text_encoder.apply(
      {"params": params["text_encoder"]}, batch.token_ids
    ).pooled
    image = image_encoder.apply(
      {"params": params["image_encoder"]}, batch.clip_images
    )
    scale = jnp.exp(jnp.minimum(params["logit_scale"], jnp.log(100.0)))
    logits = scale * _unit(image) @ _unit(text).T

    same = batch.token_ids[:, None] == batch.token_ids[None]
    match = same.all(axis=-1)
    targets = match / match.sum(axis=1, keepdims=True)
    loss = 0.5 * (
      optax.softmax_cross_entropy(logits, targets).mean()
      + optax.softmax_cross_entropy(logits.T, targets).mean()
    )
    found = jnp.take_along_axis(
      match, logits.argmax(axis=1, keepdims=True), axis=1
    )
    return loss, {"accuracy": found.mean(), "logit_scale": scale}

  return objective


def _unit(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
