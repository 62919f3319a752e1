"""`i2vgen sample`: from a picture and a sentence to a video file."""

import contextlib
import dataclasses
import importlib.metadata
import json
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
from PIL import Image

from data_pipelines.media import video
from i2vgen_jax import interop, tokenizer
from i2vgen_jax.cascade import Cascade
from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.choices import Choices
from i2vgen_jax.sharding import make_mesh
from i2vgen_jax.stage import STAGES, Stage
from launch import arguments, contact_sheet, outputs
from launch.arguments import (
  Count,
  Fps,
  Interval,
  Layout,
  Lora,
  Number,
  Seed,
  Size,
  Text,
  Weights,
)
from launch.input_clip import Frames, InputClip
from launch.progress import ProgressBar, note
from launch.weights import open_weights

Plan = dict[str, Stage]

_STAGES = {"base": ("base",), "refine": ("refine",), "cascade": STAGES}
_PACKAGES = ("i2vgen-jax", "jax", "jaxlib", "flax", "orbax-checkpoint")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What decides the programs of a video.

  Attributes:
    weights: A cascade folder, a folder or file of public weights, owner/name on
      the Hub, or the workdir of a finished training. The small cascade of this
      package by default.
    lora: File or folder of a LoRA, which is added to the weights of its stage;
      PATH:0.8 adds it times 0.8.
    stage: Stages to run; all that the weights have by default.
    size: Size of the result in pixels. The base stage of a cascade is smaller
      by its usual factor.
    num_frames: Number of frames of the result; of a longer video for --stage
      refine the first ones are used.
    steps: Number of denoising steps of the first stage that runs.
    solver: Solver of the first stage that runs; as stored by default.
    guidance_scale: Guidance scale of the first stage that runs; 1 is off.
    guidance_interval: Timesteps (0 to 999) of the first stage with guidance;
      outside of them an evaluation takes half of the time.
    reuse_every: In the first stage, number of evaluations of which only the
      first runs all layers; 1 is off, 2 or 3 saves time and loses some quality.
    mesh: Spreads the work over several devices: guidance branches over `data`,
      frames over `frames`, large weights over `fsdp`, such as
      data=2,frames=4. Without it one device does all.
  """

  weights: Weights | None = None
  lora: Lora | None = None
  stage: Literal["base", "refine", "cascade"] | None = None
  size: Size | None = None
  num_frames: Count | None = None
  steps: Count | None = None
  solver: Literal["ddim", "dpmpp_2m", "dpmpp_2m_sde", "heun"] | None = None
  guidance_scale: Number | None = None
  guidance_interval: Interval | None = None
  reuse_every: Count | None = None
  mesh: Layout | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(Settings):
  """Makes a video from a picture and a sentence.

      i2vgen sample --image photo.jpg --output video.mp4 \\
          --prompt "the camera zooms in slowly"

  Beside video.mp4 it writes video.png, which shows the input and the frames of
  each stage, and video.json, which holds every setting.

  Attributes:
    image: Picture that the video begins with. With --stage refine a video to
      repair, or a picture, which is held still.
    prompt: What happens in the video.
    output: The .mp4 file; .png and .json files of the same name are written
      beside it.
    fps: Conditioning fps and frame rate of the file. By default that of the
      stage, or of the video for --stage refine.
    negative_prompt: What the first stage that runs should avoid.
    seed: The same seed and settings give the same video.
    no_progress: Show no progress.
  """

  image: Path
  output: Path
  prompt: Text | None = None
  fps: Fps | None = None
  negative_prompt: Text | None = None
  seed: Seed = 0
  no_progress: bool = False


def main(argv: list[str]) -> None:
  """Reads the picture, runs the stages, writes video, sheet and settings.

  Raises:
    InputError: an argument or a file is unusable; nothing is written then.
  """
  args = arguments.parse(Arguments, argv, "i2vgen sample")
  outputs.check(args.output, args.image)
  weights = open_weights(args.weights)
  names = _STAGES.get(args.stage)
  has_base = "base" in (names or weights.networks)
  source = InputClip.read(args.image, args.num_frames, only_photo=has_base)
  seconds: dict[str, float] = {}
  with _timed(seconds, "load"):
    cascade = open_cascade(weights, args)
  more = {"fps": args.fps or source.fps}
  if len(source.frames) > 1:
    more["num_frames"] = len(source.frames)
  more["negative_prompt"] = args.negative_prompt
  plan = plan_stages(cascade, args, **more)
  for problem in check_prompt(cascade, plan, args.prompt or ""):
    note(problem)
  _describe_weights(args, cascade)
  line = ProgressBar()
  line.silent = args.no_progress
  with _interruptible():
    clips = generate(cascade, plan, source, args, line, seconds)
  files = encode(cascade, plan, source, args, clips, seconds)
  outputs.write(files)
  note("wrote " + ", ".join(map(str, files)))


# ---- Before the run ----


def open_cascade(weights: interop.StoredWeights, settings: Settings) -> Cascade:
  """The stages that the settings ask for, on their mesh."""
  mesh = settings.mesh and make_mesh(**settings.mesh)
  lora, scale = settings.lora or (None, 1.0)
  return Cascade.load(
    weights,
    stages=_STAGES.get(settings.stage),
    mesh=mesh,
    lora=lora,
    lora_scale=scale,
  )


def plan_stages(cascade: Cascade, settings: Settings, **more: Any) -> Plan:
  """The stages to run, in order, with the settings and more of them."""
  given = {
    "size": settings.size,
    "num_frames": settings.num_frames,
    "num_steps": settings.steps,
    "solver": settings.solver,
    "guidance_scale": settings.guidance_scale,
    "guidance_interval": settings.guidance_interval,
    "reuse_every": settings.reuse_every,
  }
  return cascade.plan(**(given | more))


def open_plan(settings: Settings) -> tuple[Cascade, Plan]:
  """The stages that the settings ask for, and how to run them.

  Raises:
    InputError: the weights cannot be loaded, or a setting cannot be met.
  """
  cascade = open_cascade(open_weights(settings.weights), settings)
  return cascade, plan_stages(cascade, settings)


def check_prompt(cascade: Cascade, plan: Plan, prompt: str) -> list[str]:
  """What a user should know about the prompt.

  Raises:
    InputError: the prompt is empty, and a stage reads it.
  """
  texts = _texts(plan, prompt)
  if texts and not tokenizer.clean(prompt):
    raise InputError("the prompt is empty; say in it what happens")
  if prompt and not texts:
    return ["these weights take no text: the prompt has no effect"]
  return [
    problem
    for text in dict.fromkeys(texts.values())
    for problem in cascade.tokenizer.problems(text)
  ]


def _texts(plan: Plan, prompt: str) -> dict[str, str]:
  """The whole prompt of each stage that reads it."""
  return {
    name: prompt + stage.sampling.prompt_suffix
    for name, stage in plan.items()
    if stage.unet.use_text
  }


def _report(
  cascade: Cascade, plan: Plan, source: InputClip, args: Arguments
) -> dict:
  """Every setting of the run."""
  count, height, width, _ = source.frames.shape
  texts = _texts(plan, args.prompt or "")
  return {
    "prompt": args.prompt,
    "seed": args.seed,
    "stage": "cascade" if len(plan) > 1 else next(iter(plan)),
    "input": {
      "path": str(args.image.absolute()),
      "width": width,
      "height": height,
      "num_frames": count,
    },
    "output": str(args.output.absolute()),
    **describe(args, cascade, plan),
    "tokens_cut": {
      name: cascade.tokenizer([text]).cut[0] for name, text in texts.items()
    },
  }


def describe(
  settings: Settings, cascade: Cascade, plan: Plan
) -> dict[str, Any]:
  """Stages, weights, device and versions, as JSON has them."""
  configs = _configs(cascade)
  return {
    "settings": {
      name: dataclasses.asdict(stage.sampling) for name, stage in plan.items()
    },
    "weights": {
      "folder": str(cascade.folder.absolute()),
      "bundled": settings.weights is None,
      "lora": settings.lora,
      "choices": Choices.of(configs),
      "config": configs,
    },
    "device": jax.devices()[0].device_kind,
    "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
  }


def _describe_weights(args: Arguments, cascade: Cascade) -> None:
  """Logs which weights are used, and the choices for those of a public form."""
  if args.weights is None:
    note(
      "no --weights: using the small cascade of this package, which moves the "
      "camera over a photograph, and drawn objects"
    )
  configs = _configs(cascade)
  if "source" in configs["vae"]:
    choices = Choices.of(configs).items()
    note("weights take " + ", ".join(f"{n} {v}" for n, v in choices))


def _configs(cascade: Cascade) -> dict[str, Any]:
  return {name: part.config for name, part in cascade.networks.items()}


# ---- The run ----


def generate(
  cascade: Cascade,
  plan: Plan,
  source: InputClip,
  args: Arguments,
  line: ProgressBar,
  seconds: dict[str, float],
) -> dict[str, Frames]:
  """The clip of each stage, and under `input` the input of the first one.

  `line` shows the steps; `seconds` receives the time of each stage.
  """
  first = next(iter(plan.values()))
  if first.starts_from_clip:
    shown = source.to_repair(first.sampling)
    given = shown[None]
  else:
    shown = source.cropped(*first.sampling.size)
    given = list(source.frames)
  clips, prompts = {"input": shown}, [args.prompt or ""]
  for name, stage in plan.items():
    total = stage.solver.num_evaluations
    line.begin(name, total, "compiling, then the first step ...")
    with _timed(seconds, name), warnings.catch_warnings():
      # `check_prompt` has returned them.
      warnings.simplefilter("ignore", tokenizer.PromptWarning)
      given = cascade.run(
        stage, given, prompts, seed=args.seed, progress=line.update
      )
    line.end()
    clips[name] = given[0]
  return clips


def encode(
  cascade: Cascade,
  plan: Plan,
  source: InputClip,
  args: Arguments,
  clips: dict[str, Frames],
  seconds: dict[str, float],
) -> dict[Path, bytes]:
  """The files of a run: video, contact sheet and settings."""
  *_, last = plan.values()
  with _timed(seconds, "encode"):
    mp4 = video.encode_mp4(clips[last.name], last.sampling.fps)
    png = contact_sheet.encode(_sheet(clips, args), "PNG")
  report = _report(cascade, plan, source, args) | {"seconds": seconds}
  text = json.dumps(report, indent=2) + "\n"
  paths = outputs.beside(args.output)
  return dict(zip(paths, (mp4, png, text.encode()), strict=True))


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
  """Lets Ctrl-C end the process at once; Python alone would wait for XLA."""
  before = signal.getsignal(signal.SIGINT)
  is_python = before is signal.default_int_handler
  signal.signal(signal.SIGINT, signal.SIG_DFL if is_python else before)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
  start = time.monotonic()
  yield
  seconds[name] = round(time.monotonic() - start, 3)


def _sheet(clips: dict[str, Frames], args: Arguments) -> Image.Image:
  labels = {"input": "input, cropped", "base": "base", "refine": "refined"}
  rows = [
    (f"{labels[name]} {frames.shape[2]}x{frames.shape[1]}", frames)
    for name, frames in clips.items()
  ]
  return contact_sheet.contact_sheet(args.prompt or args.image.name, rows)
