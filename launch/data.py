"""Makes what a training reads: shards of clips and pictures, a vocabulary.

    i2vgen data build procedural --output DIR --num-clips 10000
    i2vgen data build manifest clips.jsonl --output DIR
    i2vgen data vocabulary --output DIR

DIR must not exist yet; it appears when everything in it is written.
"""

import collections
import json
from argparse import Namespace
from pathlib import Path

from data_pipelines import build, procedural
from i2vgen_jax import tokenizer
from i2vgen_jax.errors import InputError
from launch import arguments
from launch.progress import Line, note

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
    help=".jsonl, or .csv with a header: path (relative to it) and caption",
  )
  add("--output", type=Path, required=True)
  add("--split", choices=("train", "test"), default="train")
  add(
    "--min-frames",
    type=arguments.count,
    default=8,
    metavar="F",
    help="shorter clips are left out",
  )
  add(
    "--short-side",
    type=arguments.count,
    default=720,
    metavar="PIXELS",
    help="what is larger is scaled down",
  )


def main(argv: list[str]) -> None:
  """Builds what the arguments say.

  Raises:
    InputError: unusable arguments, or nothing that can be built.
  """
  args = parser().parse_args(argv)
  args.run(args)


def _procedural(args: Namespace) -> None:
  line = Line()
  line.begin("clips", args.num_clips)
  built = build.build_procedural(
    args.output,
    args.num_clips,
    args.split,
    size=args.size,
    num_frames=args.num_frames,
    fps=args.fps,
    seed=args.seed,
    progress=lambda done, _: line.update(done),
  )
  line.end()
  _tell(built, args.output)


def _manifest(args: Namespace) -> None:
  line = Line()

  def progress(done: int, total: int) -> None:
    if done == 1:
      line.begin("rows", total)
    line.update(done)

  built = build.build_from_manifest(
    args.manifest,
    args.output,
    split=args.split,
    min_frames=args.min_frames,
    short_side=args.short_side,
    progress=progress,
  )
  line.end()
  _tell(built, args.output)
  if built.num_quarantined:
    _tell_reasons(args.output / "quarantine.jsonl", args.manifest.parent)


def _vocabulary(args: Namespace) -> None:
  if args.output.exists():
    raise InputError(f"{args.output} exists already; remove it first")
  words = {word for motion in procedural.MOTIONS for word in motion.split()}
  words |= {*procedural.SHAPES, *procedural.COLOURS}
  words |= {*procedural.GROUNDS, *procedural.TINTS, "a", "an", "over"}
  tokenizer.build_vocabulary(sorted(words), args.output)
  note(f"wrote a vocabulary of {len(words)} words to {args.output}")


def _tell(built: build.Built, output: Path) -> None:
  note(
    f"wrote {built.num_videos} clips and {built.num_images} pictures to "
    f"{output}; left out: {built.num_quarantined}"
  )


def _tell_reasons(quarantine: Path, folder: Path) -> None:
  """The most frequent reasons, without the name of the single file."""
  rows = [json.loads(line) for line in quarantine.read_text().splitlines()]
  counts = collections.Counter(
    row["reason"].replace(str(folder / (row["path"] or "")), "FILE")
    for row in rows
  )
  for reason, number in counts.most_common(_REASONS):
    note(f"left out {number}: {reason}")
  note(f"every row that was left out stands in {quarantine}")
