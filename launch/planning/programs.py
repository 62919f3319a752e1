"""The programs of a config on a mesh, as training and sampling run them."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from i2vgen_jax import interop, sharding
from i2vgen_jax.models import build
from i2vgen_jax.models.clip import CLIPTextModel, CLIPVisionModel
from i2vgen_jax.models.vae import AutoencoderKL
from i2vgen_jax.stage import Stage, read_settings
from i2vgen_jax.training.denoising import Denoising, loss_settings
from i2vgen_jax.training.lora import PRETRAINED, LoraDenoising
from i2vgen_jax.training.optimizer import make_optimizer
from i2vgen_jax.training.state import abstract_state
from i2vgen_jax.training.step import make_train_step, step_settings
from i2vgen_jax.types import Batch

# The networks beside the U-Nets of all public weights.
_TOWERS = {
  "vae": AutoencoderKL(),
  "text_encoder": CLIPTextModel(),
  "image_encoder": CLIPVisionModel(),
}


@dataclasses.dataclass(frozen=True)
class Program:
  """A traced program.

  Attributes:
    name: start, denoise or decode of sampling; train.
    traced: what is to be compiled.
    holds: abstract arrays in device memory while it runs, by kind. Some are no
      arguments, such as the U-Net's weights while the decoder runs.
    times: how often a video or a training step runs it.
  """

  name: str
  traced: jax.stages.Traced
  holds: Mapping[str, Any]
  times: int


# Compiles a program; returns shapes and shardings of its results.
Compile = Callable[[Program], Any]


def make_stage(
  config: ConfigDict, frozen: Path | None, dtype: Any, **sampling: Any
) -> Stage:
  """The stage of a config, without weights.

  Args:
    config: of a training with the groups unet, diffusion and sampling.
    frozen: cascade folder with the other networks; by default they are those of
      all public weights.
    dtype: of the computation in all networks.
    **sampling: changed settings; None leaves one as it is.

  Raises:
    InputError: settings or networks that do not fit, or no networks in
      `frozen`.
  """
  groups = {k: config[k].to_dict() for k in ("diffusion", "sampling")}
  unet = build.make_module(
    config.component, config.unet.to_dict(), "config.unet"
  )
  known = _TOWERS
  if frozen is not None:
    stored = interop.open_weights(frozen).networks
    known = {name: network.module for name, network in stored.items()}
  towers = {name: known[name] for name in build.towers_of(unet)}
  stage = Stage(
    name=config.component,
    # The value of the factor changes no program.
    scaling_factor=1.0,
    unet=unet.clone(dtype=dtype, remat=False),
    **{name: tower.clone(dtype=dtype) for name, tower in towers.items()},
    **read_settings(groups, "the config"),
  )
  changes = {k: v for k, v in sampling.items() if v is not None}
  return stage.with_sampling(**changes)


def sampling_programs(
  stage: Stage, mesh: Mesh, given_size: tuple[int, int], compile_fn: Compile
) -> None:
  """Compiles what one video needs, with weights in bfloat16.

  Args:
    stage: see `make_stage`.
    mesh: devices of a topology.
    given_size: (width, height) of the picture or clip that the stage is given.
    compile_fn: is called with start, denoise and decode.
  """
  whole = sharding.replicated(mesh)

  def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

  s = stage.sampling
  params = {
    name: _weights(module, jnp.bfloat16, mesh)
    for name, module in networks_of(stage).items()
  }
  width, height = given_size
  count = s.num_frames if stage.starts_from_clip else 1
  views, tokens = (1, 0, 0, 3), _num_tokens(stage)
  if stage.image_encoder is not None:
    side = stage.image_encoder.image_size
    views = (1, side, side, 3)
  inputs = {
    "frames": array((1, count, height, width, 3), jnp.uint8),
    "clip_images": array(views, jnp.float32),
    "token_ids": array((1, tokens), jnp.int32),
    "negative_ids": array((1, tokens), jnp.int32),
  }
  rngs = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
  rngs = rngs.update(sharding=whole)
  towers = {k: v for k, v in params.items() if k != "unet"}
  programs = iter(
    (
      ("start", {"U-Net": params["unet"], "towers": towers}, 1),
      ("denoise", {"U-Net": params["unet"]}, stage.solver.num_evaluations),
      ("decode", {"U-Net": params["unet"], "towers": params["vae"]}, 1),
    )
  )

  def compiled(traced: jax.stages.Traced, *_: Any) -> Any:
    name, holds, times = next(programs)
    return compile_fn(Program(name, traced, holds, times))

  with jax.set_mesh(mesh):
    stage.compile(params, rngs, compile_fn=compiled, **inputs)


def train_programs(
  config: ConfigDict, stage: Stage, mesh: Mesh, num_frames: int
) -> tuple[Program, jax.stages.Traced]:
  """A training step of a config, and the part of it that encodes pixels.

  Args:
    config: of a training.
    stage: its stage.
    mesh: devices of a topology.
    num_frames: number of frames of each clip.

  Raises:
    InputError: the batch or the frames do not divide over the mesh.
  """
  c = config.train
  networks = networks_of(stage)
  unet = networks.pop("unet")
  frozen = {
    name: _weights(module, stage.unet.dtype, mesh)
    for name, module in networks.items()
  }
  if config.objective == "lora":
    dtype = jnp.dtype(config.lora.pretrained_dtype)
    frozen[PRETRAINED] = _weights(unet, dtype, mesh)
  task = make_task(config, stage, mesh, frozen)
  tx = make_optimizer(c)
  state = abstract_state(task.init_params, tx, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  batch = _batch(stage, tuple(config.data.size), num_frames, c.batch_size)
  places = sharding.batch_shardings(mesh, batch)
  sharding.check_parts(mesh, c.batch_size, c.accumulate)
  batch = jax.tree.map(lambda x, s: x.update(sharding=s), batch, places)
  step = make_train_step(
    shardings, loss_fn=task.loss, tx=tx, **step_settings(c)
  )

  def encode(frozen: Any, batch: Batch) -> Any:
    latents = task.posterior(frozen, batch).mean
    return latents, task.condition(frozen, batch, latents)

  with jax.set_mesh(mesh):
    traced = step.trace(state, frozen, batch)
    encoder = jax.jit(encode).trace(frozen, batch)
  holds = {
    "parameters": state.params,
    "average": state.ema_params,
    "optimizer": state.opt_state,
    "towers": {name: frozen[name] for name in networks},
    "batch": batch,
  }
  if PRETRAINED in frozen:
    holds["U-Net"] = frozen[PRETRAINED]
  return Program("train", traced, holds, 1), encoder


def make_task(
  config: ConfigDict, stage: Stage, mesh: Mesh, frozen: Any
) -> Denoising:
  """The task of a config, with weights from elsewhere.

  Args:
    config: of a training.
    stage: its stage.
    mesh: devices of the training.
    frozen: weights of the networks that are not trained, or their shapes.
  """
  kind, settings = Denoising, loss_settings(config.diffusion.to_dict())
  if config.objective == "lora":
    kind = LoraDenoising
    settings |= {"rank": config.lora.rank, "alpha": config.lora.alpha}
  return kind(
    stage=stage,
    mesh=mesh,
    negative_ids=np.zeros((1, _num_tokens(stage)), np.int32),
    frozen=frozen,
    **settings,
  )


def networks_of(stage: Stage) -> dict[str, Any]:
  """The modules of a stage by the names of their weights."""
  names = ("unet", "vae", "text_encoder", "image_encoder")
  modules = {name: getattr(stage, name) for name in names}
  return {name: m for name, m in modules.items() if m is not None}


def _num_tokens(stage: Stage) -> int:
  """Tokens of a prompt; a stage without text is given one, which is unused."""
  return 1 if stage.text_encoder is None else stage.text_encoder.max_length


def _weights(module: Any, dtype: Any, mesh: Mesh) -> Any:
  shapes = build.abstract_params(module)
  places = sharding.param_shardings(shapes, mesh)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=s),
    shapes,
    places,
  )


def _batch(
  stage: Stage, size: tuple[int, int], num_frames: int, rows: int
) -> Batch:
  """The shapes of a batch of pixels."""
  width, height = size
  token_ids = clip_images = None
  if stage.text_encoder is not None:
    token_ids = jax.ShapeDtypeStruct((rows, _num_tokens(stage)), jnp.int32)
  if stage.image_encoder is not None:
    side = stage.image_encoder.image_size
    clip_images = jax.ShapeDtypeStruct((rows, side, side, 3), jnp.float32)
  return Batch(
    fps=jax.ShapeDtypeStruct((rows,), jnp.float32),
    index=jax.ShapeDtypeStruct((rows,), jnp.int32),
    token_ids=token_ids,
    frames=jax.ShapeDtypeStruct(
      (rows, num_frames, height, width, 3), jnp.uint8
    ),
    clip_images=clip_images,
  )
