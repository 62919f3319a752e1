"""Argument types, parse errors and help texts of the command line."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest
from tyro.conf import Positional, UseAppendAction

from i2vgen_jax.errors import InputError
from launch import arguments
from launch.arguments import (
  Count,
  Fps,
  Interval,
  Layout,
  Lora,
  Number,
  Pair,
  Seconds,
  Seed,
  Size,
  Text,
  Weights,
)


def read(kind, text):
  """The value that a flag of this type has for a word."""
  return kind.__metadata__[0].instance_from_str([text])


@pytest.mark.parametrize(
  ("kind", "text", "value"),
  [
    (Count, "1", 1),
    (Seed, "0", 0),
    (Seed, "4294967295", 2**32 - 1),
    (Size, "64x32", (64, 32)),
    (Size, "64X32", (64, 32)),
    (Interval, "200-800", (200, 800)),
    (Interval, "5-5", (5, 5)),
    (Layout, "data=2,frames=4", {"data": 2, "frames": 4}),
    (Number, "-1.5", -1.5),
    (Fps, "23.976", 23.976),
    (Seconds, "3600", 3600),
    (Text, "", ""),
    (Text, "été", "été"),
    (Pair, "a=b=c", ("a", "b=c")),
    (Weights, "owner/name", "owner/name"),
    (Lora, "a/lora", ("a/lora", 1.0)),
    (Lora, "a/lora:0.5", ("a/lora", 0.5)),
    (Lora, "a:b/lora", ("a:b/lora", 1.0)),
    (Lora, "2", ("2", 1.0)),
  ],
)
def test_accepted(kind, text, value):
  assert read(kind, text) == value


@pytest.mark.parametrize(
  ("kind", "text"),
  [
    (Count, "0"),
    (Count, "-3"),
    (Count, "2.5"),
    (Count, "many"),
    (Seed, "-1"),
    (Seed, "4294967296"),
    (Size, "64"),
    (Size, "64x"),
    (Size, "64x0"),
    (Size, "64x-8"),
    (Size, "64x32x3"),
    (Interval, "200"),
    (Interval, "-5-10"),
    (Layout, "data=2,rows=4"),
    (Layout, "data=two"),
    (Layout, "data=2,"),
    (Number, "nan"),
    (Number, "-inf"),
    (Number, "x"),
    (Fps, "0"),
    (Fps, "nan"),
    (Fps, "1e9"),
    (Seconds, "0"),
    (Seconds, "inf"),
    (Text, "\udcff"),
    (Pair, "a="),
    (Pair, "=b"),
    (Pair, "a"),
    (Weights, ""),
    (Weights, "https://huggingface.co/owner/name"),
  ],
)
def test_rejected(kind, text):
  with pytest.raises(ValueError):
    read(kind, text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Make:
  """Makes something.

  For example: i2vgen it photo.jpg --output x.mp4

  Attributes:
    source: What is read.
    output: What is written.
  """

  source: Positional[Path]
  output: Path
  num_frames: Count | None = None
  size: Size = (64, 32)
  scale: float | int | None = None
  stage: Literal["base", "refine"] | None = None
  choose: UseAppendAction[tuple[Pair, ...]] = ()
  no_progress: bool = False


def make(*argv, kind=Make):
  return arguments.parse(kind, argv, "i2vgen it")


def test_flags_and_defaults():
  given = make("a.jpg", "--output=b")
  assert given == Make(source=Path("a.jpg"), output=Path("b"))
  argv = ["a", "--output", "b", "--num-frames", "3", "--size=8X4"]
  argv += ["--scale", "-1.5", "--stage", "base", "--no-progress"]
  assert make(*argv, "--choose", "a=1", "--choose", "b=2") == Make(
    source=Path("a"),
    output=Path("b"),
    num_frames=3,
    size=(8, 4),
    scale=-1.5,
    stage="base",
    choose=(("a", "1"), ("b", "2")),
    no_progress=True,
  )


@pytest.mark.parametrize(
  ("argv", "parts"),
  [
    ([], ["SOURCE", "--output PATH"]),
    (["a", "--output"], ["--output"]),
    (
      ["a", "--output=b", "--num-frames=-3"],
      ["--num-frames", "-3 is too small"],
    ),
    (
      ["a", "--output=b", "--num-frames", "-3"],
      ["--num-frames", "-3 is too small"],
    ),
    (["", "--output=b"], ["SOURCE", "the path is empty"]),
    (["a", "--output="], ["--output", "the path is empty"]),
    (
      ["http://host/x.png", "--output=b"],
      ["SOURCE: http://host/x.png is a URL", "local files", "download it"],
    ),
    (["a", "--output", "s3://b/c"], ["--output: s3://b/c is a URL"]),
    (["a", "--output=b", "--num-frames", "x"], ["'x' is not an integer"]),
    (["a", "--output=b", "--num-frames=None"], ["'None' is not an integer"]),
    (
      ["a", "--output=b", "--num-frame", "3"],
      ["options: --num-frame, 3", "--num-frames"],
    ),
    (["a", "--output=b", "--size", "8"], ["--size", "'8' is not WIDTHxHEIGHT"]),
    (["a", "--output=b", "--scale", "nan"], ["--scale", "not a finite number"]),
    (["a", "--output=b", "--stage", "x"], ["--stage", "'x'", "base", "refine"]),
    (["a", "--output=b", "--choose", "x"], ["--choose", "not NAME=VALUE"]),
    (["a", "--output=b", "--no-progress=1"], ["options: 1"]),
    (["a", "--output=b", "stray"], ["stray"]),
    (["a", "--output=b", "--size", "8" * 500], ["is not WIDTHxHEIGHT"]),
  ],
)
def test_errors_are_one_line_without_decoration(argv, parts):
  with pytest.raises(InputError) as error:
    make(*argv)
  line = str(error.value)
  assert line.endswith("see i2vgen it --help")
  assert line.isprintable() and not set(line) & set("─│╭╰")
  assert "object at 0x" not in line and "function" not in line
  for part in parts:
    assert part in line


def test_help_is_plain_and_shows_defaults(capsys):
  with pytest.raises(SystemExit) as error:
    make("--help")
  assert error.value.code == 0
  text, errors = capsys.readouterr()
  assert errors == ""
  assert "\x1b" not in text and not set(text) & set("─│╭╰")
  for part in (
    "Makes something.", "i2vgen it photo.jpg --output x.mp4", "SOURCE",
    "--output PATH", "What is written. (required)", "--num-frames N",
    "--size WxH", "(default: 64x32)", "--stage {base,refine}", "--no-progress",
    "NAME=VALUE", "(optional)",
  ):  # fmt: skip
    assert part in text, part
  assert "None" not in text


@dataclasses.dataclass(frozen=True)
class Other:
  """Does something else."""


def test_unions_are_subcommands():
  assert make("other", kind=Make | Other) == Other()
  for argv, part in ([], "{make, other}"), (["oter"], "make, other"):
    with pytest.raises(InputError, match="see i2vgen it --help") as error:
      make(*argv, kind=Make | Other)
    assert part in str(error.value)


@dataclasses.dataclass(frozen=True)
class Outer:
  """Has subcommands of its own."""

  inner: Make | Other


@pytest.mark.parametrize(
  ("argv", "command"),
  [
    (["outer", "make", "a", "--output=b", "--num-frames=0"], "outer make"),
    (["outer", "make", "a"], "outer make"),
    (["outer", "make", "a", "--output=b", "--sise=8x8"], "outer make"),
    (["outer"], "outer"),
    (["other", "stray"], "other"),
  ],
)
def test_errors_point_to_the_help_of_the_subcommand(argv, command):
  with pytest.raises(InputError) as error:
    make(*argv, kind=Outer | Other)
  assert str(error.value).endswith(f"; see i2vgen it {command} --help")
