"""Makes a video of a picture and a sentence.

    i2vgen sample --image photo.jpg --output video.mp4 \\
        --prompt "a red arrow moves up slowly over gray stripes"

Beside video.mp4 it writes video.png, which shows the input and the frames of
each stage, and video.json, which holds every setting.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import jax

from data_pipelines.media import video
from i2vgen_jax import interop, tokenizer
from i2vgen_jax.cascade import BUNDLED, Cascade
from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.choices import Choices
from i2vgen_jax.models import build
from i2vgen_jax.stage import Settings
from launch import arguments, contact_sheet, guards, outputs
from launch.progress import Line, note
from launch.source import Frames, Source

Plan = dict[str, Settings]

_STAGES = {
  "base": ("base",),
  "refine": ("refine",),
  "cascade": ("base", "refine"),
}
_PACKAGES = ("i2vgen-jax", "jax", "jaxlib", "flax", "orbax-checkpoint")

# One for the process: the compiled program of a stage holds on to it, and a
# new one would be a new program.
LINE = Line()


def parser() -> arguments.Parser:
  """The command line of `i2vgen sample`."""
  made = arguments.Parser("i2vgen sample", description=__doc__)
  add = made.add_argument
  add(
    "--image",
    type=Path,
    required=True,
    help="the picture that the video begins with; for --stage refine a clip "
    "to work over, or a picture, which is held still",
  )
  add("--prompt", type=arguments.sentence, help="what happens in the video")
  add(
    "--output",
    type=Path,
    required=True,
    help="the .mp4 file; .png and .json of the same name come with it",
  )
  add(
    "--weights",
    help="a cascade folder, a folder or file of public weights, or owner/name "
    "on the Hub; default: the small cascade in this package",
  )
  add(
    "--stage",
    choices=list(_STAGES),
    help="what to run; default: all that the weights have",
  )
  add(
    "--size",
    type=arguments.size,
    metavar="WxH",
    help="of the result, in pixels; the cascade's base stage is as much "
    "smaller as by default",
  )
  add(
    "--num-frames",
    type=arguments.count,
    metavar="F",
    help="of the result; of a longer clip for --stage refine the first F",
  )
  add(
    "--fps",
    type=arguments.rate,
    help="frames per second, of the file and as told to the network; "
    "default: the stage's, or that of the clip for --stage refine",
  )
  add(
    "--steps",
    type=arguments.count,
    metavar="N",
    help="denoising steps of the base stage (of the refine stage with --stage "
    "refine)",
  )
  add(
    "--guidance-scale",
    type=arguments.number,
    metavar="G",
    help="weight of the conditions, 1 is off; stages as for --steps",
  )
  add(
    "--seed",
    type=arguments.seed,
    default=0,
    help="the same seed and settings give the same video",
  )
  add("--no-progress", action="store_true", help="nothing while it works")
  return made


def main(argv: list[str]) -> None:
  """Reads the picture, runs the stages, writes video, sheet and settings.

  Raises:
    InputError: anything given is unusable; nothing is written then.
  """
  args = parser().parse_args(argv)
  LINE.silent = args.no_progress
  outputs.check(args.output, args.image)
  opened = interop.open_cascade(args.weights or BUNDLED)
  args.stage = _stage(args.stage, opened)
  source = _read(args)
  seconds: dict[str, float] = {}
  with _timed(seconds, "load"):
    cascade = opened.load(_STAGES[args.stage])
  plan = _plan(cascade, args, source)
  evaluations = {name: cascade.check(name, s) for name, s in plan.items()}
  cut = _cut_tokens(cascade, plan, args.prompt)
  _tell_weights(cascade, args.weights is None)
  report = _report(args, cascade, plan, source, cut)
  advice = "ask for a smaller --size or fewer --num-frames"
  with guards.interruptible(), guards.memory(advice):
    clips = _generate(cascade, plan, source, args, evaluations, seconds)
  last = list(plan)[-1]
  with _timed(seconds, "encode"):
    mp4 = video.encode_mp4(clips[last], plan[last].fps)
    png = contact_sheet.encode_png(_sheet(clips, args))
  report["seconds"] = {k: round(value, 3) for k, value in seconds.items()}
  text = json.dumps(report, indent=2) + "\n"
  paths = outputs.beside(args.output)
  outputs.write(dict(zip(paths, (mp4, png, text.encode()), strict=True)))
  note("wrote " + ", ".join(str(path) for path in paths))


# ---- Before: what is asked for, and whether it can be done ----


def _read(args: Namespace) -> Source:
  if args.stage == "refine":
    return Source.of_clip(args.image, args.num_frames)
  return Source.of_photo(args.image)


def _stage(asked: str | None, opened: interop.Opened) -> str:
  """What is asked for, or all that the weights have."""
  here = set(opened.stages)
  most = [name for name, some in _STAGES.items() if here.issuperset(some)][-1]
  missing = [name for name in _STAGES[asked or most] if name not in here]
  if missing:
    raise InputError(
      f"no {' and no '.join(missing)} stage in {opened.folder}; use --stage "
      f"{most}, or other weights"
    )
  return asked or most


def _tell_weights(cascade: Cascade, bundled: bool) -> None:
  """Which they are; of those from a public form, what was chosen."""
  if bundled:
    note(
      "no --weights: using the small cascade of this package, trained on "
      "drawn shapes that move; it does not know the real world"
    )
  if "source" in cascade.vae.config:
    taken = _choices(cascade)
    note("weights take " + ", ".join(f"{n} {v}" for n, v in taken.items()))


def _choices(cascade: Cascade) -> dict:
  return Choices.of(_configs(cascade))


def _configs(cascade: Cascade) -> dict[str, dict]:
  parts = {name: getattr(cascade, name) for name in build.TYPES}
  return {name: part.config for name, part in parts.items() if part}


def _plan(cascade: Cascade, args: Namespace, source: Source) -> Plan:
  """Settings of the stages to run, in order."""
  stages = _STAGES[args.stage]
  num_frames, fps = args.num_frames, args.fps
  if stages[0] == "refine" and len(source.frames) > 1:
    num_frames, fps = len(source.frames), args.fps or source.fps
  return cascade.plan(
    stages,
    size=args.size,
    num_frames=num_frames,
    fps=fps,
    num_steps=args.steps,
    guidance_scale=args.guidance_scale,
  )


def _cut_tokens(
  cascade: Cascade, plan: Plan, prompt: str | None
) -> dict[str, int]:
  """Tokens of the prompt that do not fit, for each stage that reads it."""
  readers = [n for n in plan if getattr(cascade, n).module.use_text]
  if readers and not tokenizer.clean(prompt or ""):
    raise InputError("the prompt is empty; say with --prompt what happens")
  if prompt and not readers:
    note("these weights take no text: the prompt is without effect")
  texts = {n: f"{prompt}{plan[n].prompt_suffix}" for n in readers}
  cut = {n: cascade.tokenizer([text]).cut[0] for n, text in texts.items()}
  if lost := max(cut.values(), default=0):
    note(f"the prompt is too long: its last {lost} tokens were cut")
  return cut


# ---- The work ----


def _generate(
  cascade: Cascade,
  plan: Plan,
  source: Source,
  args: Namespace,
  evaluations: dict[str, int],
  seconds: dict[str, float],
) -> dict[str, Frames]:
  """The clip of each stage, and under `input` what the first one was given."""
  first = next(iter(plan))
  given = list(source.frames)
  clips = {"input": source.cropped(*plan[first].size)}
  if first == "refine":
    given = source.clip(plan[first])[None]
    clips["input"] = given[0]
  runs = {"base": cascade.run_base, "refine": cascade.run_refine}
  for name, settings in plan.items():
    LINE.begin(name, evaluations[name], "compiling, then the first step ...")
    with _timed(seconds, name):
      given = runs[name](
        given,
        [args.prompt or ""],
        settings=settings,
        seed=args.seed,
        progress=LINE.update,
      )
      jax.effects_barrier()
    LINE.end()
    clips[name] = given[0]
  return clips


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
  start = time.monotonic()
  yield
  seconds[name] = time.monotonic() - start


# ---- After: what is written ----


def _sheet(
  clips: dict[str, Frames], args: Namespace
) -> contact_sheet.Image.Image:
  labels = {"input": "input, cropped", "base": "base", "refine": "refined"}
  rows = [
    (f"{labels[name]} {frames.shape[2]}x{frames.shape[1]}", frames)
    for name, frames in clips.items()
  ]
  return contact_sheet.contact_sheet(args.prompt or args.image.name, rows)


def _report(
  args: Namespace,
  cascade: Cascade,
  plan: Plan,
  source: Source,
  cut: dict[str, int],
) -> dict:
  """Every setting of the run."""
  count, height, width, _ = source.frames.shape
  return {
    "prompt": args.prompt,
    "tokens_cut": cut,
    "seed": args.seed,
    "stage": args.stage,
    "input": {
      "path": str(args.image.absolute()),
      "width": width,
      "height": height,
      "num_frames": count,
    },
    "output": str(args.output.absolute()),
    "settings": {name: dataclasses.asdict(s) for name, s in plan.items()},
    "weights": {
      "folder": str(cascade.folder.absolute()),
      "bundled": args.weights is None,
      "choices": _choices(cascade),
      "config": _configs(cascade),
    },
    "device": jax.devices()[0].device_kind,
    "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
  }
