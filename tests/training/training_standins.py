"""Networks of a few hundred weights, and tasks and short runs of them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from i2vgen_jax import sharding
from i2vgen_jax.models.clip import TextOutput
from i2vgen_jax.models.vae import Posterior
from i2vgen_jax.stage import Diffusion, Sampling, Stage
from i2vgen_jax.training.denoising import Denoising
from i2vgen_jax.training.optimizer import make_optimizer
from i2vgen_jax.training.state import abstract_state
from i2vgen_jax.training.step import make_train_step
from i2vgen_jax.training.task import Task
from i2vgen_jax.types import Batch

WIDTH = 8
VOCABULARY = 50


class UNet(nn.Module):
  """Mixes pixels, frames and all conditions; paths are as in `I2VGenUNet`."""

  use_text: bool = True
  use_image_embeds: bool = True
  use_fps: bool = True
  local_image: str = "concat"
  hidden: int = 16
  dropout: float = 0.1
  latent_channels: int = 4
  context_dim: int = WIDTH

  @nn.compact
  def __call__(
    self,
    latents,
    timesteps,
    *,
    fps=None,
    image_latents=None,
    image_embeds=None,
    text_context=None,
    deterministic=True,
  ):
    parts = [timesteps[:, None] / 1000.0]
    if self.use_fps:
      parts.append(fps[:, None])
    if self.use_image_embeds:
      parts.append(image_embeds)
    if self.use_text:
      parts.append(text_context.mean(axis=1))
    bias = nn.Dense(self.hidden, name="time_embedding")(
      jnp.concatenate(parts, axis=-1)
    )
    x = nn.Conv(self.hidden, (3, 3), name="conv_in")(latents)
    if self.local_image != "none":
      picture = nn.Conv(self.hidden, (3, 3), name="local_image")(image_latents)
      x = x + picture[:, None]
    x = nn.silu(x + bias[:, None, None, None])
    # Attention over frames, so that a split of them must communicate.
    x = x + nn.Dense(self.hidden, name="temporal_in")(
      x - x.mean(axis=1, keepdims=True)
    )
    x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
    return nn.Conv(latents.shape[-1], (3, 3), name="conv_out")(x)

  def nearest_size(self, width, height):
    return round(width), round(height)


class VAE(nn.Module):
  """One convolution over blocks of 2x2 pixels, and its transpose."""

  latent_channels: int = 4
  shrink: int = 2

  def setup(self):
    self.down = nn.Conv(2 * self.latent_channels, (2, 2), strides=2)
    self.up = nn.ConvTranspose(3, (2, 2), strides=(2, 2))

  def __call__(self, frames):
    return self.decode(self.encode(frames).mean)

  def encode(self, frames):
    mean, logvar = jnp.split(self.down(frames), 2, axis=-1)
    return Posterior(mean, logvar)

  def decode(self, latents):
    return self.up(latents)


class TextTower(nn.Module):
  width: int = WIDTH

  @nn.compact
  def __call__(self, token_ids):
    context = nn.Embed(VOCABULARY, WIDTH, name="token_embedding")(token_ids)
    return TextOutput(context=context, pooled=context.mean(axis=1))


class ImageTower(nn.Module):
  projection_dim: int = WIDTH

  @nn.compact
  def __call__(self, images):
    flat = images.reshape(images.shape[0], -1)
    return nn.Dense(WIDTH, name="projection")(flat)


def make_batch(start: int, size: int = 8, num_frames: int = 4) -> Batch:
  """Rows number start, start + 1, ...; each row depends on its number alone."""
  rows = [np.random.default_rng(start + i) for i in range(size)]

  def stack(draw):
    return np.stack([draw(rng) for rng in rows])

  return Batch(
    frames=stack(
      lambda rng: rng.integers(0, 256, (num_frames, 8, 8, 3), np.uint8)
    ),
    clip_images=stack(lambda rng: rng.normal(size=(4, 4, 3))).astype("f4"),
    token_ids=stack(lambda rng: rng.integers(0, VOCABULARY, 5, np.int32)),
    fps=stack(lambda rng: rng.integers(1, 9)).astype(np.float32),
    index=np.arange(start, start + size, dtype=np.int32),
  )


@functools.cache
def make_frozen() -> dict:
  """Random weights of the frozen networks."""
  batch = make_batch(0, size=1)
  modules = {
    "vae": (VAE(), jnp.zeros((1, 8, 8, 3))),
    "text_encoder": (TextTower(), batch.token_ids),
    "image_encoder": (ImageTower(), batch.clip_images),
  }
  return {
    name: random_like(module.init, example, seed=7 + i)
    for i, (name, (module, example)) in enumerate(modules.items())
  }


def random_like(init, *args, seed=0, scale=0.3):
  """Random weights in the shapes of a module's `init`, which is not run."""
  shapes = jax.eval_shape(lambda: init(jax.random.key(0), *args)["params"])
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: rng.normal(0, scale, leaf.shape).astype(np.float32), shapes
  )


def make_stage(unet=None) -> Stage:
  """A base stage of stand-ins."""
  return Stage(
    name="base",
    unet=unet or UNet(),
    vae=VAE(),
    text_encoder=TextTower(),
    image_encoder=ImageTower(),
    diffusion=Diffusion("cosine", True, "v"),
    sampling=Sampling(
      size=(8, 8), num_frames=4, fps=8.0, num_steps=2, decode_chunk=2
    ),
    scaling_factor=0.5,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StandInDenoising(Denoising):
  """`Denoising` with other inputs to `init`."""

  def init_params(self, rng):
    unet = self.stage.unet
    latents = jnp.zeros((1, 2, 4, 4, 4))
    conditions = {}
    if unet.use_text:
      conditions["text_context"] = jnp.zeros((1, 5, WIDTH))
    if unet.use_image_embeds:
      conditions["image_embeds"] = jnp.zeros((1, WIDTH))
    if unet.use_fps:
      conditions["fps"] = jnp.zeros(1)
    if unet.local_image != "none":
      conditions["image_latents"] = latents[:, 0]
    return unet.init(rng, latents, jnp.zeros(1), **conditions)["params"]


def make_denoising(mesh=None, unet=None, **changes) -> Denoising:
  """Training of a stand-in U-Net; by default on one device."""
  return StandInDenoising(
    stage=make_stage(unet),
    mesh=mesh or one_device(),
    negative_ids=np.zeros((1, 5), np.int32),
    **{"frozen": make_frozen(), "text_dropout": 0.3, "image_dropout": 0.3}
    | changes,
  )


def one_device():
  """A mesh of the first device."""
  return sharding.make_mesh(devices=jax.devices()[:1])


def place(tree, mesh):
  """Weights on a mesh."""
  return jax.device_put(tree, sharding.param_shardings(tree, mesh))


def compiled_step(task, tx, mesh, **settings):
  """The compiled training step of a task, and the shardings of its state."""
  abstract = abstract_state(task.init_params, tx, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  step = make_train_step(
    shardings, loss_fn=task.loss, tx=tx, ema_decay=0.9, seed=0, **settings
  )
  return step, shardings


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallTask(Task):
  """A task of plain functions; see `Task`."""

  init: Callable
  loss_fn: Callable
  picture_fn: Any = None

  def init_params(self, rng):
    return self.init(rng)

  def loss(self, params, frozen, batch, rng):
    return self.loss_fn(params, frozen, batch, rng)

  def held_out_loss(self, params, frozen, batch, rng):
    loss, _ = self.loss(params, frozen, batch, rng)
    # The first row is a part of its own.
    return loss, {"first": jnp.stack([2 * loss, jnp.float32(1)])}

  def sample_picture(self, params, frozen, batch):
    return self.picture_fn and self.picture_fn(params)


def make_config(**changes) -> ml_collections.ConfigDict:
  """A short run; any field of its group `train` can be changed."""
  train = {
    "num_steps": 4,
    "batch_size": 8,
    "accumulate": 1,
    "seed": 0,
    "optimizer": "adamw",
    "learning_rate": 1e-2,
    "warmup_steps": 0,
    "decay": "constant",
    "beta2": 0.999,
    "weight_decay": 0.01,
    "grad_clip": 1.0,
    "spatial_grad_scale": 1.0,
    "ema_decay": 0.9,
    "log_every": 2,
    "checkpoint_every": 2,
    "sample_every": 2,
    "keep_checkpoints": 3,
    "keep_every": 0,
    "max_rollbacks": 0,
    "stall_timeout": 0,
    "wandb": None,
  }
  return ml_collections.ConfigDict({"train": train | changes})


def make_tx(**changes):
  """An optimizer without weight decay and clipping, unless changed."""
  plain = {"weight_decay": 0.0, "grad_clip": None}
  return make_optimizer(make_config(**plain | changes).train)
