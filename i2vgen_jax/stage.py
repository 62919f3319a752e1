"""One stage of the cascade: how its U-Net is sampled."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from i2vgen_jax import encode
from i2vgen_jax.diffusion import solvers
from i2vgen_jax.diffusion.guidance import classifier_free
from i2vgen_jax.diffusion.losses import offset_noise, per_row_rngs
from i2vgen_jax.diffusion.sampler import sample
from i2vgen_jax.diffusion.schedules import NoiseSchedule, make_schedule
from i2vgen_jax.diffusion.solvers import Solver
from i2vgen_jax.diffusion.timesteps import ddim_timesteps, spaced_timesteps
from i2vgen_jax.errors import InputError
from i2vgen_jax.types import Array, Conditioning, Params


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a stage samples; the group `sampling` of a config.

  Attributes:
    size: (width, height) of the frames in pixels.
    num_frames: frames of the clip.
    fps: the rate that the network is told; the file's rate too.
    solver: ddim, dpmpp_2m, dpmpp_2m_sde or heun.
    spacing: which timesteps are visited. `ddim`: 981, 961, ..., 1, as the
      public samplers of (a) and (c) do. `trailing`: evenly from the noisiest
      on, right for any number of steps.
    num_steps: steps of the solver.
    guidance_scale: s in uncond + s (cond - uncond); 1 is off.
    guidance_rescale: see `diffusion.guidance`.
    negative_prompt: text of the unconditional branch.
    prompt_suffix: appended to every prompt.
    noise_offset: standard deviation of the offset in the first noise.
    start_timestep: level to which a low-resolution clip is noised before
      denoising (SDEdit); None starts from pure noise.
    decode_chunk: frames of a clip that are decoded at once.
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
  negative_prompt: str = ""
  prompt_suffix: str = ""
  noise_offset: float = 0.0
  start_timestep: int | None = None
  decode_chunk: int = 2
  to_clean: bool = False
  reference_start: bool = False
  black_edge: bool = False

  @classmethod
  def from_config(cls, values: Mapping[str, Any]) -> "Settings":
    """Settings of a stage from its `config.json`.

    Raises:
      InputError: an unknown setting, or one without default is missing.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := sorted(values.keys() - fields):
      raise InputError(
        f"unknown sampling setting {unknown[0]!r}; known are "
        f"{', '.join(sorted(fields))}"
      )
    for name, field in fields.items():
      if field.default is dataclasses.MISSING and name not in values:
        raise InputError(f"the sampling settings lack {name!r}; add it")
    return cls(**{**values, "size": tuple(values["size"])})


@dataclasses.dataclass(frozen=True)
class Diffusion:
  """What the weights were trained to; part of the group `diffusion`.

  Attributes:
    schedule: linear_sd, cosine or logsnr_cosine_interp.
    zero_terminal_snr: whether its last level is pure noise.
    prediction_type: v, eps or x0.
  """

  schedule: str
  zero_terminal_snr: bool
  prediction_type: str

  @classmethod
  def from_config(cls, values: Mapping[str, Any]) -> "Diffusion":
    """From the group `diffusion` of a config, which training has more of.

    Raises:
      InputError: one of them is missing.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    for name in names:
      if name not in values:
        raise InputError(f"the diffusion settings lack {name!r}; add it")
    return cls(**{name: values[name] for name in names})

  def make_schedule(self) -> NoiseSchedule:
    """The noise levels."""
    return make_schedule(self.schedule, self.zero_terminal_snr)

  def make_solver(self, settings: Settings) -> Solver:
    """The table of steps.

    Raises:
      InputError: steps out of range, or an unknown solver or spacing.
    """
    schedule = self.make_schedule()
    last = schedule.num_train_timesteps - 1
    start = settings.start_timestep
    start = last if start is None else start
    sde = settings.solver == "dpmpp_2m_sde"
    if settings.spacing == "ddim":
      timesteps = ddim_timesteps(settings.num_steps, start)
    else:
      timesteps = spaced_timesteps(
        settings.num_steps, start, spacing=settings.spacing, drop_last=sde
      )
    match settings.solver:
      case "ddim":
        return solvers.ddim(schedule, timesteps, to_clean=settings.to_clean)
      case "dpmpp_2m" | "dpmpp_2m_sde":
        return solvers.dpmpp_2m(schedule, timesteps, eta=float(sde))
      case "heun":
        return solvers.heun(schedule, timesteps)
    raise InputError(
      f"unknown solver {settings.solver!r}; use ddim, dpmpp_2m, dpmpp_2m_sde "
      "or heun"
    )


def sample_latents(
  unet: Any,
  params: Params,
  diffusion: Diffusion,
  settings: Settings,
  cond: Conditioning,
  null_cond: Conditioning,
  rng: Key[Array, ""],
  latents_shape: tuple[int, ...],
  start: Float[Array, "b f h w c"] | None = None,
  progress: Callable[[int], None] | None = None,
) -> Float[Array, "b f h w c"]:
  """Latents of new clips; jit-able.

  Args:
    unet: I2VGenUNet.
    params: its weights.
    diffusion: what the weights were trained to.
    settings: how to sample.
    cond: of every row.
    null_cond: of the unconditional branch; see `null_conditioning`.
    rng: of all noise; row i draws from it and i alone.
    latents_shape: (b, f, h, w, c) of the result.
    start: scaled latents of a clip to work over, for SDEdit.
    progress: called with the evaluations done.

  Raises:
    InputError: a stage with a start level lacks the clip to start from.
  """
  solver = diffusion.make_solver(settings)
  rng_start, rng_steps = jax.random.split(rng)
  xt = row_noise(rng_start, latents_shape, settings.noise_offset)
  if settings.start_timestep is not None:
    if start is None:
      raise InputError("the refine stage works over a clip; give it one")
    xt = solvers.sdedit_start(
      start,
      xt,
      diffusion.make_schedule(),
      settings.start_timestep,
      reference_scale=settings.reference_start,
    )
  guided = classifier_free(
    encode.denoiser(unet, params),
    cond,
    null_cond,
    settings.guidance_scale,
    settings.guidance_rescale,
  )
  return sample(
    guided,
    solver,
    xt,
    rng_steps,
    prediction_type=diffusion.prediction_type,
    progress=progress,
  )


def row_noise(
  rng: Key[Array, ""], shape: tuple[int, ...], offset: float = 0.0
) -> Float[Array, "b f h w c"]:
  """First noise; a row's does not depend on how many rows there are."""
  rows = per_row_rngs(rng, jnp.arange(shape[0]))
  return jax.vmap(lambda key: offset_noise(key, shape[1:], offset))(rows)


def null_conditioning(
  cond: Conditioning, null_text: Float[Array, "1 n d"] | None
) -> Conditioning:
  """The unconditional branch of guidance, as in public variant (c).

  The text becomes that of the negative prompt and the CLIP vector zero; the
  picture's latents and the rate stay, so that guidance cannot push off them.
  """
  text, embeds = cond.text_context, cond.image_embeds
  return dataclasses.replace(
    cond,
    text_context=(
      None if text is None else jnp.broadcast_to(null_text, text.shape)
    ),
    image_embeds=None if embeds is None else jnp.zeros_like(embeds),
  )
