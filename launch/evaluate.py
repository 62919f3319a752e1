"""`i2vgen evaluate`: measures weights on held-out worlds or your own inputs."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.footage.scores import load_hook
from data_pipelines.procedural.photographs import Photographs
from i2vgen_jax.cascade import Cascade
from i2vgen_jax.errors import InputError
from i2vgen_jax.evaluation import lpips
from i2vgen_jax.files import write_json
from i2vgen_jax.interop.formats import safetensors_files
from i2vgen_jax.stage import STAGES
from launch import arguments, outputs
from launch.arguments import Count, Seed, Text, Weights
from launch.evaluation import clips, i3d, inputs, losses, report, worlds
from launch.evaluation.generation import Clips, Plan
from launch.evaluation.measures import METRICS, Lpips
from launch.evaluation.report import NUM_SHOWN, Power, Section, Shown
from launch.evaluation.towers import Towers
from launch.progress import note
from launch.report_page import Cell
from launch.sample import Settings, describe, open_plan
from launch.weights import open_weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(Settings):
  """Measures the videos that weights make.

      i2vgen evaluate --photographs DIR
      i2vgen evaluate --weights WEIGHTS --pictures DIR
      i2vgen evaluate --weights runs/base --dataset DIR/text_video/1.0.0

  It writes figures.json and report.html, a page with the videos in it.

  Without --pictures and --dataset the cascade gets held-out clips of the
  procedural worlds, whose motion is known. Each clip of the object world has a
  combination of object, ground and motion that is not in the training data;
  each clip of the camera world shows a photograph that is not. The cascade gets
  the first frame and the caption; its result is compared with the true clip.
  For reference, chance, the same cascade with untrained denoisers, and the true
  clips are measured as well. The targets: at least 0.9 of the clips have the
  motion that the caption names; the first frame matches the picture with 24 dB
  in the mean and 20 dB in 95 % of the photographs; and refining is better than
  bilinear scaling in 0.8 of the clips.

  Attributes:
    photographs: Folder that the training photographs are in, of which about one
      in twelve is held out. Without it there is no camera world, and no object
      moves over a photograph.
    pictures: Folder with NAME.jpg and its prompt in NAME.txt, or a .jsonl or
      .csv list with path and caption.
    dataset: Dataset of clips or pictures with captions, such as
      DIR/text_video/1.0.0; videos are also compared with the real clips, on
      which the loss of the denoisers is measured.
    clip: Weights whose CLIP towers compare videos with pictures and prompts;
      those that are evaluated by default. Use the same ones for all weights
      that you compare.
    lpips: Safetensors file with the state dict of lpips.LPIPS(net="alex"), for
      the LPIPS distance of the first frame to the picture.
    i3d: TorchScript file of an I3D, such as i3d_torchscript.pt, for the Fréchet
      video distance (FVD) to the real clips; it is run by torch.
    features: MODULE:FUNCTION from uint8[f h w 3] frames to a vector, for the
      Fréchet distance by a network of your own.
    num_clips: Number of clips of each world; or of pictures or records, which
      are drawn at random if there are more.
    batch_size: Number of clips that are made at once; 1 takes least memory.
    seed: Seed of the choice of clips and of sampling.
    output: Folder for the figures and the page.
  """

  photographs: Path | None = None
  pictures: Path | None = None
  dataset: Path | None = None
  clip: Weights | None = None
  lpips: Path | None = None
  i3d: Path | None = None
  features: Text | None = None
  num_clips: Count = 128
  batch_size: Count = 16
  seed: Seed = 0
  output: Path = Path("evaluation")


def main(argv: list[str]) -> None:
  """Prints the figures, and writes them with a page of the videos.

  Raises:
    InputError: the weights cannot be loaded or lack a stage, an input cannot be
      read, or the output folder cannot be written.
  """
  args = arguments.parse(Arguments, argv, "i2vgen evaluate")
  _check(args)
  outputs.make_folder(args.output)
  cascade, plan = open_plan(args)
  settings = describe(args, cascade, plan)
  chosen = ("photographs", "pictures", "dataset", "clip")
  chosen += ("lpips", "i3d", "features")
  chosen = {name: getattr(args, name) for name in chosen}
  settings["inputs"] = {k: str(v) for k, v in chosen.items() if v is not None}
  settings["inputs"] |= {"num_clips": args.num_clips, "seed": args.seed}
  if args.pictures or args.dataset:
    figures, sections = _own_inputs(args, cascade, plan)
  else:
    figures, sections = _worlds(args, cascade, plan)
  for section in sections:
    print(*table(section), sep="\n")
  path = args.output / "figures.json"
  write_json(path, figures | {"settings": settings})
  # Every field of every network would fill pages.
  del settings["weights"]["config"]
  page = report.page("Evaluation", sections, settings)
  outputs.write({args.output / "report.html": page})
  note(f"wrote {path} and {args.output / 'report.html'}")


def _check(args: Arguments) -> None:
  """Refuses arguments that would have no effect."""
  if args.pictures and args.dataset:
    raise InputError("--pictures and --dataset exclude each other; give one")
  own = args.pictures or args.dataset
  if own and args.photographs:
    raise InputError(
      "--photographs are for the procedural worlds; give it without --pictures "
      "and --dataset"
    )
  for name in ("clip", "lpips"):
    if getattr(args, name) and not own:
      raise InputError(
        f"--{name} is for --pictures or --dataset; give one of them"
      )
  if args.i3d and args.features:
    raise InputError("--i3d and --features exclude each other; give one")
  if (args.i3d or args.features) and not args.dataset:
    raise InputError(
      "--i3d and --features compare with real clips; give --dataset"
    )


# ---- Pictures with prompts, or a dataset ----


def _own_inputs(
  args: Arguments, cascade: Cascade, plan: Plan
) -> tuple[dict[str, Any], list[Section]]:
  clips.check(plan)
  *_, last = plan.values()
  if args.pictures:
    found = inputs.of_pictures(args.pictures)
  else:
    frames = last.sampling.num_frames
    found = inputs.of_dataset(args.dataset, frames, args.seed)
  given = found.drawn(args.num_clips, args.seed)
  if given.count < found.count:
    note(f"{given.count} of {found.count} inputs are drawn; see --num-clips")
  # All are read first, so that an unusable one costs no video.
  first = given.read(0, last.sampling)
  others = (given.read(n, last.sampling) for n in range(1, given.count))
  _check_prompts(cascade, [first.prompt, *(clip.prompt for clip in others)])
  features = args.i3d and i3d.load(args.i3d)
  if args.features:
    features = load_hook(args.features)
  if features is not None:
    if given.count < 2 or first.real is None:
      raise InputError(
        "--i3d and --features compare two or more real clips, and "
        f"{args.dataset} gives fewer; use a dataset of clips, or more of them"
      )
    features(first.real)
  judges = {
    "towers": Towers.load(open_weights(args.clip or args.weights)),
    "lpips": args.lpips and _read_lpips(args.lpips),
    "features": features,
  }
  figures, curves = {}, {}
  if first.real is not None:
    curves = _losses(args, cascade, plan, given)
    figures["losses"] = curves
  measured = clips.evaluate(
    cascade,
    plan,
    given,
    seed=args.seed,
    batch_size=args.batch_size,
    **judges,
  )
  figures |= {"means": measured.means, "clips": measured.rows}
  columns = list(measured.powers)
  of_levels = [*_loss_rows(curves, columns)]
  section = Section(
    title=f"{given.count} clips of {args.pictures or args.dataset}",
    names=["metric", *columns],
    rows=[
      [name.replace("_", " "), *map(values.get, columns)]
      for name, values in measured.means.items()
    ]
    + of_levels,
    meanings=[METRICS[name] for name in measured.means]
    + [losses.MEANING] * len(of_levels),
    losses=curves,
    powers=measured.powers,
    shown=measured.shown,
  )
  return figures, [section]


def _losses(
  args: Arguments, cascade: Cascade, plan: Plan, given: inputs.Inputs
) -> dict[str, losses.Losses]:
  """The losses of each stage, by its name in the tables."""
  # Not the plan itself, as they do not depend on how it samples.
  stages = cascade.plan([*plan], size=args.size, num_frames=args.num_frames)
  found = losses.by_timestep(
    cascade, stages, given, seed=args.seed, batch_size=args.batch_size
  )
  return {clips.COLUMNS[name]: curve for name, curve in found.items()}


def _loss_rows(
  curves: Mapping[str, losses.Losses], columns: Sequence[str]
) -> Iterator[list[Cell]]:
  """A row for each timestep; the stages may have different ones."""
  for level in sorted({*itertools.chain(*curves.values())}):
    values = (curves.get(column, {}).get(level) for column in columns)
    yield [f"loss at timestep {level}", *values]


def _read_lpips(path: Path) -> Lpips:
  """The distance by the weights in a safetensors file."""
  tensors = safetensors_files.read(path)
  weights = lpips.from_state_dict(tensors.shapes, tensors.read, tensors.where)
  return functools.partial(lpips.lpips, weights)


def _check_prompts(cascade: Cascade, prompts: Sequence[str]) -> None:
  """Says how many prompts the tokenizer cuts or does not know in full."""
  if cascade.tokenizer is None:
    return
  problems = [p for p in map(cascade.tokenizer.problems, prompts) if p]
  if problems:
    note(f"{len(problems)} of {len(prompts)} prompts: {problems[0][0]}")


# ---- The procedural worlds ----

# What the figures are, by the start of their labels.
_MEANINGS = {
  "motion": "share of clips that move as the prompt says",
  "first frame psnr": METRICS["first_frame_psnr"],
  "spatial distance": METRICS["spatial_distance"],
  "temporal distance": METRICS["temporal_distance"],
  "moving region psnr": "what moves, against the real clip, dB",
  "  bilinear": "base clips, enlarged",
  "  clips better": "share of clips that are better refined than enlarged",
}


def _worlds(
  args: Arguments, cascade: Cascade, plan: Plan
) -> tuple[dict[str, Any], list[Section]]:
  if tuple(plan) != STAGES:
    raise InputError(
      "the procedural worlds need both stages of a cascade, and the "
      f"{' and '.join(plan)} stage is used; give --pictures or --dataset"
    )
  pool = None
  if args.photographs is not None:
    pool = Photographs(args.photographs, "test")
  sampling = plan["refine"].sampling
  figures, sections = {}, []
  for shows in ("objects", "camera") if pool else ("objects",):
    draw = worlds.held_out(
      shows, pool, args.seed, args.num_clips, sampling.num_frames
    )
    figures[shows], made = worlds.evaluate(
      cascade,
      plan,
      draw,
      seed=args.seed,
      batch_size=args.batch_size,
      label=shows,
    )
    prompts = [clip.caption for clip in draw(sampling.size)]
    found = [*rows(figures[shows])]
    sections.append(
      Section(
        title=f"World: {shows}",
        names=["figure", "value", "95 % reach"],
        rows=found,
        meanings=[_meaning(label) for label, *_ in found],
        losses={},
        powers={
          name: Power.mean([*map(Power.of, some)])
          for name, some in made.items()
        },
        shown=[*_shown(made, prompts, sampling.fps)],
      )
    )
  return figures, sections


def _meaning(label: str) -> str:
  found = (_MEANINGS[start] for start in _MEANINGS if label.startswith(start))
  return next(found, "")


def _shown(
  made: Mapping[str, Clips], prompts: list[str], fps: float
) -> Iterator[Shown]:
  for number, prompt in enumerate(prompts[:NUM_SHOWN]):
    videos = {name: some[number] for name, some in made.items()}
    yield Shown(prompt, f"clip {number}", videos, fps)


def rows(figures: Mapping, indent: str = "") -> Iterator[list[Cell]]:
  """A row for each figure, those of a group indented."""
  for name, value in figures.items():
    label = indent + name.replace("_", " ")
    if isinstance(value, dict):
      yield [label, None, None]
      yield from rows(value, indent + "  ")
    else:
      values = value if isinstance(value, list) else [value, None]
      yield [label, *values]


def table(section: Section) -> Iterator[str]:
  """A section's table as lines for people."""
  yield section.title
  for label, *cells in [section.names, *section.rows]:
    shown = (f"{c:.3f}" if isinstance(c, float) else c or "" for c in cells)
    yield (f"{label:32}" + "".join(f"{c:>15}" for c in shown)).rstrip()
