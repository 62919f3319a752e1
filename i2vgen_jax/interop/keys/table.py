"""A table lists which torch key holds which of our parameters."""

import dataclasses
from collections.abc import Iterable

from i2vgen_jax.interop.keys.layouts import CONV2D, LINEAR, PLAIN, Layout


@dataclasses.dataclass(frozen=True)
class Row:
  """One of our arrays and its place in a torch file.

  Attributes:
    path: path of our parameter, names joined by "/".
    keys: spellings of the torch key; the first is the one we write.
    layout: conversion between the two arrays.
    part: (i, n): our array is slice i of n equal slices of the first axis of
      torch's, as in a stacked query-key-value matrix. The n rows of such a
      tensor share their keys.
  """

  path: str
  keys: tuple[str, ...]
  layout: Layout
  part: tuple[int, int] = (0, 1)


@dataclasses.dataclass(frozen=True)
class Table:
  """All rows of one network in one form of its weights.

  Attributes:
    rows: one for each of our parameters.
    ignored: torch keys that a file may have and that hold no weights.
  """

  rows: tuple[Row, ...]
  ignored: frozenset[str] = frozenset()


def linear(path: str, *keys: str, bias: bool = True) -> Iterable[Row]:
  """Rows of a linear layer."""
  return weight_and_bias(path, keys, LINEAR, bias)


def conv2d(path: str, *keys: str, bias: bool = True) -> Iterable[Row]:
  """Rows of a 2-D convolution."""
  return weight_and_bias(path, keys, CONV2D, bias)


def norm(path: str, *keys: str) -> Iterable[Row]:
  """Rows of a group or layer norm; torch calls the scale `weight`."""
  yield Row(f"{path}/scale", _suffixed(keys, "weight"), PLAIN)
  yield Row(f"{path}/bias", _suffixed(keys, "bias"), PLAIN)


def weight_and_bias(
  path: str, keys: tuple[str, ...], layout: Layout, bias: bool = True
) -> Iterable[Row]:
  """Rows of a layer with a kernel of the given layout."""
  yield Row(f"{path}/kernel", _suffixed(keys, "weight"), layout)
  if bias:
    yield Row(f"{path}/bias", _suffixed(keys, "bias"), PLAIN)


def _suffixed(keys: tuple[str, ...], suffix: str) -> tuple[str, ...]:
  return tuple(f"{key}.{suffix}" for key in keys)
