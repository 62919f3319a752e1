"""Command lines from typed dataclasses, parsed by tyro.

A command declares its arguments as fields and passes the class to `parse`:

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Arguments:
      '''Makes a video of a picture.

          i2vgen sample --image photo.jpg --output video.mp4

      Attributes:
        image: Picture that the video begins with.
        size: Size of the video, in pixels.
      '''

      image: Path
      size: Size | None = None
      no_progress: bool = False

    args = parse(Arguments, argv, "i2vgen sample")

The docstring is the help text: its first part describes the command and
should hold an example, its Attributes describe the flags. `image` becomes
`--image`, required because it has no default, and `no_progress` becomes the
switch `--no-progress`. Mark positional arguments as `tyro.conf.Positional[...]`
and repeatable flags as `tyro.conf.UseAppendAction[tuple[..., ...]]`. A union of
such classes gives subcommands named after the classes.
"""

import contextlib
import io
import itertools
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args

import tyro
from tyro.constructors import PrimitiveConstructorSpec, PrimitiveTypeInfo

from i2vgen_jax.errors import InputError
from i2vgen_jax.sharding import AXES

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def check_path(text: str) -> str:
  """Raises InputError for an empty path and for a URL.

  `Path` would turn them into the current folder and into `http:/host/name`.
  """
  if not text:
    raise InputError("the path is empty; give a path")
  if _URL.match(text):
    raise InputError(
      f"{text} is a URL, but only local files are read and written; download "
      "it first and give the path of the file"
    )
  return text


def _parse_size(text: str) -> tuple[int, int]:
  width, cross, height = text.lower().partition("x")
  if not cross:
    raise ValueError(f"{text!r} is not WIDTHxHEIGHT")
  read_count = _spec(Count).instance_from_str
  return read_count([width]), read_count([height])


def _parse_interval(text: str) -> tuple[int, int]:
  low, dash, high = text.partition("-")
  if not (dash and low.isdecimal() and high.isdecimal()):
    raise ValueError(f"{text!r} is not LOWEST-HIGHEST, such as 200-800")
  return int(low), int(high)


def _parse_layout(text: str) -> dict[str, int]:
  pairs = [part.partition("=") for part in text.split(",")]
  layout = {axis: int(n) for axis, _, n in pairs if n.isdecimal()}
  if len(layout) < len(pairs) or not layout.keys() <= set(AXES):
    names = ", ".join(AXES)
    raise ValueError(
      f"{text!r} is not AXIS=N,AXIS=N, such as data=2,frames=4, with the axes "
      f"{names}"
    )
  return layout


def _parse_text(text: str) -> str:
  try:
    text.encode()
  except UnicodeEncodeError as e:
    raise ValueError("the text is not valid UTF-8") from e
  return text


def _parse_word(text: str) -> str:
  if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", text, re.ASCII):
    raise ValueError(f"{text!r} is not a name of letters, digits, . _ and -")
  return text


def _parse_pair(text: str) -> tuple[str, str]:
  name, equals, value = text.partition("=")
  if not (name and equals and value):
    raise ValueError(f"{text!r} is not NAME=VALUE")
  return name, value


def _parse_lora(text: str) -> tuple[str, float]:
  path, colon, scale = text.rpartition(":")
  try:
    factor = float(scale)
  except ValueError:
    return check_path(text), 1.0
  if not colon:
    return check_path(text), 1.0
  if not math.isfinite(factor):
    raise ValueError(f"{scale} is not a finite factor")
  return check_path(path), factor


def _parsed_by(
  parse: Callable[[str], Any], metavar: str
) -> PrimitiveConstructorSpec:
  """A type for tyro: one word, shown in the help as `metavar`."""

  def show(value: Any) -> list[str]:
    parts = value if isinstance(value, tuple) else (value,)
    return ["x".join(map(str, parts))]

  return PrimitiveConstructorSpec(
    nargs=1,
    metavar=metavar,
    instance_from_str=lambda words: parse(*words),
    is_instance=lambda value: value is not None,
    str_from_instance=show,
  )


def number(kind: type, metavar: str, low: float, high: float) -> Any:
  """The type of a flag for a number from `low` to `high`."""
  name = "an integer" if kind is int else "a finite number"

  def parse(text: str) -> float:
    try:
      value = kind(text)
      if not abs(value) < math.inf:
        raise ValueError
    except ValueError:
      raise ValueError(f"{text!r} is not {name}") from None
    if value < low:
      raise ValueError(f"{text} is too small; use at least {low}")
    if value > high:
      raise ValueError(f"{text} is too large; use at most {high}")
    return value

  return Annotated[kind, _parsed_by(parse, metavar)]


def _spec(annotated: Any) -> PrimitiveConstructorSpec:
  return annotated.__metadata__[0]


Count = number(int, "N", 1, math.inf)
Times = number(int, "N", 0, math.inf)
# jax.random.key would drop higher bits.
Seed = number(int, "SEED", 0, 2**32 - 1)
Port = number(int, "PORT", 0, 65535)
Number = number(float, "NUMBER", -math.inf, math.inf)
Seconds = number(float, "SECONDS", 0.1, math.inf)
Fps = number(float, "FPS", 0.1, 240)
Size = Annotated[tuple[int, int], _parsed_by(_parse_size, "WxH")]
Interval = Annotated[tuple[int, int], _parsed_by(_parse_interval, "LOW-HIGH")]
Layout = Annotated[dict[str, int], _parsed_by(_parse_layout, "AXIS=N,...")]
Text = Annotated[str, _parsed_by(_parse_text, "TEXT")]
Word = Annotated[str, _parsed_by(_parse_word, "NAME")]
Pair = Annotated[tuple[str, str], _parsed_by(_parse_pair, "NAME=VALUE")]
Lora = Annotated[tuple[str, float], _parsed_by(_parse_lora, "PATH[:FACTOR]")]
Weights = Annotated[str, _parsed_by(check_path, "PATH")]

_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
  """Checks paths; parses `Size | None` as Size, for a clear error message."""
  if info.type is Path:
    return _parsed_by(lambda text: Path(check_path(text)), "PATH")
  if info.type_origin not in (Union, UnionType):
    return None
  kinds = [k for k in get_args(info.type) if k is not type(None)]
  if kinds == [float, int]:
    return _spec(Number)
  if len(kinds) == 1 and hasattr(kinds[0], "__metadata__"):
    return _spec(kinds[0])
  return None


_CONFIG = (
  tyro.conf.DisallowNone,
  tyro.conf.FlagCreatePairsOff,
  tyro.conf.HelptextFromCommentsOff,
  tyro.conf.OmitArgPrefixes,
  tyro.conf.OmitSubcommandPrefixes,
  tyro.conf.PositionalMetavarFromFieldName,
)


def parse(
  kind: Any,
  argv: Sequence[str] | None,
  prog: str,
  description: str | None = None,
) -> Any:
  """Parses a command line; see the module's docstring.

  Args:
    kind: Dataclass of the arguments, or a union of such classes.
    argv: Words after the command; None takes those of the process.
    prog: Name of the command in messages, such as "i2vgen sample".
    description: Head of the help text; the docstring of `kind` by default.

  Returns:
    An instance of `kind`.

  Raises:
    InputError: The command line is unusable.
    SystemExit: Help was asked for and has been printed.
  """

  def call(args: Sequence[str], output: io.StringIO) -> Any:
    # tyro draws coloured boxes on a terminal, but plain text into a buffer.
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
      return tyro.cli(
        kind,
        prog=prog,
        description=description,
        args=args,
        config=_CONFIG,
        registry=_REGISTRY,
      )

  argv = sys.argv[1:] if argv is None else argv
  output, help_text = io.StringIO(), io.StringIO()
  try:
    return call(argv, output)
  except SystemExit as e:
    if e.code:
      # Not every message of tyro names the subcommand; its usage does.
      words = itertools.takewhile(lambda word: word[:1] != "-", argv)
      with contextlib.suppress(SystemExit):
        call([*words, "--help"], help_text)
      command = help_text.getvalue().removeprefix("usage: ").partition(" [")[0]
      message = _one_line(output.getvalue())
      raise InputError(f"{message}; see {command} --help") from None
    text = re.sub(r"\(default:\s+None\)", "(optional)", output.getvalue())
    print(*map(str.rstrip, text.splitlines()), sep="\n")
    raise


def _one_line(text: str) -> str:
  """The message in an error box of tyro."""
  # Title, message, perhaps other sections, and the command for help.
  sections = re.split(r"^\s*[-─]+\s*$", text, flags=re.MULTILINE)
  _, *facts, _ = (" ".join(s.split()).rstrip(" .") for s in sections)
  facts = [f for f in facts if not f.startswith("Argument helptext")]
  return "; ".join(facts).replace("Error parsing", "argument", 1)
