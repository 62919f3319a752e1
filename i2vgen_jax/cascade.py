"""A picture and a sentence become a video: both stages, chained.

import i2vgen_jax

cascade = i2vgen_jax.load("ali-vilab/i2vgen-xl")
frames = cascade("photo.jpg", "a sailing boat in the evening sun", seed=0)
"""

import contextlib
import dataclasses
import numbers
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from i2vgen_jax import interop, preprocessing
from i2vgen_jax.errors import InputError, enough_memory
from i2vgen_jax.interop.formats.tensors import weight_dtype
from i2vgen_jax.models.build import Network, towers_of
from i2vgen_jax.preprocessing import Picture
from i2vgen_jax.stage import STAGES, Progress, Stage, read_settings
from i2vgen_jax.tokenizer import PromptWarning, Tokenizer
from i2vgen_jax.types import Array

BUNDLED = Path(__file__).parent / "assets" / "tiny"

Clips = UInt8[np.ndarray, "b f h w 3"]
Latents = Float[np.ndarray, "b f h w c"]


@dataclasses.dataclass(frozen=True)
class Cascade:
  """The stages at one place, with their weights.

  Attributes:
    folder: where the weights are stored, for messages.
    networks: module, weights and config of each network by name: `vae`,
      `text_encoder`, `image_encoder`, `base`, `refine`.
    stages: the stages by name, `base` before `refine`.
    tokenizer: None if no stage takes text.
    mesh: the devices that hold the weights; None is the first device.
  """

  folder: Path
  networks: Mapping[str, Network]
  stages: Mapping[str, Stage]
  tokenizer: Tokenizer | None
  mesh: Mesh | None = None

  @classmethod
  def load(
    cls,
    path: str | Path | interop.StoredWeights = BUNDLED,
    dtype: Any = None,
    *,
    stages: Sequence[str] | None = None,
    mesh: Mesh | None = None,
    size: tuple[int, int] | None = None,
    choices: Mapping[str, Any] | None = None,
    lora: str | Path | None = None,
    lora_scale: float | int = 1.0,
  ) -> "Cascade":
    """Weights in any form, ready to make videos.

    Args:
      path: a cascade folder of ours, a diffusers folder, a folder with the
        original files, `owner/name` on the Hub, or what
        `interop.open_weights` found; by default the small cascade of this
        package.
      dtype: type of weights and computation, as `jax.numpy.bfloat16`; None
        keeps what is stored.
      stages: names of the stages to load; None loads all.
      mesh: splits large weights over its devices; see `sharding.make_mesh`.
      size: (width, height) of the videos; None is that of the weights.
      choices: see `interop.choices.Choices`.
      lora: file or folder of a LoRA, which is added to its stage.
      lora_scale: factor on the change that the LoRA makes.

    Raises:
      InputError: no weights there, or they are damaged, of another model, or
        incomplete.
    """
    if not isinstance(path, interop.StoredWeights):
      dtype = weight_dtype(dtype)
      half = dtype is not None and dtype.itemsize == 2
      path = interop.open_weights(path, choices=choices, half=half)
    names = _stage_names(path, stages)
    if lora is not None:
      unused = {*STAGES} - {*names}
      kept = {n: x for n, x in path.networks.items() if n not in unused}
      path = dataclasses.replace(path, networks=kept)
      path = path.with_lora(lora, lora_scale)
    made = {
      name: make_stage(
        name, path.networks[name], path, path.folder / name / "config.json"
      )
      for name in names
    }
    if size:
      made = _resized(made, size)
    needed = {tower for s in made.values() for tower in towers_of(s.unet)}
    networks = {}
    for name in (*sorted(needed), *names):
      networks[name] = path.networks[name].load(dtype, mesh)
      beside_chip = mesh is None and jax.default_backend() != "cpu"
      if name in needed and beside_chip:
        # It runs once for a video, and the memory of a chip is scarce.
        networks[name] = _on_host(networks[name])
    # The modules that were loaded compute in `dtype`.
    made = {
      name: dataclasses.replace(stage, **_modules(networks, name))
      for name, stage in made.items()
    }
    tokenizer = None
    if "text_encoder" in networks:
      tokenizer = load_tokenizer(path)
    return cls(path.folder, networks, made, tokenizer, mesh)

  def plan(
    self,
    names: Sequence[str] | None = None,
    *,
    size: tuple[int, int] | None = None,
    num_frames: int | None = None,
    fps: float | int | None = None,
    **first: Any,
  ) -> dict[str, Stage]:
    """The stages to run, in order, with changed settings.

    Args:
      names: of the stages; None is all.
      size: (width, height) of the result; a base stage that is followed by a
        refine stage is smaller by the same factor as by default.
      num_frames: number of frames of the video.
      fps: conditioning fps, and the frame rate of the video.
      **first: settings of the first stage, such as num_steps, solver,
        guidance_scale or negative_prompt. None leaves a setting, here and
        above, as it is stored.

    Raises:
      InputError: a stage is missing, or cannot sample with such settings.
    """
    plan = {name: self.stage(name) for name in names or self.stages}
    fps = None if fps is None else float(fps)
    clip = {"num_frames": num_frames, "fps": fps}
    if size:
      plan = _resized(plan, size)
    for name, stage in plan.items():
      given = {k: v for k, v in (clip | first).items() if v is not None}
      plan[name] = stage.with_sampling(**given)
      first = {}
    return plan

  def stage(self, name: str) -> Stage:
    """Stage `base` or `refine`.

    Raises:
      InputError: these weights lack it.
    """
    if name not in self.stages:
      raise InputError(f"no {name} stage in {self.folder}; use other weights")
    return self.stages[name]

  def run(
    self,
    stage: Stage,
    inputs: Sequence[Picture] | UInt8[np.ndarray, "b _ _ _ 3"],
    prompts: Sequence[str],
    *,
    seed: int | Sequence[int] = 0,
    decode: bool = True,
    progress: Progress | None = None,
  ) -> Clips | Latents:
    """Runs one stage.

    Args:
      stage: from `stage` or `plan`.
      inputs: a picture for each clip, of any size, cropped to the shape of the
        stage; or, for a refine stage, the clips uint8[b f h w 3] to repair,
        which are stretched to its size. The result then has as many frames.
      prompts: one for each input; unused by a stage that takes no text.
      seed: fixes all randomness; an int gives input i the seed `seed + i`.
      decode: False returns the scaled latents, float32[b f h w c].
      progress: called with the number of denoiser evaluations done.

    Warns:
      PromptWarning: words of a prompt are cut, or unknown to the tokenizer.

    Raises:
      InputError: inputs, prompts and seeds do not match, a picture cannot be
        read, or memory runs out.
    """
    with self._feeding(stage, inputs, prompts, seed) as (stage, args, feed):
      clips = stage.generate(*args, **feed, decode=decode, progress=progress)
      return np.asarray(clips)

  def compile(self, plan: Mapping[str, Stage]) -> None:
    """Compiles what one video needs, without computing anything.

    With JAX's compilation cache a later process finds the programs.

    Args:
      plan: from `plan`.

    Raises:
      InputError: a program needs more memory than is free.
    """
    given = None
    for stage in plan.values():
      (width, height), count = stage.sampling.size, stage.sampling.num_frames
      clip = np.zeros((1, count, height, width, 3), np.uint8)
      if given is None:
        given = clip if stage.starts_from_clip else [*clip[:, 0]]
      with self._feeding(stage, given, [""], 0) as (stage, args, feed):
        stage.compile(*args, **feed)
      given = clip

  @contextlib.contextmanager
  def _feeding(
    self,
    stage: Stage,
    inputs: Sequence[Picture] | UInt8[np.ndarray, "b _ _ _ 3"],
    prompts: Sequence[str],
    seed: int | Sequence[int],
  ) -> Iterator[tuple[Stage, tuple[Any, ...], dict[str, Array]]]:
    """The stage for these inputs, and the arguments of its `generate`."""
    _check_prompts(prompts, len(inputs))
    if stage.starts_from_clip:
      frames = np.asarray(inputs)
      stage = stage.with_sampling(num_frames=frames.shape[1])
    else:
      frames, clip_images = _views(stage, inputs)
    if stage.image_encoder is None:
      clip_images = np.zeros((len(frames), 0, 0, 3), np.float32)
    networks = {name: self.networks[name] for name in towers_of(stage.unet)}
    networks["unet"] = self.networks[stage.name]
    params = {name: network.params for name, network in networks.items()}
    token_ids, negative_ids = self._tokens(stage, prompts)
    feed = {
      "frames": frames,
      "clip_images": clip_images,
      "token_ids": token_ids,
      "negative_ids": negative_ids,
    }
    on_mesh = contextlib.nullcontext()
    if self.mesh is not None:
      on_mesh = jax.set_mesh(self.mesh)
    with enough_memory("choose a smaller size or fewer frames"), on_mesh:
      yield stage, (params, clip_keys(stage.name, seed, len(frames))), feed

  def __call__(
    self,
    image: Picture | Sequence[Picture],
    prompt: str | Sequence[str] = "",
    *,
    seed: int | Sequence[int] = 0,
    size: tuple[int, int] | None = None,
    num_frames: int | None = None,
    fps: float | int | None = None,
    progress: Progress | None = None,
    **first: Any,
  ) -> Clips:
    """Videos that begin with the pictures.

    They are made one after another, so that none depends on the others and
    memory holds the networks' activations of one; `run` takes batches.

    Args:
      image: one picture or several: a path, a PIL image or uint8[h w 3].
      prompt: one for all pictures, or one for each.
      seed: fixes all randomness; an int gives picture i the seed `seed + i`.
      size: see `plan`, as the arguments below.
      num_frames: number of frames of each video.
      fps: conditioning fps.
      progress: called with the number of denoiser evaluations done, from 1 for
        each stage of each video.
      **first: settings of the first stage: num_steps, solver, guidance_scale,
        negative_prompt, ...; see `Sampling`.

    Returns:
      Frames of all videos.

    Raises:
      InputError: a picture cannot be read, or a setting cannot be met.
    """
    images = [*image] if isinstance(image, list | tuple) else [image]
    one_for_all = not isinstance(prompt, list | tuple)
    prompts = [prompt] * len(images) if one_for_all else [*prompt]
    if "base" not in self.stages:
      raise InputError(
        f"no base stage in {self.folder}: a refine stage repairs a clip; pass "
        "one to `run`"
      )
    _check_prompts(prompts, len(images))
    seeds = _seeds(seed, len(images))
    # All are read first, so that an unusable one costs no video.
    images = [preprocessing.load_picture(one) for one in images]
    plan = self.plan(size=size, num_frames=num_frames, fps=fps, **first)
    videos = []
    for clips, text, number in zip(images, prompts, seeds, strict=True):
      clips = [clips]
      for stage in plan.values():
        clips = self.run(stage, clips, [text], seed=number, progress=progress)
      videos.append(clips)
    return np.concatenate(videos)

  def _tokens(
    self, stage: Stage, prompts: Sequence[str]
  ) -> tuple[np.ndarray, np.ndarray]:
    if not stage.unet.use_text:
      return np.zeros((len(prompts), 1), np.int32), np.zeros((1, 1), np.int32)
    texts = [prompt + stage.sampling.prompt_suffix for prompt in prompts]
    for text in dict.fromkeys(texts):
      for problem in self.tokenizer.problems(text):
        warnings.warn(problem, PromptWarning, stacklevel=5)
    return (
      self.tokenizer(texts).ids,
      self.tokenizer([stage.sampling.negative_prompt]).ids,
    )


# ---- From stored weights to stages ----


def _on_host(network: Network) -> Network:
  """The network with weights that each program fetches and gives up again."""
  return dataclasses.replace(network, params=jax.device_get(network.params))


def _stage_names(
  weights: interop.StoredWeights, asked: Sequence[str] | None
) -> tuple[str, ...]:
  here = [name for name in STAGES if name in weights.networks]
  if not here:
    raise InputError(
      f"neither base nor refine in {weights.folder}; it needs one"
    )
  names = [name for name in STAGES if name in (asked or here)]
  if missing := [name for name in names if name not in here]:
    raise InputError(
      f"no {' and no '.join(missing)} stage in {weights.folder}; it has "
      f"{' and '.join(here)}"
    )
  return tuple(names)


def make_stage(
  name: str, unet: Any, weights: interop.StoredWeights, where: Path | str
) -> Stage:
  """A stage as its configs describe it, before any weights are read.

  Args:
    name: base or refine.
    unet: module and config of its U-Net: one of the stored networks, or one
      that is to be trained.
    weights: the other networks.
    where: the file or the like that has the U-Net's config, for messages.

  Raises:
    InputError: a network is missing or does not fit the U-Net, or the config
      is unusable.
  """
  for tower in towers_of(unet.module):
    if tower not in weights.networks:
      raise InputError(
        f"stage {name} needs {tower}, missing in {weights.folder}; add it"
      )
  if unet.module.use_text and weights.tokenizer is None:
    raise InputError(
      f"no tokenizer in {weights.folder}, which the text of stage {name} "
      "needs; put CLIP's vocab.json and merges.txt there"
    )
  vae = weights.networks["vae"].config
  if not isinstance(vae.get("scaling_factor"), float | int):
    path = weights.folder / "vae" / "config.json"
    raise InputError(
      f"no number 'scaling_factor' in {path}; copy the file again"
    )
  settings = read_settings(unet.config, where)
  try:
    return Stage(
      name=name,
      scaling_factor=vae["scaling_factor"],
      **settings,
      **_modules({**weights.networks, name: unet}, name),
    )
  except InputError as e:
    raise InputError(f"{e} (stage {name} of {weights.folder})") from e


def _modules(networks: Mapping[str, Any], name: str) -> dict[str, Any]:
  """The modules of a stage, by the names of its fields."""
  unet = networks[name].module
  modules = {tower: networks[tower].module for tower in towers_of(unet)}
  return {"unet": unet, **modules}


def load_tokenizer(weights: interop.StoredWeights) -> Tokenizer:
  """A tokenizer every token of which the text tower has an embedding for."""
  text_encoder = weights.networks["text_encoder"]
  made = Tokenizer.load(
    weights.tokenizer,
    max_length=text_encoder.module.max_length,
    pad_token_id=text_encoder.config.get("pad_token_id", 0),
  )
  largest = max(made.bpe.eos_token_id, made.pad_token_id)
  if largest >= text_encoder.module.vocab_size:
    raise InputError(
      f"token {largest} of {weights.tokenizer} is none of the "
      f"{text_encoder.module.vocab_size} that the text tower knows; use the "
      "tokenizer that came with it"
    )
  return made


def _resized(
  stages: Mapping[str, Stage], size: tuple[int, int]
) -> dict[str, Stage]:
  """The last stage at the size, the one before smaller by its usual factor.

  The factor is that of the areas; the shape is the same.
  """
  *before, last = stages
  resized = {**stages, last: stages[last].with_sampling(size=size)}
  usual = stages[last].sampling.size
  for name in before:
    base = stages[name]
    scale = np.sqrt(np.prod(base.sampling.size) / np.prod(usual))
    step = base.shrink
    small = (max(round(n * scale / step), 1) * step for n in size)
    resized[name] = base.with_sampling(size=tuple(small))
  return resized


# ---- Inputs of a run ----


def _views(
  stage: Stage, pictures: Sequence[Picture]
) -> tuple[UInt8[np.ndarray, "b 1 h w 3"], Float[np.ndarray, "b s s 3"]]:
  """The frame and the CLIP view of each picture."""
  s = stage.sampling
  images = [preprocessing.load_picture(picture) for picture in pictures]
  crops = [
    preprocessing.center_crop_wide(image, *s.size, black_edge=s.black_edge)
    for image in images
  ]
  side = 1 if stage.image_encoder is None else stage.image_encoder.image_size
  views = [
    preprocessing.clip_view(image, s.size[0], side, black_edge=s.black_edge)
    for image in images
  ]
  return np.stack(crops)[:, None], np.stack(views)


def _check_prompts(prompts: Sequence[str], count: int) -> None:
  if not count or count != len(prompts):
    raise InputError(
      f"{count} inputs but {len(prompts)} prompts; give one prompt per input"
    )
  for prompt in prompts:
    if not isinstance(prompt, str):
      raise InputError(f"prompts must be text, got {prompt!r}")


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
  """The seed of each input."""
  if isinstance(seed, numbers.Integral):
    seed = [seed + i for i in range(count)]
  try:
    seeds = [operator.index(n) for n in seed]
  except TypeError:
    seeds = []
  if len(seeds) != count or not all(0 <= n < 2**32 for n in seeds):
    raise InputError(
      f"seed must be an integer from 0 to 2^32 - 1, or one for each of the "
      f"{count} inputs, got {seed!r}"
    )
  return seeds


def clip_keys(name: str, seed: int | Sequence[int], count: int) -> jax.Array:
  """A key for each clip; the stages of one seed must not see the same noise."""
  seeds = np.array(_seeds(seed, count), np.uint32)
  number = STAGES.index(name)
  keys = jax.vmap(jax.random.key)(seeds)
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
