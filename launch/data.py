"""Makes what a training reads: shards of clips and pictures, a vocabulary.

    i2vgen data build procedural --output DIR --num-clips 10000
    i2vgen data build manifest clips.jsonl --output DIR
    i2vgen data build manifest FOLDER --output DIR -- --runner=FlinkRunner
    i2vgen data encode DIR/text_video/1.0.0 --output LATENTS --weights W \\
        --size 448x256
    i2vgen data inspect DIR --output inspection
    i2vgen data benchmark DIR
    i2vgen data vocabulary --output DIR

A build that was killed goes on when the same command is given again; one that
is finished does nothing. What stands behind `--` goes to Apache Beam.
"""

import dataclasses
from argparse import Namespace
from pathlib import Path

from data_pipelines.footage.build import build_footage
from data_pipelines.footage.filters import Limits
from data_pipelines.footage.quarantine import REASONS, read_drops
from data_pipelines.footage.settings import FootageSettings, ScanSettings
from data_pipelines.procedural import world
from data_pipelines.procedural.build import build_procedural
from data_pipelines.running.build_directory import Built
from data_pipelines.running.runner import beam_runner
from i2vgen_jax import tokenizer
from i2vgen_jax.errors import InputError
from launch import arguments, encode
from launch.progress import Lines, note

_REASONS = 5


def parser() -> arguments.Parser:
  """The command line of `i2vgen data`."""
  made = arguments.Parser("i2vgen data", description=__doc__)
  commands = made.add_subparsers(required=True, metavar="COMMAND")
  builds = commands.add_parser(
    "build", help="TFRecord shards of clips and pictures"
  ).add_subparsers(required=True, metavar="SOURCE")
  _procedural_arguments(builds.add_parser("procedural", help="drawn clips"))
  _manifest_arguments(
    builds.add_parser("manifest", help="clips and photos that a list names")
  )
  encode.add_arguments(
    commands.add_parser("encode", help="latents of such shards, beforehand")
  )
  _inspect_arguments(
    commands.add_parser("inspect", help="a page that shows a dataset")
  )
  _benchmark_arguments(
    commands.add_parser("benchmark", help="how fast a dataset is read")
  )
  vocabulary = commands.add_parser(
    "vocabulary", help="tokenizer in which each procedural word is one token"
  )
  vocabulary.add_argument("--output", type=Path, required=True)
  vocabulary.set_defaults(run=_vocabulary)
  return made


def _procedural_arguments(made: arguments.Parser) -> None:
  made.set_defaults(run=_procedural)
  add = made.add_argument
  add("--output", type=Path, required=True)
  add("--num-clips", type=arguments.count, required=True, metavar="N")
  add(
    "--split",
    choices=("train", "test"),
    default="train",
    help="side of the held-out combinations; default: train",
  )
  add("--size", type=arguments.size, default=(128, 128), metavar="WxH")
  add("--num-frames", type=arguments.count, default=8, metavar="F")
  add("--fps", type=arguments.rate, default=8.0)
  add("--seed", type=arguments.seed, default=0)


def _manifest_arguments(made: arguments.Parser) -> None:
  made.set_defaults(run=_manifest)
  add = made.add_argument
  add(
    "manifest",
    type=Path,
    metavar="MANIFEST",
    help=".jsonl, or .csv with a header: path (relative to it) or URI, caption "
    "or captions, perhaps start and end in seconds; or a folder of NAME.mp4 "
    "with NAME.txt",
  )
  add("--output", type=Path, required=True)
  add("--split", choices=("train", "test"), default="train")
  add(
    "--whole",
    action="store_true",
    help="each row is one shot already; default: films are cut into shots",
  )
  add(
    "--min-frames",
    type=arguments.count,
    default=ScanSettings.min_frames,
    metavar="F",
    help="shorter shots are left out; default: %(default)s",
  )
  add(
    "--max-seconds",
    type=arguments.rate,
    default=ScanSettings.max_seconds,
    metavar="S",
    help="longer shots become several clips; default: %(default)s",
  )
  add(
    "--short-side",
    type=arguments.count,
    default=FootageSettings.short_side,
    metavar="PIXELS",
    help="what is larger is scaled down; default: %(default)s",
  )
  add(
    "--join-captions",
    action="store_true",
    help="the captions of a row become one; default: one is drawn each epoch",
  )
  add(
    "--aesthetics",
    metavar="MODULE:FUNCTION",
    help="gives a number to frames uint8[n h w 3], for --min-aesthetics",
  )
  for field in dataclasses.fields(Limits):
    add(
      f"--{field.name.replace('_', '-')}",
      type=float,
      metavar="X",
      help=f"left out: {REASONS[field.name]}",
    )
  add(
    "--shard-size",
    type=arguments.count,
    default=FootageSettings.shard_size,
    metavar="N",
    help="examples of a shard; default: %(default)s, which suits clips: give"
    " thousands for pictures",
  )
  add("--seed", type=arguments.seed, default=0, help="of the order")
  add(
    "--stall-seconds",
    type=arguments.rate,
    default=FootageSettings.stall_seconds,
    metavar="S",
    help="time for one file; default: %(default)s",
  )


def _inspect_arguments(made: arguments.Parser) -> None:
  made.set_defaults(run=_inspect)
  add = made.add_argument
  add("data_dir", type=Path, metavar="DIR", help="what `data build` wrote")
  add(
    "--output",
    type=Path,
    default=Path("inspection"),
    help="folder for index.html and its pictures; default: %(default)s",
  )
  add(
    "--count",
    type=arguments.count,
    default=12,
    metavar="N",
    help="clips, and pictures, to show; default: %(default)s",
  )
  add("--seed", type=arguments.seed, default=0, help="of the draw")


def _benchmark_arguments(made: arguments.Parser) -> None:
  made.set_defaults(run=_benchmark)
  add = made.add_argument
  add("data_dir", type=Path, metavar="DIR", help="what `data build` wrote")
  add(
    "--count",
    type=arguments.count,
    default=8,
    metavar="N",
    help="examples of each pass, fewer where the dataset has fewer;"
    " default: %(default)s",
  )
  add(
    "--repeats",
    type=arguments.count,
    default=5,
    metavar="R",
    help="passes, of which the median counts; default: %(default)s",
  )
  add("--seed", type=arguments.seed, default=0, help="of the draw")


def main(argv: list[str]) -> None:
  """Builds what the arguments say.

  Raises:
    InputError: unusable arguments, or nothing that can be built.
  """
  own, beam = argv, []
  if "--" in argv:
    place = argv.index("--")
    own, beam = argv[:place], argv[place + 1 :]
  args = parser().parse_args(own)
  args.beam = beam
  args.run(args)


def _procedural(args: Namespace) -> None:
  line = Lines()
  built = build_procedural(
    args.output,
    args.num_clips,
    args.split,
    size=args.size,
    num_frames=args.num_frames,
    fps=args.fps,
    seed=args.seed,
    progress=line,
  )
  line.end()
  _tell(built, args.output)


def _manifest(args: Namespace) -> None:
  limits = {f.name: getattr(args, f.name) for f in dataclasses.fields(Limits)}
  settings = FootageSettings(
    split=args.split,
    scan=ScanSettings(
      split_shots=not args.whole,
      min_frames=args.min_frames,
      max_seconds=args.max_seconds,
      join_captions=args.join_captions,
      aesthetics=args.aesthetics,
    ),
    limits=Limits(**limits),
    short_side=args.short_side,
    shard_size=args.shard_size,
    seed=args.seed,
    stall_seconds=args.stall_seconds,
  )
  line = Lines()
  built = build_footage(
    args.manifest,
    args.output,
    settings,
    run=beam_runner(args.beam),
    progress=line,
  )
  line.end()
  _tell(built, args.output)


def _inspect(args: Namespace) -> None:
  from launch import inspection  # matplotlib is slow to import

  inspection.inspect(args.data_dir, args.output, args.count, args.seed)


def _benchmark(args: Namespace) -> None:
  from launch import benchmark

  print(benchmark.benchmark(args.data_dir, args.count, args.repeats, args.seed))


def _vocabulary(args: Namespace) -> None:
  if args.output.exists():
    raise InputError(f"{args.output} exists already; remove it first")
  words = {word for motion in world.MOTIONS for word in motion.split()}
  words |= {*world.SHAPES, *world.COLOURS}
  words |= {*world.GROUNDS, *world.TINTS, "a", "an", "over"}
  tokenizer.build_vocabulary(sorted(words), args.output)
  note(f"wrote a vocabulary of {len(words)} words to {args.output}")


def _tell(built: Built, output: Path) -> None:
  note(
    f"wrote {built.num_videos} clips and {built.num_images} pictures to "
    f"{output}; left out: {sum(built.dropped.values())}"
  )
  if not built.dropped:
    return
  first = {}
  for drop in read_drops(output / "quarantine.jsonl"):
    first.setdefault(drop.reason, drop.detail)
  for reason, number in sorted(built.dropped.items(), key=lambda x: -x[1]):
    note(f"left out {number}, {reason}: {REASONS[reason]}; {first[reason]}")
  note(f"all that was left out stands in {output / 'quarantine.jsonl'}")
