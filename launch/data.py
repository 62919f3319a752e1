"""Builds, encodes and inspects training data.

    i2vgen data photographs FOLDER
    i2vgen data build procedural --output DIR --num-clips 10000
    i2vgen data build manifest clips.jsonl --output DIR
    i2vgen data build manifest FOLDER --output DIR -- --runner=FlinkRunner
    i2vgen data encode DIR/text_video/1.0.0 --output LATENTS --weights W \\
        --size 448x256
    i2vgen data inspect DIR --output inspection
    i2vgen data benchmark DIR
    i2vgen data vocabulary --output DIR

A build that was interrupted continues when the same command is run again; a
finished build is left as it is. Arguments after `--` go to Apache Beam.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from data_pipelines.footage import settings, survey
from data_pipelines.footage.build import build_footage
from data_pipelines.procedural import camera, world
from data_pipelines.procedural.build import World, build_procedural
from data_pipelines.running.build_directory import Built
from data_pipelines.running.runner import beam_runner
from i2vgen_jax import tokenizer
from i2vgen_jax.errors import InputError, writing
from i2vgen_jax.files import check_absent
from launch import arguments, encode, photographs
from launch.arguments import Count, Fps, Seconds, Seed, Size
from launch.progress import ProgressBar, note


@dataclasses.dataclass(frozen=True, kw_only=True)
class Procedural:
  """Clips of moving objects or a moving camera, and one picture from each.

  For example: i2vgen data build procedural --output DIR --num-clips 10000

  Attributes:
    output: Folder to create.
    num_clips: Number of clips, and of pictures.
    shows: Drawn objects that move, or a camera that moves over photographs.
    photographs: Folder of pictures, for the camera and as the ground of half of
      the objects. About one picture in twelve is held out.
    split: Side of the held-out photographs and of the held-out combinations of
      shape, ground and motion.
    size: Size of the frames, in pixels.
    num_frames: Number of frames in each clip.
    fps: Frames per second.
    seed: Seed of all scenes.
  """

  output: Path
  num_clips: Count
  shows: World = "objects"
  photographs: Path | None = None
  split: Literal["train", "test"] = "train"
  size: Size = (128, 128)
  num_frames: Count = 8
  fps: Fps = 8.0
  seed: Seed = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
  """Clips and photos that a list names.

  For example: i2vgen data build manifest clips.jsonl --output DIR

  Attributes:
    manifest: A .jsonl file, or a .csv file with a header: path (relative to
      the file) or URI, caption or captions, optionally start and end in
      seconds; or a folder of NAME.mp4 with NAME.txt.
    output: Folder to create.
    split: Name of the split.
    whole: Take each row as one shot instead of cutting videos into shots.
    min_frames: Leave out shorter shots.
    max_seconds: Divide longer shots into several clips.
    short_side: Scale larger frames down to this shorter side, in pixels.
    join_captions: Join the captions of a row instead of drawing one in each
      epoch.
    aesthetics: MODULE:FUNCTION that scores frames uint8[n h w 3], for
      --min-aesthetics.
    limits: Leave out clips and pictures by their scores.
    shard_size: Number of examples in each shard. The default suits clips; use
      thousands for pictures.
    seed: Seed of the order.
    stall_seconds: Time limit for one file.
  """

  manifest: Positional[Path]
  output: Path
  split: Literal["train", "test"] = "train"
  whole: bool = False
  min_frames: Count = settings.ScanSettings.min_frames
  max_seconds: Seconds = settings.ScanSettings.max_seconds
  short_side: Count = settings.FootageSettings.short_side
  join_captions: bool = False
  aesthetics: str | None = None
  limits: settings.Limits = dataclasses.field(default_factory=settings.Limits)
  shard_size: Count = settings.FootageSettings.shard_size
  seed: Seed = 0
  stall_seconds: Seconds = settings.FootageSettings.stall_seconds


@dataclasses.dataclass(frozen=True)
class Build:
  """TFRecord shards of clips and pictures."""

  source: Procedural | Manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect:
  """A web page that shows samples and statistics of a dataset.

  For example: i2vgen data inspect DIR --output inspection

  Attributes:
    data_dir: Folder that `data build` wrote.
    output: Folder for index.html and its pictures.
    count: Number of clips, and of pictures, to show.
    seed: Seed of the random sample.
  """

  data_dir: Positional[Path]
  output: Path = Path("inspection")
  count: Count = 12
  seed: Seed = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
  """How fast a dataset is read.

  For example: i2vgen data benchmark DIR

  Attributes:
    data_dir: Folder that `data build` wrote.
    count: Number of examples in each pass; fewer if the dataset has fewer.
    repeats: Number of passes; the median counts.
    seed: Seed of the random sample.
  """

  data_dir: Positional[Path]
  count: Count = 8
  repeats: Count = 5
  seed: Seed = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Photographs:
  """Photographs of Debian packages, for `launch/make_tiny.sh`.

  For example: i2vgen data photographs FOLDER

  Attributes:
    folder: Folder to write them to.
  """

  folder: Positional[Path]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
  """A tokenizer in which each word of the procedural captions is one token.

  For example: i2vgen data vocabulary --output DIR

  Attributes:
    output: Folder to create.
  """

  output: Path


def main(argv: list[str]) -> None:
  """Runs `i2vgen data`.

  Raises:
    InputError: Unusable arguments or data.
  """
  own = list(itertools.takewhile(lambda word: word != "--", argv))
  beam = argv[len(own) + 1 :]
  commands = Build | encode.Encode | Inspect | Benchmark
  commands |= Photographs | Vocabulary
  command = arguments.parse(commands, own, "i2vgen data", __doc__)
  match command:
    case Build(source=Manifest() as args):
      _build(args, beam)
    case _ if beam:
      raise InputError(
        f"`i2vgen data {own[0]}` does not use Beam; remove -- {' '.join(beam)}"
      )
    case Build(source=args):
      _build(args)
    case encode.Encode():
      encode.run(command)
    case Inspect():
      from launch import inspection  # matplotlib is slow to import

      inspection.inspect(**vars(command))
    case Benchmark():
      _benchmark(**vars(command))
    case Photographs(folder=folder):
      photographs.download(folder)
    case Vocabulary(output=output):
      check_absent(output)
      words = sorted(world.WORDS | camera.WORDS)
      tokenizer.build_vocabulary(words, output)
      note(f"wrote a vocabulary of {len(words)} words to {output}")


def _build(args: Procedural | Manifest, beam: Sequence[str] = ()) -> None:
  advice = (
    "fix the cause and run the same command again, which keeps what is done, "
    "or choose another place"
  )
  with writing(args.output, advice):
    with ProgressBar() as progress:
      if isinstance(args, Manifest):
        built = build_footage(
          args.manifest,
          args.output,
          _settings(args),
          run=beam_runner(beam),
          progress=progress,
        )
      else:
        built = build_procedural(**vars(args), progress=progress)
    _report(built, args.output)


def _settings(args: Manifest) -> settings.FootageSettings:
  """The settings of a build, whose fields have the names of the arguments."""

  def pick(kind: type, **others: Any) -> Any:
    names = {f.name for f in dataclasses.fields(kind)} & vars(args).keys()
    return kind(**{name: getattr(args, name) for name in names}, **others)

  scan = pick(settings.ScanSettings, split_shots=not args.whole)
  return pick(settings.FootageSettings, scan=scan)


def _benchmark(data_dir: Path, count: int, repeats: int, seed: int) -> None:
  from launch.benchmarks import building, demand, reading

  measured = (
    reading.measure(data_dir, case, count, repeats, seed)
    for case in demand.CASES
  )
  tables = [table for table in measured if table is not None]
  if not tables:
    raise InputError(
      f"no dataset to measure in {data_dir}; give the folder that `i2vgen data"
      " build` wrote, with clips of 16 frames or more"
    )
  tables.append(building.measure(data_dir, count, seed))
  tables.append(building.measure_rows())
  print(demand.EXPLANATION, *tables, sep="\n\n")


def _report(built: Built, output: Path) -> None:
  """Logs what a build wrote and the reasons for what it left out."""
  note(
    f"wrote {built.num_videos} clips and {built.num_images} pictures to "
    f"{output}; left out: {sum(built.dropped.values())}"
  )
  for row in survey.left_out(output, built.dropped):
    example = row.example or "see the list"
    note(f"left out {row.count}, {row.reason}: {row.meaning}; {example}")
  if built.dropped:
    path = output / "quarantine.jsonl"
    note(f"everything that was left out is listed in {path}")
