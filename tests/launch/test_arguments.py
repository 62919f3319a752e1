"""What a number, a size or a sentence on the command line may be."""

import argparse

import pytest

from i2vgen_jax.errors import InputError
from launch import arguments


@pytest.mark.parametrize(
  ("kind", "text", "value"),
  [
    (arguments.count, "1", 1),
    (arguments.seed, "0", 0),
    (arguments.seed, "4294967295", 2**32 - 1),
    (arguments.size, "64x32", (64, 32)),
    (arguments.size, "64X32", (64, 32)),
    (arguments.number, "-1.5", -1.5),
    (arguments.rate, "23.976", 23.976),
    (arguments.sentence, "", ""),
    (arguments.sentence, "été", "été"),
  ],
)
def test_accepted(kind, text, value):
  assert kind(text) == value


@pytest.mark.parametrize(
  ("kind", "text"),
  [
    (arguments.count, "0"),
    (arguments.count, "-3"),
    (arguments.count, "2.5"),
    (arguments.count, "many"),
    (arguments.seed, "-1"),
    (arguments.seed, "4294967296"),
    (arguments.size, "64"),
    (arguments.size, "64x"),
    (arguments.size, "64x0"),
    (arguments.size, "64x-8"),
    (arguments.size, "64x32x3"),
    (arguments.number, "nan"),
    (arguments.number, "-inf"),
    (arguments.number, "x"),
    (arguments.rate, "0"),
    (arguments.rate, "nan"),
    (arguments.rate, "1e9"),
    (arguments.sentence, "\udcff"),
  ],
)
def test_refused(kind, text):
  with pytest.raises(argparse.ArgumentTypeError):
    kind(text)


def test_parser_raises_instead_of_leaving():
  parser = arguments.Parser("i2vgen it")
  parser.add_argument("--steps", type=arguments.count)
  assert parser.parse_args(["--steps", "3"]).steps == 3
  for argv in (["--steps", "-3"], ["--steps"], ["--step", "3"], ["stray"]):
    with pytest.raises(InputError, match="see i2vgen it --help"):
      parser.parse_args(argv)
