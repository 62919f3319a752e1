"""One stage of the cascade: its networks, and how they make a clip.

`Stage` is all that decides a compiled program; the weights are arguments of
its methods. Sampling, the training loss and the training's sample picture use
the same `condition` and `denoiser`.
"""

import dataclasses
import functools
import math
import numbers
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Float, Int, Key, UInt8

from i2vgen_jax import autoencoding
from i2vgen_jax.diffusion import sampler, solvers
from i2vgen_jax.diffusion.guidance import classifier_free
from i2vgen_jax.diffusion.losses import offset_noise
from i2vgen_jax.diffusion.sampler import State
from i2vgen_jax.diffusion.schedules import (
  NUM_TRAIN_TIMESTEPS,
  NoiseSchedule,
  make_schedule,
)
from i2vgen_jax.diffusion.shortcuts import Shortcuts, shortened
from i2vgen_jax.diffusion.solvers import Solver
from i2vgen_jax.diffusion.timesteps import ddim_timesteps, spaced_timesteps
from i2vgen_jax.errors import InputError
from i2vgen_jax.memory import check_fits
from i2vgen_jax.sharding import split_clips
from i2vgen_jax.types import Array, Conditioning, Params

STAGES = ("base", "refine")

Progress = Callable[[int], None]

# Latents on a side of the smallest size that is suggested.
_SMALLEST = 8
# The default of XLA computes early what needs no input, and so holds twice the
# memory: 25 GiB in place of 12 for variant (c) at 1280x704.
_CPU_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
# Steps of a solver after which all others are of a kind that was there.
_KINDS_OF_STEP = 3
# A field of each tower, and the field of the U-Net that it must equal.
_SHARED_WIDTHS = {
  "vae": ("latent_channels", "latent_channels"),
  "text_encoder": ("width", "context_dim"),
  "image_encoder": ("projection_dim", "context_dim"),
}


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a stage samples; the group `sampling` of a config.

  Attributes:
    size: (width, height) of the frames in pixels.
    num_frames: number of frames of the clip.
    fps: conditioning fps, and the frame rate of the video file.
    solver: ddim, dpmpp_2m, dpmpp_2m_sde or heun.
    spacing: which timesteps are visited. `ddim`: 981, 961, ..., 1, as the
      public samplers of (a) and (c) do. `trailing`: evenly from the noisiest
      timestep on, right for any number of steps.
    num_steps: number of solver steps.
    guidance_scale: s in uncond + s (cond - uncond); 1 is off.
    guidance_rescale: see `diffusion.guidance`.
    guidance_interval: (lowest, highest) timestep with guidance; see
      `diffusion.shortcuts`, as for `reuse_every`.
    reuse_every: number of evaluations of the U-Net of which the first runs all
      layers; 1 is off.
    negative_prompt: text of the unconditional branch.
    prompt_suffix: text appended to every prompt.
    noise_offset: standard deviation of the offset in the initial noise.
    start_timestep: level to which a low-resolution clip is noised before
      denoising (SDEdit); None starts from pure noise.
    decode_chunk: number of frames that each device decodes at once.
    to_clean: the last DDIM step removes all noise; see `solvers.ddim`.
    reference_start: see `solvers.sdedit_start`.
    black_edge: see `preprocessing.center_crop_wide`.
  """

  size: tuple[int, int]
  num_frames: int
  fps: float
  solver: str = "ddim"
  spacing: str = "ddim"
  num_steps: int = 50
  guidance_scale: float = 9.0
  guidance_rescale: float = 0.0
  guidance_interval: tuple[int, int] = (0, NUM_TRAIN_TIMESTEPS - 1)
  reuse_every: int = 1
  negative_prompt: str = ""
  prompt_suffix: str = ""
  noise_offset: float = 0.0
  start_timestep: int | None = None
  decode_chunk: int = 2
  to_clean: bool = False
  reference_start: bool = False
  black_edge: bool = False

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if not _is_of(value, field.type):
        kind = getattr(field.type, "__name__", field.type)
        if field.name == "size":
          kind = "(width, height) in pixels"
        elif field.name == "guidance_interval":
          kind = "(lowest, highest) timestep"
        raise InputError(f"{field.name} must be {kind}, got {value!r}")
    if self.num_frames < 1:
      raise InputError(f"num_frames must be at least 1, got {self.num_frames}")
    if not 0 < self.fps < math.inf:
      raise InputError(f"fps must be above 0 and finite, got {self.fps}")
    low, high = self.guidance_interval
    if not 0 <= low <= high < NUM_TRAIN_TIMESTEPS:
      raise InputError(
        "guidance_interval must be a lowest and a highest timestep from 0 to "
        f"{NUM_TRAIN_TIMESTEPS - 1}, got {low} and {high}"
      )
    if self.reuse_every < 1:
      raise InputError(
        f"reuse_every must be at least 1, got {self.reuse_every}"
      )
    if not math.isfinite(self.guidance_scale):
      raise InputError(
        f"guidance_scale must be finite, got {self.guidance_scale}; 1 is off"
      )


def _is_of(value: Any, kind: Any) -> bool:
  """Whether a value read from JSON or given by a caller has a field's type."""
  if kind == tuple[int, int]:
    is_pair = isinstance(value, tuple) and len(value) == 2
    return is_pair and all(_is_of(side, int) for side in value)
  if isinstance(value, bool):
    return kind is bool
  numbers_of = {int: numbers.Integral, float: numbers.Real}
  kinds = typing.get_args(kind) or (kind,)
  return isinstance(value, tuple(numbers_of.get(k, k) for k in kinds))


@dataclasses.dataclass(frozen=True)
class Diffusion:
  """What the weights were trained to; part of the group `diffusion`.

  Attributes:
    schedule: linear_sd, cosine or logsnr_cosine_interp.
    zero_terminal_snr: whether the last noise level is pure noise.
    prediction_type: v, eps or x0.
  """

  schedule: str
  zero_terminal_snr: bool
  prediction_type: str


def read_settings(config: Mapping, where: Path | str) -> dict[str, Any]:
  """The groups `diffusion` and `sampling` of a network's config.

  The group `diffusion` also has fields of training, which are passed over.

  Raises:
    InputError: a group, or a field without a default, is missing, a field is
      unknown, or a value is impossible.
  """
  groups = {"diffusion": Diffusion, "sampling": Sampling}
  return {k: _read_group(v, k, config, where) for k, v in groups.items()}


def _read_group(cls: type, group: str, config: Mapping, where: Any) -> Any:
  if not isinstance(config.get(group), Mapping):
    raise InputError(f"no {group!r} in {where}; copy the file again")
  fields = {field.name: field for field in dataclasses.fields(cls)}
  values = dict(config[group])
  if cls is Diffusion:
    values = {name: values[name] for name in fields if name in values}
  if unknown := sorted(values.keys() - fields.keys()):
    raise InputError(
      f"unknown {group} setting {unknown[0]!r} in {where}; known are "
      f"{', '.join(sorted(fields))}"
    )
  for name, field in fields.items():
    if field.default is dataclasses.MISSING and name not in values:
      raise InputError(f"the {group} settings in {where} lack {name!r}; add it")
  # JSON has no tuples.
  values = {
    k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
  }
  try:
    return cls(**values)
  except InputError as e:
    raise InputError(f"{e}, in group {group!r} of {where}; correct it") from e


class Programs(NamedTuple):
  """The compiled programs of a stage.

  Attributes:
    start: conditioning, and the state before the first evaluation.
    advance: one evaluation of the U-Net, with the update after it.
    finish: decoder; None if latents are asked for.
  """

  start: jax.stages.Compiled
  advance: jax.stages.Compiled
  finish: jax.stages.Compiled | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """The networks of one stage, what they were trained to, how to sample.

  A stage has no weights. Where its methods take `params`, they read those of
  the networks that they run, under `unet`, `vae`, `text_encoder` and
  `image_encoder`.

  Attributes:
    name: base or refine.
    unet: I2VGenUNet.
    vae: AutoencoderKL.
    text_encoder: CLIPTextModel; None if the U-Net takes no text.
    image_encoder: CLIPVisionModel; None if the U-Net takes no CLIP vector.
    diffusion: what the U-Net was trained to.
    sampling: how to sample.
    scaling_factor: factor on the autoencoder's latents; 0.18215 for the public
      one.

  Raises:
    InputError: networks that do not fit each other, or settings that the
      stage cannot sample with.
  """

  name: str
  unet: Any
  vae: Any
  text_encoder: Any = None
  image_encoder: Any = None
  diffusion: Diffusion
  sampling: Sampling
  scaling_factor: float

  def __post_init__(self):
    self._check_networks()
    self._check_size()
    _ = self.solver

  def with_sampling(self, **changes: Any) -> "Stage":
    """The stage with other sampling settings."""
    sampling = dataclasses.replace(self.sampling, **changes)
    return dataclasses.replace(self, sampling=sampling)

  # ---- What follows from the settings ----

  @property
  def shrink(self) -> int:
    """Pixels of a frame's side for each latent."""
    return self.vae.shrink

  @property
  def starts_from_clip(self) -> bool:
    """Whether the stage repairs a clip (SDEdit), as a refine stage does."""
    return self.sampling.start_timestep is not None

  @functools.cached_property
  def schedule(self) -> NoiseSchedule:
    """Noise levels that the weights were trained on."""
    d = self.diffusion
    return make_schedule(d.schedule, d.zero_terminal_snr)

  @functools.cached_property
  def solver(self) -> Solver:
    """The table of solver steps.

    Raises:
      InputError: too many steps, or an unknown solver or spacing.
    """
    s = self.sampling
    start = s.start_timestep
    if start is None:
      start = self.schedule.num_train_timesteps - 1
    sde = s.solver == "dpmpp_2m_sde"
    if s.spacing == "ddim":
      timesteps = ddim_timesteps(s.num_steps, start)
    else:
      timesteps = spaced_timesteps(
        s.num_steps, start, spacing=s.spacing, drop_last=sde
      )
    match s.solver:
      case "ddim":
        return solvers.ddim(self.schedule, timesteps, to_clean=s.to_clean)
      case "dpmpp_2m" | "dpmpp_2m_sde":
        return solvers.dpmpp_2m(self.schedule, timesteps, eta=float(sde))
      case "heun":
        return solvers.heun(self.schedule, timesteps)
    raise InputError(
      f"unknown solver {s.solver!r}; use ddim, dpmpp_2m, dpmpp_2m_sde or heun"
    )

  # ---- The networks; traceable ----

  def encode(
    self,
    params: Mapping[str, Params],
    frames: Float[Array, "b f H W 3"],
    noise: Float[Array, "b f h w c"],
  ) -> Float[Array, "b f h w c"]:
    """Scaled latents of clips.

    Args:
      params: weights of the networks.
      frames: pixels in [-1, 1].
      noise: standard normal; selects a sample of the posterior, as all public
        code does.
    """
    posterior = autoencoding.encode_clips(
      self.vae, params["vae"], frames, self.sampling.decode_chunk
    )
    return self.scaling_factor * posterior.sample(noise)

  def condition(
    self,
    params: Mapping[str, Params],
    *,
    token_ids: Int[Array, "b n"] | None = None,
    clip_images: Float[Array, "b s s 3"] | None = None,
    image_embeds: Float[Array, "b e"] | None = None,
    image_latents: Float[Array, "b h w c"] | None = None,
    fps: Float[Array, "b"] | None = None,
  ) -> Conditioning:
    """What the U-Net takes of the text, the picture and the frame rate.

    Args:
      params: weights of the networks.
      token_ids: of the prompts.
      clip_images: CLIP views of the pictures.
      image_embeds: CLIP vectors in place of the views, if known already.
      image_latents: scaled latents of the pictures.
      fps: conditioning fps of each clip.
    """
    context = embeds = None
    if self.unet.use_text:
      context = self._text(params, token_ids)
    if self.unet.use_image_embeds:
      embeds = image_embeds
      if embeds is None:
        tower = {"params": params["image_encoder"]}
        embeds = self.image_encoder.apply(tower, clip_images)
      embeds = embeds.astype(jnp.float32)
    return Conditioning(
      text_context=context,
      image_embeds=embeds,
      image_latents=image_latents if self.unet.local_image != "none" else None,
      fps=fps if self.unet.use_fps else None,
    )

  def unconditional(
    self,
    params: Mapping[str, Params],
    cond: Conditioning,
    negative_ids: Int[Array, "1 n"] | None,
  ) -> Conditioning:
    """The unconditional branch of guidance, as in public variant (c).

    The text becomes the negative prompt and the CLIP vector zero, and with it
    that of G.Enc. The picture's latents, with D.Enc, and fps stay, so that
    guidance cannot push off them.
    """
    context, embeds = cond.text_context, cond.image_embeds
    if context is not None:
      context = jnp.broadcast_to(
        self._text(params, negative_ids), context.shape
      )
    return dataclasses.replace(
      cond,
      text_context=context,
      image_embeds=None if embeds is None else jnp.zeros_like(embeds),
    )

  def denoiser(
    self, params: Mapping[str, Params], **kwargs: Any
  ) -> Callable[[Array, Array, Conditioning], Array]:
    """The U-Net as the function (xt, t, cond) -> output that diffusion takes.

    Args:
      params: weights of the networks.
      **kwargs: for the U-Net's `apply`, such as the rngs of dropout.
    """

    def denoise_fn(xt: Array, t: Array, cond: Conditioning) -> Array:
      weights = {"params": params["unet"]}
      return self.unet.apply(
        weights, split_clips(xt), t, **vars(cond), **kwargs
      )

    return denoise_fn

  def sample(
    self,
    params: Mapping[str, Params],
    cond: Conditioning,
    null_cond: Conditioning | None,
    rngs: Key[Array, "b"],
    latents_shape: tuple[int, ...],
    *,
    guidance_scale: float | Float[Array, ""] = 1.0,
    start: Float[Array, "b f h w c"] | None = None,
  ) -> Float[Array, "b f h w c"]:
    """Scaled latents of new clips.

    Args:
      params: weights of the networks.
      cond: conditioning of every clip.
      null_cond: see `unconditional`; None samples without guidance.
      rngs: one key per clip, for all of its noise.
      latents_shape: (b, f, h, w, c) of the result.
      guidance_scale: s in uncond + s (cond - uncond).
      start: scaled latents of the clips that a refine stage repairs.

    Raises:
      InputError: a refine stage lacks the clips to start from.
    """
    state, rngs = self._first_state(cond, null_cond, rngs, latents_shape, start)
    return sampler.sample(
      self._guided(params, cond, null_cond, guidance_scale),
      self.solver,
      state.x,
      rngs,
      prediction_type=self.diffusion.prediction_type,
      features=state.features,
      branches=self._shortcuts(null_cond is not None).branches,
    )

  def _first_state(
    self,
    cond: Conditioning,
    null_cond: Conditioning | None,
    rngs: Key[Array, "b"],
    latents_shape: tuple[int, ...],
    start: Float[Array, "b f h w c"] | None,
  ) -> tuple[State, Key[Array, "b"]]:
    """The state before the first evaluation, and the keys of later noise."""
    keys = jax.vmap(jax.random.split)(rngs)
    s = self.sampling
    xt = initial_noise(keys[:, 0], latents_shape[1:], s.noise_offset)
    if self.starts_from_clip:
      if start is None:
        raise InputError("a refine stage starts from a clip; pass start")
      xt = solvers.sdedit_start(
        start,
        xt,
        self.schedule,
        s.start_timestep,
        reference_scale=s.reference_start,
      )
    features = None
    if self._shortcuts(null_cond is not None).shortens:
      # Zeros in the place of those of an earlier evaluation.
      branches = 1 if null_cond is None else 2
      shape = (branches * len(xt), *xt.shape[1:-1], self.unet.block_channels[0])
      features = jnp.zeros(shape, self.unet.dtype or jnp.float32)
    return State.of(xt, features), keys[:, 1]

  def _shortcuts(self, guided: bool) -> Shortcuts:
    s = self.sampling
    interval = s.guidance_interval if guided else None
    return Shortcuts.of(self.solver.timesteps, interval, s.reuse_every)

  def _guided(
    self,
    params: Mapping[str, Params],
    cond: Conditioning,
    null_cond: Conditioning | None,
    guidance_scale: float | Float[Array, ""],
  ) -> Callable[..., Any]:
    """The function that the sampler evaluates."""
    guidance = cond, null_cond, guidance_scale, self.sampling.guidance_rescale
    shortcuts = self._shortcuts(null_cond is not None)
    if not shortcuts.shortens:
      return classifier_free(self.denoiser(params), *guidance)
    weights = {"params": params["unet"]}

    def network(xt, t, cond, features):
      given = vars(cond) | {"features": features, "with_features": True}
      return self.unet.apply(weights, split_clips(xt), t, **given)

    return shortened(network, shortcuts, *guidance)

  def decode(
    self, params: Mapping[str, Params], latents: Float[Array, "b f h w c"]
  ) -> UInt8[Array, "b f H W 3"]:
    """Pixels of scaled latents."""
    frames = autoencoding.decode_clips(
      self.vae,
      params["vae"],
      latents / self.scaling_factor,
      self.sampling.decode_chunk,
    )
    return autoencoding.to_pixels(frames)

  def generate(
    self,
    params: Mapping[str, Params],
    rngs: Key[Array, "b"],
    *,
    decode: bool = True,
    progress: Progress | None = None,
    **inputs: Array,
  ) -> Array:
    """Clips, from pixels and tokens; `compile` says how.

    Args:
      params: weights of the networks.
      rngs: one key per clip.
      decode: False returns the scaled latents, float32[b f h w c].
      progress: called with the number of denoiser evaluations done.
      **inputs: all of these.
        frames: uint8[b k h w 3], one picture for each clip, or the clips that
          a refine stage repairs; stretched to the size of the stage.
        clip_images: float32[b s s 3], CLIP views of the pictures.
        token_ids: int32[b n], of the prompts.
        negative_ids: int32[1 n], of the negative prompt.

    Raises:
      InputError: a program needs more memory than is free.
    """
    programs = self.compile(params, rngs, decode=decode, **inputs)
    s, unet = self.sampling, {"unet": params["unet"]}
    scale = np.float32(s.guidance_scale)
    state, *rest = programs.start(
      dict(params), rngs, np.float32(s.fps), **inputs
    )
    for done, entry in enumerate(self._entries(), 1):
      state = programs.advance(unet, scale, entry, state, *rest)
      if progress is not None:
        jax.block_until_ready(state.x)
        progress(done)
    if not decode:
      return state.x
    return programs.finish({"vae": params["vae"]}, state.x)

  def compile(
    self,
    params: Mapping[str, Params],
    rngs: Key[Array, "b"] | jax.ShapeDtypeStruct,
    *,
    decode: bool = True,
    compile_fn: Callable[..., Any] | None = None,
    **inputs: Array | jax.ShapeDtypeStruct,
  ) -> Programs:
    """The programs of `generate` for inputs of these shapes.

    Other values of fps, guidance scale and prompts, another number of steps
    (from 3 on, without shortcuts), and a second call, compile nothing.

    Args:
      params: see `generate`, as for the rest. Abstract arrays will do, as for
        the inputs.
      compile_fn: called with a traced program and its arguments in place of
        compiling it for the devices that are here.

    Raises:
      InputError: a program needs more memory than is free.
    """
    sampler.check_prediction(self.solver, self.diffusion.prediction_type)
    # Without what is an argument of the programs.
    stage = self.with_sampling(
      fps=1.0, guidance_scale=1.0, negative_prompt="", prompt_suffix=""
    )
    guided = self.sampling.guidance_scale != 1
    if not self._shortcuts(guided).shortens:
      # The solver's steps are arguments, too; these have all its kinds of step.
      stage = stage.with_sampling(
        num_steps=min(_KINDS_OF_STEP, self.sampling.num_steps),
        guidance_interval=Sampling.guidance_interval,
        reuse_every=1,
      )

    def compiled(jitted: Any, *args: Any, **kwargs: Any) -> Any:
      traced = jitted.trace(*args, **kwargs, stage=stage)
      if compile_fn is not None:
        return compile_fn(traced, args)
      on_cpu = jax.default_backend() == "cpu"
      program = traced.lower().compile(_CPU_OPTIONS if on_cpu else None)
      check_fits(program, args, self._what_fits)
      return program

    scalar = np.float32(0)
    start = compiled(
      _start, dict(params), rngs, scalar, **inputs, guided=guided
    )
    state, *rest = jax.tree.map(_placed, start.out_info, start.output_shardings)
    unet, vae = ({name: params[name]} for name in ("unet", "vae"))
    entry = self._entries()[0]
    advance = compiled(_advance, unet, scalar, entry, state, *rest)
    finish = compiled(_decode, vae, state.x) if decode else None
    return Programs(start, advance, finish)

  def _entries(self) -> list[tuple[Solver, np.int32, np.int32]]:
    """Coefficients, number and branch of each evaluation."""
    shortcuts = self._shortcuts(self.sampling.guidance_scale != 1)
    numbers = np.arange(self.solver.num_evaluations, dtype=np.int32)
    coefficients = map(Solver, *self.solver)
    return [*zip(coefficients, numbers, shortcuts.branches, strict=True)]

  # ---- Checks ----

  def _what_fits(self, share: float) -> str:
    """Advice where only a share of the needed memory is free.

    Most arrays grow with the number of pixels.
    """
    width, height = self.sampling.size
    count = self.sampling.num_frames
    share *= 0.9
    options = []
    if fewer := int(count * share):
      options.append(f"{fewer} frames of {width}x{height}")
    scale = share**0.5 / self.shrink
    near = self.unet.nearest_size(width * scale, height * scale)
    if min(near) >= _SMALLEST:
      smaller = "x".join(str(self.shrink * side) for side in near)
      options.append(f"{count} frames of {smaller}")
    if not options:
      return "choose a much smaller size"
    return f"stage {self.name} has room for about {' or '.join(options)}"

  def _text(self, params: Mapping[str, Params], ids: Array) -> Array:
    tower = {"params": params["text_encoder"]}
    return self.text_encoder.apply(tower, ids).context

  def _check_networks(self) -> None:
    for tower, (theirs, ours) in _SHARED_WIDTHS.items():
      module = getattr(self, tower)
      if module is None:
        continue
      have, need = getattr(module, theirs), getattr(self.unet, ours)
      if have != need:
        raise InputError(
          f"weights of another variant: {tower} has {theirs} {have} where the "
          f"U-Net has {ours} {need}; take both from one cascade"
        )
    unet, does = self.unet, None
    if self.name == "base" and self.starts_from_clip:
      does, other = "starts from a clip", "refine"
    takes_picture = unet.use_image_embeds or unet.local_image != "none"
    if self.name == "refine" and takes_picture:
      does, other = "takes a picture", "base"
    if does:
      raise InputError(
        f"weights of another variant: this {self.name} stage {does}, as only "
        f"a {other} stage does; use those of a {self.name} stage"
      )

  def _check_size(self) -> None:
    size = self.sampling.size
    latents = (side / self.shrink for side in size)
    near = tuple(self.shrink * n for n in self.unet.nearest_size(*latents))
    if near != size:
      raise InputError(
        "size {}x{} does not fit stage {}, whose sides are multiples of {}; "
        "the nearest that fits is {}x{}".format(
          *size, self.name, self.shrink, *near
        )
      )


@functools.partial(jax.jit, static_argnames=("stage", "guided"))
def _start(
  params,
  rngs,
  fps,
  *,
  frames,
  clip_images,
  token_ids,
  negative_ids,
  stage: Stage,
  guided: bool,
):
  """State, keys and conditions of both branches, from pixels and tokens."""
  b, k = frames.shape[:2]
  width, height = stage.sampling.size
  frames = autoencoding.resize(
    autoencoding.to_unit_range(frames), stage.sampling.size
  )
  sides = height // stage.shrink, width // stage.shrink
  latent = (*sides, stage.vae.latent_channels)
  keys = jax.vmap(jax.random.split)(rngs)
  given = stage.encode(params, frames, initial_noise(keys[:, 0], (k, *latent)))
  cond = stage.condition(
    params,
    token_ids=token_ids,
    clip_images=clip_images,
    image_latents=given[:, 0],
    fps=jnp.full(b, fps),
  )
  null_cond = None
  if guided:
    null_cond = stage.unconditional(params, cond, negative_ids)
  state, rngs = stage._first_state(
    cond,
    null_cond,
    keys[:, 1],
    (b, stage.sampling.num_frames, *latent),
    given if stage.starts_from_clip else None,
  )
  return jax.tree.map(split_clips, state), rngs, cond, null_cond


@functools.partial(jax.jit, static_argnames="stage", donate_argnames="state")
def _advance(params, scale, entry, state, rngs, cond, null_cond, *, stage):
  """The state after the evaluation of an entry."""
  state = sampler.step(
    stage._guided(params, cond, null_cond, scale),
    *entry,
    state,
    rngs,
    stage.diffusion.prediction_type,
    bool(np.any(stage.solver.noise)),
  )
  return jax.tree.map(split_clips, state)


def _placed(info: Any, sharding: Any) -> jax.ShapeDtypeStruct:
  """The result of a program before it has run; a mesh splits some."""
  if not isinstance(sharding, NamedSharding):
    sharding = None
  return jax.ShapeDtypeStruct(info.shape, info.dtype, sharding=sharding)


@functools.partial(jax.jit, static_argnames="stage")
def _decode(params, latents, *, stage):
  return stage.decode(params, latents)


def initial_noise(
  rngs: Key[Array, "b"], shape: tuple[int, ...], offset: float = 0.0
) -> Float[Array, "b f h w c"]:
  """Initial noise; a row's does not depend on how many rows there are."""
  return jax.vmap(lambda rng: offset_noise(rng, shape, offset))(rngs)
