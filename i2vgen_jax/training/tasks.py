"""What a config trains: networks, loss, what stays frozen, what to look at."""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from i2vgen_jax import encode, stage
from i2vgen_jax.diffusion.schedules import make_schedule
from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.formats import native
from i2vgen_jax.models import build
from i2vgen_jax.models.build import Network
from i2vgen_jax.tokenizer import Tokenizer
from i2vgen_jax.training import objectives
from i2vgen_jax.training.step import Objective
from i2vgen_jax.types import Array, Batch, Params

Picture = np.ndarray


@dataclasses.dataclass(frozen=True)
class Task:
  """One kind of training.

  Attributes:
    init_params: rng -> params, traceable.
    objective: the loss; see `objectives`.
    frozen: arrays that it reads and nothing trains.
    picture: (params, batch) -> uint8[h w 3] to look at, if any.
    exports: (params, batch) -> {name: (config, params)}: the networks as a
      cascade folder holds them.
    encode: uint8[b f h w 3] -> moments of the frozen autoencoder, if any; for
      `LatentsMemory`.
  """

  init_params: Callable[[jax.Array], Params]
  objective: Objective
  frozen: dict[str, Any]
  picture: Callable[[Params, Batch], Picture] | None
  exports: Callable[[Params, Batch], dict[str, tuple[dict, Params]]]
  encode: Callable[[np.ndarray], np.ndarray] | None = None

  def export(self, folder: Path, params: Params, batch: Batch) -> None:
    """Writes the trained networks as `folder`/NAME each."""
    for name, (config, tree) in self.exports(params, batch).items():
      native.save(folder / name, config, tree)


class LatentsMemory:
  """Encodes each clip once, for sets that are small beside the run.

  What it keeps is float16 in host memory, under a hash of the pixels.
  """

  def __init__(self, encode_fn: Callable[[np.ndarray], np.ndarray]):
    self._encode = encode_fn
    self._known: dict[bytes, np.ndarray] = {}

  def __call__(self, batch: Batch) -> Batch:
    """The batch with its moments."""
    if batch.moments is not None:
      return batch
    keys = [hashlib.blake2b(row.tobytes()).digest() for row in batch.frames]
    if any(key not in self._known for key in keys):
      moments = self._encode(batch.frames).astype(np.float16)
      self._known.update(zip(keys, moments, strict=True))
    rows = np.stack([self._known[key] for key in keys])
    return dataclasses.replace(batch, moments=rows)


def make_task(config: ConfigDict, mesh: Mesh, tokenizer: Tokenizer) -> Task:
  """The task that `config.objective` names.

  Raises:
    InputError: an unknown objective, or frozen networks that are missing.
  """
  match config.objective:
    case "diffusion":
      return _diffusion(config, mesh, tokenizer)
    case "autoencoder":
      return _autoencoder(config)
    case "contrastive":
      return _contrastive(config)
  raise InputError(
    f"unknown objective {config.objective!r}; use diffusion, autoencoder or "
    "contrastive"
  )


def clip_image_size(config: ConfigDict) -> int:
  """Side of the CLIP view that the batches of this config need, in pixels."""
  if "image_encoder" in config:
    return config.image_encoder.image_size
  folder = Path(config.frozen) / "image_encoder"
  if config.objective == "diffusion" and config.unet.use_image_embeds:
    return native.load_config(folder)["module"]["image_size"]
  return 1  # Nobody looks at it.


def text_length(config: ConfigDict) -> int:
  """Tokens of a caption that the batches of this config need."""
  if "text_encoder" in config:
    return config.text_encoder.max_length
  folder = Path(config.frozen) / "text_encoder"
  if config.objective == "diffusion" and config.unet.use_text:
    return native.load_config(folder)["module"]["max_length"]
  return 2


def _module(config: ConfigDict, name: str, fields: ConfigDict) -> Any:
  return build.make_module(name, fields.to_dict(), Path(f"config.{name}"))


# ---- Denoisers ----


def _diffusion(config: ConfigDict, mesh: Mesh, tokenizer: Tokenizer) -> Task:
  unet = _module(config, config.component, config.unet)
  towers = {
    name: build.load(Path(config.frozen) / name)
    for name in build.towers_of(unet)
  }
  build.check_fit(unet, towers)
  frozen = {name: network.params for name, network in towers.items()}
  negative = tokenizer([config.sampling.negative_prompt]).ids[0]
  frozen["null_token_ids"] = jnp.asarray(negative)
  module = {name: network.module for name, network in towers.items()}
  objective = objectives.diffusion_objective(
    unet=unet,
    vae=module["vae"],
    text_encoder=module.get("text_encoder"),
    image_encoder=module.get("image_encoder"),
    schedule=make_schedule(
      config.diffusion.schedule, config.diffusion.zero_terminal_snr
    ),
    mesh=mesh,
    scaling_factor=towers["vae"].config["scaling_factor"],
    encode_chunk=config.sampling.decode_chunk,
    text_dropout=config.diffusion.text_dropout,
    image_dropout=config.diffusion.image_dropout,
    prediction_type=config.diffusion.prediction_type,
    noise_offset=config.diffusion.noise_offset,
    max_timestep=config.diffusion.max_timestep,
    timestep_shift=config.diffusion.timestep_shift,
  )
  vae = towers["vae"]

  @jax.jit
  def encode_moments(params: Params, frames: jax.Array) -> jax.Array:
    frames = encode.to_unit_range(frames)
    chunk = config.sampling.decode_chunk
    return encode.encode_moments(vae.module, params, frames, chunk)

  exported = {
    "module": config.unet.to_dict(),
    "diffusion": config.diffusion.to_dict(),
    "sampling": config.sampling.to_dict(),
  }
  return Task(
    init_params=lambda rng: build.init_params(unet, rng),
    objective=objective,
    frozen=frozen,
    picture=_clip_picture(config, unet, towers, frozen["null_token_ids"]),
    exports=lambda params, _: {config.component: (exported, params)},
    encode=lambda frames: np.asarray(encode_moments(vae.params, frames)),
  )


def _clip_picture(
  config: ConfigDict,
  unet: Any,
  towers: dict[str, Network],
  null_ids: Any,
  rows: int = 4,
) -> Callable[[Params, Batch], Picture]:
  """Real clips, and below each what the stage makes of the same conditions."""
  settings = stage.Settings.from_config(config.sampling.to_dict())
  vae = towers["vae"]
  coding = {
    "scaling_factor": vae.config["scaling_factor"],
    "chunk": settings.decode_chunk,
  }

  # The towers are arguments: as constants they would be compiled in.
  @jax.jit
  def draw(params: Params, frozen: dict[str, Params], batch: Batch) -> Any:
    if batch.moments is None:
      frames = encode.to_unit_range(batch.frames)
      latents = encode.encode_frames(
        vae.module, frozen["vae"], frames, None, **coding
      )
      real = batch.frames
    else:
      latents = encode.sample_latents(
        batch.moments, None, coding["scaling_factor"]
      )
      real = encode.decode_latents(vae.module, frozen["vae"], latents, **coding)
      real = encode.to_pixels(real)
    context = null_context = embeds = None
    if text := towers.get("text_encoder"):
      tower = {"params": frozen["text_encoder"]}
      context = text.module.apply(tower, batch.token_ids).context
      null_context = text.module.apply(tower, null_ids[None]).context
    if image := towers.get("image_encoder"):
      embeds = batch.image_embeds
      if embeds is None:
        tower = {"params": frozen["image_encoder"]}
        embeds = image.module.apply(tower, batch.clip_images)
      embeds = embeds.astype(jnp.float32)
    cond = encode.conditioning(
      unet,
      text_context=context,
      image_embeds=embeds,
      image_latents=latents[:, 0],
      fps=batch.fps,
    )
    made = stage.sample_latents(
      unet,
      params,
      stage.Diffusion.from_config(config.diffusion.to_dict()),
      settings,
      cond,
      stage.null_conditioning(cond, null_context),
      jax.random.key(0),
      latents.shape,
      latents,
    )
    made = encode.decode_latents(vae.module, frozen["vae"], made, **coding)
    return jnp.stack([real, encode.to_pixels(made)], axis=1)

  def picture(params: Params, batch: Batch) -> Picture:
    few = jax.tree.map(lambda x: x[:rows], batch)
    frozen = {name: network.params for name, network in towers.items()}
    return _grid(np.asarray(draw(params, frozen, few)))

  return picture


def _grid(clips: np.ndarray) -> Picture:
  """uint8[b k f h w 3] -> one picture: a row per b and k, a column per f."""
  b, k, f, h, w, _ = clips.shape
  return clips.transpose(0, 1, 3, 2, 4, 5).reshape(b * k * h, f * w, 3)


# ---- The autoencoder ----


def _autoencoder(config: ConfigDict) -> Task:
  vae = _module(config, "vae", config.vae)
  settings = config.autoencoder.to_dict()
  if settings["decoder_only"] and config.init_from is None:
    raise InputError(
      "config.autoencoder.decoder_only needs an autoencoder to go on from; "
      "name its folder: --config.init_from=CASCADE/vae"
    )

  def flat(batch: Batch) -> Array:
    return encode.to_unit_range(batch.frames).reshape(
      -1, *batch.frames.shape[2:]
    )

  @jax.jit
  def rebuild(params: Params, batch: Batch) -> jax.Array:
    rebuilt = vae.apply({"params": params}, flat(batch))
    return encode.to_pixels(rebuilt).reshape(batch.frames.shape)

  def picture(params: Params, batch: Batch) -> Picture:
    few = jax.tree.map(lambda x: x[:4], batch)
    return _grid(np.stack([few.frames, rebuild(params, few)], axis=1))

  def scaling_factor(params: Params, batch: Batch) -> float:
    if settings["decoder_only"]:
      return native.load_config(Path(config.init_from))["scaling_factor"]
    # Scaled latents have unit variance on the training data.
    latents = vae.apply({"params": params}, flat(batch), method="encode").mean
    return float(1 / latents.std())

  def exports(params: Params, batch: Batch) -> dict:
    exported = {
      "module": config.vae.to_dict(),
      "scaling_factor": scaling_factor(params, batch),
    }
    return {"vae": (exported, params)}

  return Task(
    init_params=lambda rng: build.init_params(vae, rng),
    objective=objectives.autoencoder_objective(vae=vae, **settings),
    frozen={},
    picture=picture,
    exports=exports,
  )


# ---- The CLIP towers ----


def _contrastive(config: ConfigDict) -> Task:
  fields = {
    "text_encoder": config.text_encoder,
    "image_encoder": config.image_encoder,
  }
  modules = {name: _module(config, name, f) for name, f in fields.items()}

  def init_params(rng: jax.Array) -> Params:
    keys = jax.random.split(rng, len(modules))
    towers = {
      name: build.init_params(module, key)
      for (name, module), key in zip(modules.items(), keys, strict=True)
    }
    return towers | {"logit_scale": jnp.asarray(math.log(1 / 0.07))}

  def exports(params: Params, _: Batch) -> dict:
    return {
      name: ({"module": fields[name].to_dict()}, params[name])
      for name in modules
    }

  return Task(
    init_params=init_params,
    objective=objectives.contrastive_objective(**modules),
    frozen={},
    picture=None,
    exports=exports,
  )
