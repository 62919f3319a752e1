"""`i2vgen sample`: from a picture and a sentence to a video file."""

import contextlib
import dataclasses
import importlib.metadata
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax

from data_pipelines.media import video
from i2vgen_jax import interop, tokenizer
from i2vgen_jax.cascade import BUNDLED, Cascade
from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.choices import Choices
from i2vgen_jax.stage import STAGES, Stage
from launch import arguments, contact_sheet, outputs
from launch.arguments import Count, Fps, Number, Seed, Size, Text, Weights
from launch.input_clip import Frames, InputClip
from launch.progress import ProgressBar, note

Plan = dict[str, Stage]

_STAGES = {
  "base": ("base",),
  "refine": ("refine",),
  "cascade": ("base", "refine"),
}
_PACKAGES = ("i2vgen-jax", "jax", "jaxlib", "flax", "orbax-checkpoint")

# One for the process: the compiled program of a stage holds on to it, and a
# new one would be a new program.
LINE = ProgressBar()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
  """Makes a video from a picture and a sentence.

      i2vgen sample --image photo.jpg --output video.mp4 \\
          --prompt "a red arrow moves up slowly over gray stripes"

  Beside video.mp4 it writes video.png, which shows the input and the frames of
  each stage, and video.json, which holds every setting.

  Attributes:
    image: Picture that the video begins with. With --stage refine a video to
      repair, or a picture, which is held still.
    prompt: What happens in the video.
    output: The .mp4 file; .png and .json files of the same name are written
      beside it.
    weights: A cascade folder, a folder or file of public weights, or owner/name
      on the Hub. The small cascade of this package by default.
    stage: Stages to run; all that the weights have by default.
    size: Size of the result in pixels. The base stage of a cascade is smaller
      by its usual factor.
    num_frames: Number of frames of the result; of a longer video for --stage
      refine the first ones are used.
    fps: Conditioning fps and frame rate of the file. By default that of the
      stage, or of the video for --stage refine.
    steps: Number of denoising steps of the first stage that runs.
    solver: Solver of the first stage that runs; as stored by default.
    guidance_scale: Guidance scale of the first stage that runs; 1 is off.
    negative_prompt: What the first stage that runs should avoid.
    seed: The same seed and settings give the same video.
    no_progress: Show no progress.
  """

  image: Path
  output: Path
  prompt: Text | None = None
  weights: Weights | None = None
  stage: Literal["base", "refine", "cascade"] | None = None
  size: Size | None = None
  num_frames: Count | None = None
  fps: Fps | None = None
  steps: Count | None = None
  solver: Literal["ddim", "dpmpp_2m", "dpmpp_2m_sde", "heun"] | None = None
  guidance_scale: Number | None = None
  negative_prompt: Text | None = None
  seed: Seed = 0
  no_progress: bool = False


def main(argv: list[str]) -> None:
  """Reads the picture, runs the stages, writes video, sheet and settings.

  Raises:
    InputError: something given is unusable; nothing is written then.
  """
  args = arguments.parse(Arguments, argv, "i2vgen sample")
  LINE.silent = args.no_progress
  outputs.check(args.output, args.image)
  bundled = args.weights is None
  weights = interop.open_weights(BUNDLED if bundled else args.weights)
  names = [name for name in STAGES if name in weights.networks]
  if args.stage:
    names = _STAGES[args.stage]
  source = _read(args, names)
  seconds: dict[str, float] = {}
  with _timed(seconds, "load"):
    cascade = Cascade.load(weights, stages=names)
  plan = _plan(cascade, args, source)
  cut = _cut_tokens(cascade, plan, args.prompt)
  _describe_weights(cascade, bundled)
  with _interruptible():
    clips = _generate(cascade, plan, source, args, seconds)
  *_, last = plan.values()
  with _timed(seconds, "encode"):
    mp4 = video.encode_mp4(clips[last.name], last.sampling.fps)
    png = contact_sheet.encode_png(_sheet(clips, args))
  report = _report(args, cascade, plan, source, bundled) | {
    "tokens_cut": cut,
    "seconds": {k: round(value, 3) for k, value in seconds.items()},
  }
  text = json.dumps(report, indent=2) + "\n"
  paths = outputs.beside(args.output)
  outputs.write(dict(zip(paths, (mp4, png, text.encode()), strict=True)))
  note("wrote " + ", ".join(str(path) for path in paths))


# ---- Before: what is asked for, and whether it can be done ----


def _read(args: Arguments, names: list[str]) -> InputClip:
  if "base" in names:
    return InputClip.photo(args.image)
  return InputClip.video(args.image, args.num_frames)


def _describe_weights(cascade: Cascade, bundled: bool) -> None:
  """Says which weights are used, and the choices for those of a public form."""
  if bundled:
    note(
      "no --weights: using the small cascade of this package, trained on "
      "drawn shapes that move; it has not seen photographs"
    )
  if "source" in cascade.networks["vae"].config:
    taken = Choices.of(_configs(cascade))
    note("weights take " + ", ".join(f"{n} {v}" for n, v in taken.items()))


def _configs(cascade: Cascade) -> dict[str, dict]:
  return {name: part.config for name, part in cascade.networks.items()}


def _plan(cascade: Cascade, args: Arguments, source: InputClip) -> Plan:
  """The stages to run, in order, with the settings of the command line."""
  num_frames, fps = args.num_frames, args.fps
  if len(source.frames) > 1:
    num_frames, fps = len(source.frames), args.fps or source.fps
  return cascade.plan(
    size=args.size,
    num_frames=num_frames,
    fps=fps,
    num_steps=args.steps,
    solver=args.solver,
    guidance_scale=args.guidance_scale,
    negative_prompt=args.negative_prompt,
  )


def _cut_tokens(
  cascade: Cascade, plan: Plan, prompt: str | None
) -> dict[str, int]:
  """Number of tokens of the prompt that do not fit, by stage that reads it."""
  readers = [stage for stage in plan.values() if stage.unet.use_text]
  if readers and not tokenizer.clean(prompt or ""):
    raise InputError("the prompt is empty; say with --prompt what happens")
  if prompt and not readers:
    note("these weights take no text: the prompt has no effect")
  cut = {}
  for stage in readers:
    text = f"{prompt}{stage.sampling.prompt_suffix}"
    cut[stage.name] = cascade.tokenizer([text]).cut[0]
  if lost := max(cut.values(), default=0):
    note(f"the prompt is too long: its last {lost} tokens were cut")
  return cut


# ---- The work ----


def _generate(
  cascade: Cascade,
  plan: Plan,
  source: InputClip,
  args: Arguments,
  seconds: dict[str, float],
) -> dict[str, Frames]:
  """The clip of each stage, and under `input` the input of the first one."""
  first = next(iter(plan.values()))
  if first.starts_from_clip:
    shown = source.to_repair(first.sampling)
    given = shown[None]
  else:
    shown = source.cropped(*first.sampling.size)
    given = list(source.frames)
  clips = {"input": shown}
  for name, stage in plan.items():
    total = stage.solver.num_evaluations
    LINE.begin(name, total, "compiling, then the first step ...")
    with _timed(seconds, name):
      given = cascade.run(
        stage,
        given,
        [args.prompt or ""],
        seed=args.seed,
        progress=LINE.update,
      )
      jax.effects_barrier()
    LINE.end()
    clips[name] = given[0]
  return clips


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
  """Lets Ctrl-C end the process at once; Python alone would wait for XLA."""
  before = signal.getsignal(signal.SIGINT)
  if before is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
  try:
    yield
  finally:
    if before is signal.default_int_handler:
      signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
  start = time.monotonic()
  yield
  seconds[name] = time.monotonic() - start


# ---- After: what is written ----


def _sheet(
  clips: dict[str, Frames], args: Arguments
) -> contact_sheet.Image.Image:
  labels = {"input": "input, cropped", "base": "base", "refine": "refined"}
  rows = [
    (f"{labels[name]} {frames.shape[2]}x{frames.shape[1]}", frames)
    for name, frames in clips.items()
  ]
  return contact_sheet.contact_sheet(args.prompt or args.image.name, rows)


def _report(
  args: Arguments,
  cascade: Cascade,
  plan: Plan,
  source: InputClip,
  bundled: bool,
) -> dict:
  """Every setting of the run."""
  count, height, width, _ = source.frames.shape
  configs = _configs(cascade)
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
    "settings": {
      name: dataclasses.asdict(stage.sampling) for name, stage in plan.items()
    },
    "weights": {
      "folder": str(cascade.folder.absolute()),
      "bundled": bundled,
      "choices": Choices.of(configs),
      "config": configs,
    },
    "device": jax.devices()[0].device_kind,
    "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
  }
