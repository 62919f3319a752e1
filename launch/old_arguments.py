"""Argument types of the commands that are not on tyro yet."""

import argparse
import math
from typing import NoReturn

from i2vgen_jax.errors import InputError

MAX_FPS = 240


class Parser(argparse.ArgumentParser):
  """Raises InputError instead of printing its usage and leaving."""

  def __init__(self, *args, **kwargs):
    # A run that an abbreviation started means another thing one option later.
    kwargs = {"allow_abbrev": False} | kwargs
    kwargs |= {"formatter_class": argparse.RawDescriptionHelpFormatter}
    super().__init__(*args, **kwargs)

  def error(self, message: str) -> NoReturn:
    raise InputError(f"{message}; see {self.prog} --help")


def count(text: str) -> int:
  """A whole number of things, at least 1."""
  number = _whole(text)
  if number < 1:
    raise argparse.ArgumentTypeError(f"{number} is too few; use at least 1")
  return number


def seed(text: str) -> int:
  """What jax.random.key takes without losing bits."""
  number = _whole(text)
  if not 0 <= number < 2**32:
    raise argparse.ArgumentTypeError(f"{number} is not within 0 to 2^32 - 1")
  return number


def size(text: str) -> tuple[int, int]:
  """WxH, in pixels."""
  width, cross, height = text.lower().partition("x")
  if not cross:
    raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT")
  return count(width), count(height)


def number(text: str) -> float:
  """A finite number."""
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
  return value


def rate(text: str) -> float:
  """Frames per second."""
  value = number(text)
  if not 0.1 <= value <= MAX_FPS:
    raise argparse.ArgumentTypeError(f"{text} is not within 0.1 to {MAX_FPS}")
  return value


def sentence(text: str) -> str:
  """Text that can be written down; a broken encoding cannot."""
  try:
    text.encode()
  except UnicodeEncodeError as e:
    raise argparse.ArgumentTypeError("the text is not valid UTF-8") from e
  return text


def pair(text: str) -> tuple[str, str]:
  """NAME=VALUE."""
  name, equals, value = text.partition("=")
  if not (name and equals and value):
    raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
  return name, value


def _whole(text: str) -> int:
  try:
    return int(text)
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"{text!r} is not a whole number"
    ) from None
