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
import math
import re
from collections.abc import Callable, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args

import tyro

from i2vgen_jax.errors import InputError

MAX_FPS = 240


def parse_count(text: str) -> int:
  """An integer of at least 1."""
  number = _parse_int(text)
  if number < 1:
    raise ValueError(f"{number} is too few; use at least 1")
  return number


def parse_seed(text: str) -> int:
  """A seed that jax.random.key takes without losing bits."""
  number = _parse_int(text)
  if not 0 <= number < 2**32:
    raise ValueError(f"{number} is not between 0 and 2^32 - 1")
  return number


def parse_size(text: str) -> tuple[int, int]:
  """WIDTHxHEIGHT, in pixels."""
  width, cross, height = text.lower().partition("x")
  if not cross:
    raise ValueError(f"{text!r} is not WIDTHxHEIGHT")
  return parse_count(width), parse_count(height)


def parse_number(text: str) -> float:
  """A finite number."""
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise ValueError(f"{text!r} is not a finite number")
  return value


def parse_seconds(text: str) -> float:
  """A duration of at least 0.1 seconds."""
  value = parse_number(text)
  if value < 0.1:
    raise ValueError(f"{text} is too short; use at least 0.1")
  return value


def parse_fps(text: str) -> float:
  """Frames per second."""
  value = parse_number(text)
  if not 0.1 <= value <= MAX_FPS:
    raise ValueError(f"{text} is not between 0.1 and {MAX_FPS}")
  return value


def parse_text(text: str) -> str:
  """Text that can be encoded as UTF-8."""
  try:
    text.encode()
  except UnicodeEncodeError as e:
    raise ValueError("the text is not valid UTF-8") from e
  return text


def parse_pair(text: str) -> tuple[str, str]:
  """NAME=VALUE."""
  name, equals, value = text.partition("=")
  if not (name and equals and value):
    raise ValueError(f"{text!r} is not NAME=VALUE")
  return name, value


def _parse_int(text: str) -> int:
  try:
    return int(text)
  except ValueError:
    raise ValueError(f"{text!r} is not an integer") from None


def _parsed_by(
  parse: Callable[[str], Any], metavar: str, separator: str = ""
) -> tyro.constructors.PrimitiveConstructorSpec:
  """A type for tyro: one word, shown in the help as `metavar`."""

  def show(value: Any) -> list[str]:
    parts = value if isinstance(value, tuple) else (value,)
    return [separator.join(map(str, parts))]

  return tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar=metavar,
    instance_from_str=lambda words: parse(*words),
    is_instance=lambda value: value is not None,
    str_from_instance=show,
  )


Count = Annotated[int, _parsed_by(parse_count, "N")]
Seed = Annotated[int, _parsed_by(parse_seed, "SEED")]
Size = Annotated[tuple[int, int], _parsed_by(parse_size, "WxH", "x")]
Number = Annotated[float, _parsed_by(parse_number, "NUMBER")]
Seconds = Annotated[float, _parsed_by(parse_seconds, "SECONDS")]
Fps = Annotated[float, _parsed_by(parse_fps, "FPS")]
Text = Annotated[str, _parsed_by(parse_text, "TEXT")]
Pair = Annotated[tuple[str, str], _parsed_by(parse_pair, "NAME=VALUE", "=")]

_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _optional(
  info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec | None:
  """Parses `Size | None` as Size: tyro's unions garble the error message."""
  kinds = [k for k in get_args(info.type) if k is not type(None)]
  if info.type_origin in (Union, UnionType):
    if kinds == [float, int]:
      return Number.__metadata__[0]
    if len(kinds) == 1 and hasattr(kinds[0], "__metadata__"):
      return kinds[0].__metadata__[0]
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
  kind: Any, argv: Sequence[str], prog: str, description: str | None = None
) -> Any:
  """Parses a command line; see the module's docstring.

  Args:
    kind: Dataclass of the arguments, or a union of such classes.
    argv: Words after the command.
    prog: Name of the command in messages, such as "i2vgen sample".
    description: Head of the help text; the docstring of `kind` by default.

  Returns:
    An instance of `kind`.

  Raises:
    InputError: The command line is unusable.
    SystemExit: Help was asked for and has been printed.
  """
  # tyro draws coloured boxes on a terminal; into a buffer it writes plain text.
  output = io.StringIO()
  try:
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
      return tyro.cli(
        kind,
        prog=prog,
        description=description,
        args=argv,
        config=_CONFIG,
        registry=_REGISTRY,
      )
  except SystemExit as e:
    text = output.getvalue()
    if e.code:
      raise InputError(_one_line(text)) from None
    print(*map(str.rstrip, text.splitlines()), sep="\n")
    raise


def _one_line(text: str) -> str:
  """The message in an error box of tyro, and how to see the help."""
  # Title, message, perhaps other sections, and the command for help.
  sections = re.split(r"^\s*[-─]+\s*$", text, flags=re.MULTILINE)
  _, *facts, hint = (" ".join(s.split()).rstrip(" .") for s in sections)
  facts = [f for f in facts if not f.startswith("Argument helptext")]
  facts[0] = facts[0].replace("Error parsing", "argument")
  command = re.sub(r"^For full helptext, (see|run:?) ", "", hint)
  return "; ".join([*facts, f"see {command}"])
