"""Argument types, parse errors and help texts of the command line."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest
from tyro.conf import Positional, UseAppendAction

from i2vgen_jax.errors import InputError
from launch import arguments
from launch.arguments import Count, Pair, Size


@pytest.mark.parametrize(
  ("kind", "text", "value"),
  [
    (arguments.parse_count, "1", 1),
    (arguments.parse_seed, "0", 0),
    (arguments.parse_seed, "4294967295", 2**32 - 1),
    (arguments.parse_size, "64x32", (64, 32)),
    (arguments.parse_size, "64X32", (64, 32)),
    (arguments.parse_number, "-1.5", -1.5),
    (arguments.parse_fps, "23.976", 23.976),
    (arguments.parse_seconds, "3600", 3600),
    (arguments.parse_text, "", ""),
    (arguments.parse_text, "été", "été"),
    (arguments.parse_pair, "a=b=c", ("a", "b=c")),
  ],
)
def test_accepted(kind, text, value):
  assert kind(text) == value


@pytest.mark.parametrize(
  ("kind", "text"),
  [
    (arguments.parse_count, "0"),
    (arguments.parse_count, "-3"),
    (arguments.parse_count, "2.5"),
    (arguments.parse_count, "many"),
    (arguments.parse_seed, "-1"),
    (arguments.parse_seed, "4294967296"),
    (arguments.parse_size, "64"),
    (arguments.parse_size, "64x"),
    (arguments.parse_size, "64x0"),
    (arguments.parse_size, "64x-8"),
    (arguments.parse_size, "64x32x3"),
    (arguments.parse_number, "nan"),
    (arguments.parse_number, "-inf"),
    (arguments.parse_number, "x"),
    (arguments.parse_fps, "0"),
    (arguments.parse_fps, "nan"),
    (arguments.parse_fps, "1e9"),
    (arguments.parse_seconds, "0"),
    (arguments.parse_seconds, "inf"),
    (arguments.parse_text, "\udcff"),
    (arguments.parse_pair, "a="),
    (arguments.parse_pair, "=b"),
    (arguments.parse_pair, "a"),
  ],
)
def test_rejected(kind, text):
  with pytest.raises(ValueError):
    kind(text)


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
    (["a", "--output=b", "--num-frames=-3"], ["--num-frames", "-3 is too few"]),
    (["a", "--output=b", "--num-frames", "-3"], ["--num-frames", "-3 is too"]),
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
    "NAME=VALUE",
  ):  # fmt: skip
    assert part in text, part


@dataclasses.dataclass(frozen=True)
class Other:
  """Does something else."""


def test_unions_are_subcommands():
  assert make("other", kind=Make | Other) == Other()
  for argv, part in ([], "{make, other}"), (["oter"], "make, other"):
    with pytest.raises(InputError, match="see i2vgen it --help") as error:
      make(*argv, kind=Make | Other)
    assert part in str(error.value)
