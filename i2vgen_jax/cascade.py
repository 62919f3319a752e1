"""A picture and a sentence become a video: both stages, chained.

cascade = Cascade.load(BUNDLED)
clip = cascade.run_base([image], ["a red arrow moves up slowly ..."])
clip = cascade.run_refine(clip, ["a red arrow moves up slowly ..."])
"""

import dataclasses
import itertools
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from i2vgen_jax import preprocessing, programs, stage, weights
from i2vgen_jax.errors import InputError
from i2vgen_jax.models import build
from i2vgen_jax.models.build import Network
from i2vgen_jax.programs import Progress
from i2vgen_jax.stage import Settings
from i2vgen_jax.tokenizer import Tokenizer
from i2vgen_jax.types import Params

BUNDLED = Path(__file__).parent / "assets" / "tiny"

Clips = UInt8[np.ndarray, "b f h w 3"]
Latents = Float[np.ndarray, "b f h w c"]

# What the config of a network says beside the fields of its module.
_NOTES = {
  "vae": ("scaling_factor",),
  "base": ("diffusion", "sampling"),
  "refine": ("diffusion", "sampling"),
}


@dataclasses.dataclass(frozen=True)
class Cascade:
  """The networks of one cascade folder; see `weights` for its layout.

  A folder may hold one stage alone; what it lacks is None, and is asked for
  with one clear line.
  """

  folder: Path
  tokenizer: Tokenizer | None
  vae: Network
  text_encoder: Network | None
  image_encoder: Network | None
  base: Network | None
  refine: Network | None

  @classmethod
  def load(cls, folder: Path, dtype: Any = None) -> "Cascade":
    """Reads every network that the folder has.

    Args:
      folder: a cascade folder; `BUNDLED` is the one in this package.
      dtype: of the weights; None keeps what is stored, float32 is exact.

    Raises:
      InputError: no cascade there, or a part of it is damaged or of another
        variant than the rest.
    """
    if not folder.is_dir():
      raise InputError(f"no cascade folder at {folder}; check --weights")
    names = [
      name for name in build.TYPES if name == "vae" or (folder / name).is_dir()
    ]
    # Before anything large is read.
    for name in names:
      _check_notes(name, weights.load_config(folder / name), folder)
    check_stages(names, folder)
    found = {name: build.load(folder / name, dtype) for name in names}
    return cls.assemble(folder, folder / "tokenizer", found)

  @classmethod
  def assemble(
    cls, folder: Path, tokenizer: Path | None, found: dict[str, Network]
  ) -> "Cascade":
    """Of networks that are loaded.

    Args:
      folder: where they come from, for messages.
      tokenizer: a folder with `vocab.json` and `merges.txt`; read if there is
        a text tower, and not asked for otherwise.
      found: the networks by name.

    Raises:
      InputError: no stage among them, no tokenizer or one of another text
        tower, or a config that lacks what a cascade needs.
    """
    for name, network in found.items():
      _check_notes(name, network.config, folder)
    check_stages(found, folder)
    text = found.get("text_encoder")
    return cls(
      folder=folder,
      tokenizer=text and _tokenizer_of(text, tokenizer),
      **{name: found.get(name) for name in build.TYPES},
    )

  def settings(self, name: str) -> Settings:
    """The stored sampling defaults of stage `base` or `refine`."""
    return Settings.from_config(self._stage(name).config["sampling"])

  def base_size(self, size: tuple[int, int]) -> tuple[int, int]:
    """The base stage's size for a refined (width, height).

    Same shape, and as much smaller in area as by default.
    """
    base, refined = self.settings("base").size, self.settings("refine").size
    shrink = np.sqrt(np.prod(base) / np.prod(refined))
    factor = self._factor
    width, height = (max(round(n * shrink / factor), 1) * factor for n in size)
    return width, height

  def plan(
    self,
    stages: Sequence[str],
    *,
    size: tuple[int, int] | None = None,
    num_frames: int | None = None,
    fps: float | int | None = None,
    num_steps: int | None = None,
    guidance_scale: float | int | None = None,
    negative_prompt: str | None = None,
  ) -> dict[str, Settings]:
    """Settings of the stages to run, in order, where None is as stored.

    Args:
      stages: `base`, `refine` or both.
      size: (width, height) of the result; a base stage that is followed by
        another is as much smaller as by default.
      num_frames: of the clip.
      fps: of the clip.
      num_steps: of the first stage, as the two below.
      guidance_scale: 1 is off.
      negative_prompt: of guidance's other branch.

    Raises:
      InputError: a stage is missing.
    """
    plan = {name: self.settings(name) for name in stages}
    first, last = stages[0], stages[-1]
    asked = {
      "num_frames": num_frames,
      "fps": fps,
      "num_steps": num_steps,
      "guidance_scale": guidance_scale,
      "negative_prompt": negative_prompt,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    for name in given.keys() & {"fps", "guidance_scale"}:
      given[name] = float(given[name])
    plan[first] = dataclasses.replace(plan[first], **given)
    clip = {name: getattr(plan[first], name) for name in ("num_frames", "fps")}
    plan[last] = dataclasses.replace(plan[last], **clip)
    if size:
      plan[last] = dataclasses.replace(plan[last], size=size)
    if size and first != last:
      small = self.base_size(size)
      plan[first] = dataclasses.replace(plan[first], size=small)
    return plan

  def check(self, name: str, settings: Settings) -> int:
    """How often the stage evaluates its denoiser, if it can run at all.

    Raises:
      InputError: the stage cannot take the settings, lacks a tower, or has
        weights that are not for a stage of its name.
    """
    self._check_parts(name, settings)
    width, height = settings.size
    if not self._fits(name, width, height):
      near = "{}x{}".format(*self._nearest_size(name, width, height))
      raise InputError(
        f"size {width}x{height} does not fit stage {name}, whose sides are "
        f"multiples of {self._factor}; the nearest that fits is {near}"
      )
    if settings.num_frames < 1:
      raise InputError(
        f"{settings.num_frames} frames are no video; ask for at least 1"
      )
    if not math.isfinite(settings.guidance_scale):
      raise InputError(
        f"guidance scale {settings.guidance_scale} is no number; 1 is off"
      )
    if not 0 < settings.fps < math.inf:
      raise InputError(f"{settings.fps} fps is no rate; ask for more than 0")
    return self._diffusion(name).make_solver(settings).num_evaluations

  def run_base(
    self,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    prompts: Sequence[str],
    *,
    settings: Settings | None = None,
    seed: int = 0,
    decode: bool = True,
    progress: Progress | None = None,
  ) -> Clips | Latents:
    """Clips that begin with the pictures.

    Args:
      images: one per clip, any size; cropped to the shape of the clip.
      prompts: one per clip; without effect where the base takes no text.
      settings: None takes the stored ones.
      seed: fixes all randomness, the sample of the picture's latents too.
      decode: False returns the scaled latents, float32[b f h w c].
      progress: called with the number of denoiser evaluations done.

    Raises:
      InputError: the stage is missing or cannot take the settings, or there
        are not as many prompts as pictures.
    """
    settings = settings or self.settings("base")
    self.check("base", settings)
    _check_rows(len(images), prompts)
    clip_size = 1
    if self.image_encoder is not None:
      clip_size = self.image_encoder.module.image_size
    views = [
      preprocessing.views(
        image, *settings.size, clip_size, black_edge=settings.black_edge
      )
      for image in images
    ]
    pictures, clip_images = (np.stack(v) for v in zip(*views, strict=True))
    clips = programs.base(
      self._params("base"),
      pictures,
      clip_images,
      *self._tokens(prompts, settings),
      _stage_rng("base", seed),
      parts=self._parts("base"),
      settings=settings,
      decode=decode,
      progress=progress,
    )
    return np.asarray(clips)

  def run_refine(
    self,
    clips: UInt8[np.ndarray, "b f _ _ 3"],
    prompts: Sequence[str],
    *,
    settings: Settings | None = None,
    seed: int = 0,
    decode: bool = True,
    progress: Progress | None = None,
  ) -> Clips | Latents:
    """The same clips at the refine stage's size, repaired under the text.

    They are stretched to the size, noised to `settings.start_timestep` and
    denoised (SDEdit). Arguments and errors as in `run_base`; the number of
    frames is that of `clips`.
    """
    settings = settings or self.settings("refine")
    settings = dataclasses.replace(settings, num_frames=clips.shape[1])
    self.check("refine", settings)
    _check_rows(len(clips), prompts)
    refined = programs.refine(
      self._params("refine"),
      clips,
      *self._tokens(prompts, settings),
      _stage_rng("refine", seed),
      parts=self._parts("refine"),
      settings=settings,
      decode=decode,
      progress=progress,
    )
    return np.asarray(refined)

  @property
  def _factor(self) -> int:
    return 2 ** (len(self.vae.module.block_channels) - 1)

  def _stage(self, name: str) -> Network:
    network = getattr(self, name)
    if network is None:
      raise InputError(f"no {name} stage in {self.folder}; use other weights")
    return network

  def _diffusion(self, name: str) -> stage.Diffusion:
    return stage.Diffusion.from_config(self._stage(name).config["diffusion"])

  def _towers(self, name: str) -> dict[str, Network]:
    needed = build.towers_of(self._stage(name).module)
    return {tower: getattr(self, tower) for tower in needed}

  def _check_parts(self, name: str, settings: Settings) -> None:
    unet = self._stage(name).module
    takes_picture = unet.use_image_embeds or unet.local_image != "none"
    if name == "refine" and takes_picture:
      raise InputError(
        f"weights of another variant: refine in {self.folder} wants a picture, "
        "as only a base stage does; use those of a refine stage"
      )
    if name == "base" and settings.start_timestep is not None:
      raise InputError(
        f"weights of another variant: base in {self.folder} starts from a "
        "clip, as only a refine stage does; use those of a base stage"
      )
    for tower, network in self._towers(name).items():
      check_tower(name, tower, network, self.folder)
    build.check_fit(unet, self._towers(name))

  def _fits(self, name: str, width: int, height: int) -> bool:
    factor = self._factor
    if min(width, height) < factor or width % factor or height % factor:
      return False
    try:
      self._stage(name).module.check_size(width // factor, height // factor)
    except InputError:
      return False
    return True

  def _nearest_size(
    self, name: str, width: int, height: int
  ) -> tuple[int, int]:
    """Searched for, because each U-Net has a rule of its own."""
    factor = self._factor
    reach = 2 ** len(self._stage(name).module.block_channels)
    sides = [
      [max(n // factor + i, 1) * factor for i in range(-reach, reach + 1)]
      for n in (width, height)
    ]
    return min(
      (size for size in itertools.product(*sides) if self._fits(name, *size)),
      key=lambda size: abs(size[0] - width) + abs(size[1] - height),
    )

  def _params(self, name: str) -> dict[str, Params]:
    networks_of_stage = self._towers(name) | {"unet": self._stage(name)}
    return {part: n.params for part, n in networks_of_stage.items()}

  def _parts(self, name: str) -> programs.Parts:
    modules = {part: n.module for part, n in self._towers(name).items()}
    return programs.Parts(
      unet=self._stage(name).module,
      vae=modules["vae"],
      text_encoder=modules.get("text_encoder"),
      image_encoder=modules.get("image_encoder"),
      diffusion=self._diffusion(name),
      scaling_factor=self.vae.config["scaling_factor"],
    )

  def _tokens(
    self, prompts: Sequence[str], settings: Settings
  ) -> tuple[np.ndarray, np.ndarray]:
    if self.tokenizer is None:
      return np.zeros((len(prompts), 1), np.int32), np.zeros((1, 1), np.int32)
    texts = [prompt + settings.prompt_suffix for prompt in prompts]
    return (
      self.tokenizer(texts).ids,
      self.tokenizer([settings.negative_prompt]).ids,
    )


def check_stages(names: Collection[str], folder: Path) -> None:
  """Raises InputError unless there is a stage among the names."""
  if not {"base", "refine"} & set(names):
    raise InputError(f"neither base nor refine in {folder}; it needs one")


def check_tower(name: str, tower: str, found: Any, folder: Path) -> None:
  """Raises InputError if a tower that stage `name` needs was not found."""
  if found is None:
    raise InputError(f"stage {name} needs {tower}, missing in {folder}; add it")


def _tokenizer_of(text: Network, folder: Path) -> Tokenizer:
  """Whose tokens the text tower knows, every one."""
  made = Tokenizer.load(
    folder,
    max_length=text.module.max_length,
    pad_token_id=text.config.get("pad_token_id", 0),
  )
  largest = max(made.bpe.eos_token_id, made.pad_token_id)
  if largest >= text.module.vocab_size:
    raise InputError(
      f"token {largest} of {folder} is none of the {text.module.vocab_size} "
      "that the text tower knows; use the tokenizer that came with it"
    )
  return made


def _check_notes(name: str, config: dict[str, Any], folder: Path) -> None:
  for note in _NOTES.get(name, ()):
    if note not in config:
      path = folder / name / "config.json"
      raise InputError(f"no {note!r} in {path}; copy it anew")
  if "sampling" in config:
    Settings.from_config(config["sampling"])
    stage.Diffusion.from_config(config["diffusion"])


def _check_rows(rows: int, prompts: Sequence[str]) -> None:
  if not rows or rows != len(prompts):
    raise InputError(
      f"{rows} inputs but {len(prompts)} prompts; give one prompt per input"
    )


def _stage_rng(name: str, seed: int) -> jax.Array:
  """The stages of one seed must not see the same noise."""
  number = ("base", "refine").index(name)
  return jax.random.fold_in(jax.random.key(seed), number)
