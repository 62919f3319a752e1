"""The boundaries turn failures into one line; other errors pass through."""

import pickle

import pytest

from i2vgen_jax.errors import InputError, reading, writing


@pytest.mark.parametrize(
  ("error", "said"),
  [
    (FileNotFoundError(2, "No such file", "x"), "No such file"),
    (ValueError("two\n lines"), "two lines"),
    (KeyError("size"), "'size' is missing"),
    (TypeError(), "TypeError"),
    (RecursionError("too deep"), "too deep"),
  ],
)
def test_failures_to_read_name_the_file_and_the_advice(error, said):
  with (
    pytest.raises(InputError) as caught,
    reading("a.json", "copy the file again"),
  ):
    raise error
  assert str(caught.value) == f"cannot read a.json: {said}; copy the file again"
  assert caught.value.reason == "damaged"
  assert caught.value.__cause__ is error


def test_failures_to_write_name_the_file():
  with (
    pytest.raises(InputError, match=r"cannot write a\.json: No space"),
    writing("a.json"),
  ):
    raise OSError(28, "No space left on device")
  with pytest.raises(ValueError, match="ours"), writing("a.json"):
    raise ValueError("ours")


def test_an_input_error_passes_through():
  with pytest.raises(InputError) as caught, reading("a.json"):
    raise InputError("b.json is empty", "empty")
  assert str(caught.value) == "b.json is empty"


def test_the_reason_survives_pickling():
  error = pickle.loads(pickle.dumps(InputError("too dark", "min_brightness")))
  assert (str(error), error.reason) == ("too dark", "min_brightness")
