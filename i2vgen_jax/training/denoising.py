"""Training of a U-Net to denoise the latents of clips."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict

from i2vgen_jax import autoencoding, cascade, interop, trees
from i2vgen_jax.diffusion.losses import (
  diffusion_loss,
  per_row_rngs,
  shifted_timesteps,
)
from i2vgen_jax.errors import InputError
from i2vgen_jax.models import build
from i2vgen_jax.models.build import Network
from i2vgen_jax.models.vae import Posterior
from i2vgen_jax.sharding import constrain_latents, make_mesh
from i2vgen_jax.stage import Diffusion, Stage
from i2vgen_jax.training import task
from i2vgen_jax.training.metrics import say
from i2vgen_jax.types import Array, Batch, Conditioning, Params

# Number of noise levels that held-out clips are seen at.
_HELD_OUT_LEVELS = 4
# Settings of a config's group `diffusion` that the loss of held-out clips has.
_OF_HELD_OUT = (
  "noise_offset", "max_timestep", "timestep_shift", "motion_weight",
  "base_steps",
)  # fmt: skip
# Mean difference between latents of frames below which a clip stands still.
_STILL = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising(task.Task):
  """The diffusion loss of a stage's U-Net.

  Attributes:
    stage: the U-Net, the frozen networks, and how to sample.
    mesh: devices that the latents are split over.
    config: `config.json` of the exported U-Net.
    negative_ids: token ids of the text that dropped captions become; None if
      the U-Net takes no text.
    text_dropout: probability of dropping a caption: `p_zero` of the public
      code, 0.1 for (a) and (b), 0 for (c).
    image_dropout: probability of a zero CLIP vector, with which the vector of
      G.Enc is dropped. No text gives it; guidance of (a) and (c) needs it.
    local_dropout: probability of zero latents of the picture. Guidance never
      drops them; 0 is our choice, as no text or code of these models has it.
    joint_dropout: probability of dropping all three together, beside the draws
      of each alone. It is 0.1 in VideoComposer (Wang et al. 2023), from which
      the design is; `p_all_zero` is unused in the public code of these models.
    noise_offset: see `diffusion_loss`, as for the rest.
    max_timestep: T_r of the refine stage; None trains all levels.
    timestep_shift: shift of the drawn noise levels.
    motion_weight: see `motion_weights`; 0 is off.
    base: the base stage, whose clips a refine stage is to restore; None trains
      on noise alone, as in the paper. See `made_by_base`.
    base_steps: number of its solver steps.
  """

  stage: Stage
  mesh: Mesh
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  negative_ids: Int[np.ndarray, "1 n"] | None = None
  text_dropout: float = 0.1
  image_dropout: float = 0.1
  local_dropout: float = 0.0
  joint_dropout: float = 0.0
  noise_offset: float = 0.1
  max_timestep: int | None = None
  timestep_shift: float = 1.0
  motion_weight: float = 0.0
  base: Stage | None = None
  base_steps: int = 0

  @classmethod
  def from_config(cls, config: ConfigDict, mesh: Mesh) -> "Denoising":
    """The task of a config with the groups unet, diffusion and sampling.

    Raises:
      InputError: a frozen network or the tokenizer is missing in
        `config.frozen`, or does not fit the U-Net.
    """
    fields = {"module": config.unet.to_dict()}
    fields |= {k: config[k].to_dict() for k in ("diffusion", "sampling")}
    name = config.component
    unet = build.make_module(name, fields["module"], "config.unet")
    # The frozen networks take no more memory than the computation needs.
    stored = interop.open_weights(config.frozen).in_dtype(unet.dtype)
    stage = cascade.make_stage(
      name, Network(unet, {}, fields), stored, "the config"
    )
    towers, base = build.towers_of(unet), None
    if config.diffusion.base_steps:
      trained = stored.one("base")
      base = cascade.make_stage("base", trained, stored, stored.folder)
      towers = {*towers, *build.towers_of(trained.module), "base"}
    frozen = {
      tower: jax.device_get(stored.networks[tower].load(unet.dtype).params)
      for tower in towers
    }
    tokenizer = negative_ids = None
    if unet.use_text:
      tokenizer = cascade.load_tokenizer(stored)
      negative_ids = tokenizer([stage.sampling.negative_prompt]).ids
    return cls(
      stage=stage,
      mesh=mesh,
      config=fields,
      frozen=frozen,
      tokenizer=tokenizer,
      negative_ids=negative_ids,
      base=base,
      **loss_settings(fields["diffusion"]),
    )

  @classmethod
  def from_cascade(
    cls,
    loaded: cascade.Cascade,
    stages: Mapping[str, Stage],
    name: str,
    mesh: Mesh,
  ) -> "Denoising":
    """The task that a stage of a cascade was trained for, to measure its loss.

    Weights of a public form do not say more than their schedule: the rest has
    the defaults, and a refine stage the noise levels that it samples at.

    Args:
      loaded: the networks.
      stages: from `Cascade.plan`, of the size of the clips.
      name: of one of them; one that was trained to restore the clips of the
        base stage also needs that.
      mesh: devices that the latents are split over.
    """
    stage, base, settings = stages[name], None, {}
    if stage.starts_from_clip:
      settings["max_timestep"] = stage.sampling.start_timestep + 1
    config = loaded.networks[name].config
    given = config["diffusion"]
    settings |= {k: given[k] for k in _OF_HELD_OUT if k in given}
    towers = {*build.towers_of(stage.unet)}
    if settings.get("base_steps"):
      base = stages["base"]
      towers |= {*build.towers_of(base.unet), "base"}
    return cls(
      stage=stage,
      mesh=mesh,
      config=config,
      frozen={tower: loaded.networks[tower].params for tower in towers},
      tokenizer=loaded.tokenizer,
      base=base,
      **settings,
    )

  @property
  def clip_size(self) -> int | None:
    stages = (self.stage, self.base)
    towers = [stage.image_encoder for stage in stages if stage is not None]
    sizes = [tower.image_size for tower in towers if tower is not None]
    return sizes[0] if sizes else None

  def init_params(self, rng: task.Rng) -> Params:
    return build.init_params(self.stage.unet, rng)

  def load_params(self, path: str | Path, rng: task.Rng) -> Params:
    """Weights of a U-Net in any form, or of Stable Diffusion 2.1.

    Layers are matched by name; what was taken is reported.
    """
    params, differences = interop.initial_params(path, self.stage.unet, rng)
    new, unused = differences.missing, differences.unexpected
    taken = len(jax.tree.leaves(params)) - len(new)
    say(f"starting from {taken} arrays of {path}")
    if new:
      say(f"drawn, as they are not in it: {len(new)} arrays, {trees.few(new)}")
    if unused:
      say(f"not used of it: {len(unused)} arrays, {trees.few(unused)}")
    return params

  def loss(
    self, params: Params, frozen: task.Networks, batch: Batch, rng: task.Rng
  ) -> task.Loss:
    return self.losses(params, frozen, batch, rng).mean(), {}

  @property
  def held_out_levels(self) -> Int[np.ndarray, "n"]:
    """The timesteps at which held-out clips are seen.

    They are the middles of equal parts of the levels in the order in which
    training draws them, so that the mean over them is comparable with its loss.
    """
    bound = self.max_timestep or self.stage.schedule.num_train_timesteps
    middles = (np.arange(_HELD_OUT_LEVELS, dtype=np.float32) + 0.5) / (
      _HELD_OUT_LEVELS
    )
    return shifted_timesteps(middles, bound, self.timestep_shift)

  def held_out_loss(
    self, params: Params, frozen: task.Networks, batch: Batch, rng: task.Rng
  ) -> tuple[Float[Array, ""], task.Sums]:
    """The loss at the `held_out_levels`, of which each row has one."""
    levels = self.held_out_levels
    rngs = per_row_rngs(jax.random.fold_in(rng, 1), batch.index)
    chosen = jax.vmap(lambda key: jax.random.choice(key, levels))(rngs)
    losses = self.losses(params, frozen, batch, rng, held_out_at=chosen)
    sums = {}
    for level in np.unique(levels):
      rows = chosen == level
      sums[f"timestep {level}"] = jnp.stack([losses @ rows, rows.sum()])
    return losses.mean(), sums

  def losses(
    self,
    params: Params,
    frozen: task.Networks,
    batch: Batch,
    rng: task.Rng,
    held_out_at: Int[Array, "b"] | None = None,
  ) -> Float[Array, "b"]:
    """The loss of each row.

    At given timesteps it is without dropout of any kind; the noise of a row is
    the same at all of them.
    """
    deterministic = held_out_at is not None
    rng_encode, rng_drop, rng_loss, rng_net = jax.random.split(rng, 4)
    posterior = self.posterior(frozen, batch)
    noise = task.row_noise(rng_encode, batch.index, posterior.mean.shape[1:])
    latents = self.stage.scaling_factor * posterior.sample(noise)
    latents = constrain_latents(latents, self.mesh)
    if deterministic:
      cond = self.condition(frozen, batch, latents)
    else:
      cond = self._drop(rng_drop, frozen, batch, latents)
    network = self.stage.denoiser(
      {"unet": params},
      deterministic=deterministic,
      rngs={"dropout": jax.random.fold_in(rng_net, batch.index[0])},
    )
    weights = None
    if self.motion_weight:
      weights = motion_weights(latents, self.motion_weight)
    start = None
    if self.base is not None:
      start = self.made_by_base(frozen, batch, rng_encode)
      start = constrain_latents(start, self.mesh)
    _, losses = diffusion_loss(
      network,
      self.stage.schedule,
      latents,
      cond,
      rng_loss,
      batch.index,
      prediction_type=self.stage.diffusion.prediction_type,
      noise_offset=self.noise_offset,
      max_timestep=self.max_timestep,
      timestep_shift=self.timestep_shift,
      timesteps=held_out_at,
      weights=weights,
      start=start,
    )
    return losses

  def posterior(self, frozen: task.Networks, batch: Batch) -> Posterior:
    """The autoencoder's posterior of each clip."""
    if batch.moments is not None:
      return Posterior.from_moments(batch.moments)
    return autoencoding.encode_clips(
      self.stage.vae,
      frozen["vae"],
      autoencoding.to_unit_range(batch.frames),
      self.stage.sampling.decode_chunk,
    )

  def made_by_base(
    self, frozen: task.Networks, batch: Batch, rng: task.Rng
  ) -> Float[Array, "b f h w c"]:
    """Latents of what the base stage makes of the first frames and captions.

    They are enlarged as the cascade does it. A stage that is trained to restore
    them learns to correct the base stage, and not only to remove noise.

    Args:
      frozen: weights of the base stage, under `base`, and of its towers.
      batch: clips of as many frames as the base stage makes.
      rng: key of the noise.

    Raises:
      InputError: the data has latents in place of frames.
    """
    if batch.frames is None:
      raise InputError(
        "the base stage needs frames, and the data has only latents; use "
        "shards with frames, or config.diffusion.base_steps=0"
      )
    base = self.base.with_sampling(num_steps=self.base_steps)
    networks = {**frozen, "unet": frozen["base"]}
    b, f, height, width, _ = batch.frames.shape
    frames = autoencoding.to_unit_range(batch.frames)
    first = autoencoding.resize(
      frames[:, :1], base.sampling.size, antialias=True
    )
    sides = (side // base.shrink for side in reversed(base.sampling.size))
    shape = (*sides, base.vae.latent_channels)
    picture = base.encode(networks, first, jnp.zeros((b, 1, *shape)))
    cond = _condition(base, networks, batch, picture)
    rngs = per_row_rngs(rng, batch.index)
    made = base.sample(networks, cond, None, rngs, (b, f, *shape))
    frames = autoencoding.to_unit_range(base.decode(networks, made))
    frames = autoencoding.resize(frames, (width, height))
    shape = (b, f, height // self.stage.shrink, width // self.stage.shrink)
    zeros = jnp.zeros((*shape, self.stage.vae.latent_channels))
    return self.stage.encode(frozen, frames, zeros)

  def sample_picture(
    self, params: Params, frozen: task.Networks, batch: Batch
  ) -> task.Picture:
    """Real clips, and below each a sample under the same conditions."""
    stage, networks = self.stage, {"unet": params, **frozen}
    latents = stage.scaling_factor * self.posterior(frozen, batch).mean
    real = batch.frames
    if real is None:
      real = stage.decode(networks, latents)
    start = latents
    if self.base is not None:
      start = self.made_by_base(frozen, batch, jax.random.key(0))
    cond, null_cond = self.condition(networks, batch, latents), None
    if stage.sampling.guidance_scale != 1:
      null_cond = stage.unconditional(networks, cond, self.negative_ids)
    sampled = stage.sample(
      networks,
      cond,
      null_cond,
      jax.random.split(jax.random.key(0), len(latents)),
      latents.shape,
      guidance_scale=stage.sampling.guidance_scale,
      start=start,
    )
    return task.grid(jnp.stack([real, stage.decode(networks, sampled)], axis=1))

  def exports(self, params: Params, batch: Batch) -> task.Exports:
    return {self.stage.name: (dict(self.config), params)}

  def condition(
    self, networks: task.Networks, batch: Batch, latents: Array
  ) -> Conditioning:
    """What the U-Net takes of a batch beside the noisy latents."""
    return _condition(self.stage, networks, batch, latents)

  def _drop(
    self, rng: task.Rng, frozen: task.Networks, batch: Batch, latents: Array
  ) -> Conditioning:
    """The conditioning, without some of it in some rows; fps always stays."""
    text, image, local, joint = jax.random.split(rng, 4)
    together = drawn_rows(joint, batch.index, self.joint_dropout)

    def drop(rng, probability, values, null):
      alone = drawn_rows(rng, batch.index, probability)
      return replace_rows(together | alone, values, null)

    if self.stage.unet.use_text:
      ids = drop(text, self.text_dropout, batch.token_ids, self.negative_ids)
      batch = dataclasses.replace(batch, token_ids=ids)
    cond = self.condition(frozen, batch, latents)
    nulls = {}
    if cond.image_embeds is not None:
      embeds = drop(image, self.image_dropout, cond.image_embeds, 0.0)
      nulls["image_embeds"] = embeds
    if cond.image_latents is not None:
      picture = drop(local, self.local_dropout, cond.image_latents, 0.0)
      nulls["image_latents"] = picture
    return dataclasses.replace(cond, **nulls)


def _condition(
  stage: Stage, networks: task.Networks, batch: Batch, latents: Array
) -> Conditioning:
  """What the U-Net of a stage takes of a batch; the picture is frame 0."""
  return stage.condition(
    networks,
    token_ids=batch.token_ids,
    clip_images=batch.clip_images,
    image_embeds=batch.image_embeds,
    image_latents=latents[:, 0],
    fps=batch.fps,
  )


def loss_settings(diffusion: Mapping[str, Any]) -> dict[str, Any]:
  """The settings of a config's group `diffusion` that are not the stage's."""
  known = {field.name for field in dataclasses.fields(Diffusion)}
  return {k: v for k, v in diffusion.items() if k not in known}


def motion_weights(
  latents: Float[Array, "b f h w c"], share: float
) -> Float[Array, "b f h w"]:
  """Weights of the loss that favour what differs from the first frame.

  A small object on a still ground is a few hundredths of a clip's latents, and
  as little of its loss. The paper has no such weights.

  Args:
    latents: scaled latents of clips.
    share: part of the weights, from 0 to 1, that is in proportion to the
      difference; the rest is equal for all latents.

  Raises:
    InputError: share is out of range.
  """
  if not 0 <= share <= 1:
    raise InputError(
      f"motion_weight {share} is out of range, in the config; use 0 to 1"
    )
  change = latents - latents[:, :1]
  change = jnp.sqrt(jnp.mean(jnp.square(change), axis=-1))
  mean = jnp.mean(change, axis=(1, 2, 3), keepdims=True)
  return 1 - share + share * change / (mean + _STILL)


def drawn_rows(
  rng: task.Rng, index: Int[Array, "b"], probability: float
) -> Bool[Array, "b"]:
  """Whether each row is among those that a draw from its index selects."""
  draw = jax.vmap(jax.random.uniform)(per_row_rngs(rng, index))
  return draw < probability


def replace_rows(
  rows: Bool[Array, "b"], values: Array, null: Array | float
) -> Array:
  """`values` with `null` in the selected rows."""
  return jnp.where(rows.reshape(-1, *(1,) * (values.ndim - 1)), null, values)


class LatentsMemory:
  """Encodes each clip once, for datasets that are small beside the run.

  The moments are kept as float16 in host memory, under a hash of the pixels.
  """

  def __init__(self, training: Denoising):
    self._frozen = training.frozen
    self._posterior = jax.jit(lambda *args: training.posterior(*args).moments)
    # Not those of the job: each process encodes the rows that it has read.
    self._mesh = make_mesh(devices=jax.local_devices())
    self._known: dict[bytes, np.ndarray] = {}

  def __call__(self, batch: Batch) -> Batch:
    """The batch with its moments."""
    if batch.moments is not None:
      return batch
    keys = [hashlib.blake2b(row.tobytes()).digest() for row in batch.frames]
    if any(key not in self._known for key in keys):
      moments = self._encode(batch).astype(np.float16)
      self._known.update(zip(keys, moments, strict=True))
    rows = np.stack([self._known[key] for key in keys])
    return dataclasses.replace(batch, moments=rows)

  def _encode(self, batch: Batch) -> np.ndarray:
    with jax.set_mesh(self._mesh):
      return np.asarray(self._posterior(self._frozen, batch))
