"""Tables that list which torch key holds which of our parameters.

The tables are built from `Part`s, which describe a network in both directions
and in two forms at once.
"""

import dataclasses
from collections.abc import Callable, Container, Iterable, Iterator

import numpy as np

# The forms of Hugging Face's libraries; all others are those of original code.
LIBRARIES = ("diffusers", "transformers")

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
  """A pair of inverse functions on NumPy arrays; neither copies.

  Attributes:
    to_flax: torch's array to ours.
    to_torch: our array to torch's.
  """

  to_flax: Callable[[np.ndarray], np.ndarray]
  to_torch: Callable[[np.ndarray], np.ndarray]


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

  def key_in(self, keys: Container[str]) -> str:
    """The spelling that a file uses, or the first one if it has none."""
    return next((key for key in self.keys if key in keys), self.keys[0])

  def torch_shape(self, shape: Shape) -> Shape:
    """Shape of torch's whole tensor, from that of our array."""
    first, *rest = self.layout.to_torch(np.broadcast_to(0.0, shape)).shape
    return (first * self.part[1], *rest)

  def flax_shape(self, shape: Shape) -> Shape:
    """Shape of all our arrays in torch's tensor, stacked as there.

    Raises:
      ValueError, IndexError: torch's tensor has another rank.
    """
    return self.layout.to_flax(np.broadcast_to(0.0, shape)).shape


@dataclasses.dataclass(frozen=True)
class Table:
  """All rows of one network in one form of its weights.

  Attributes:
    rows: one for each of our parameters.
    ignored: torch keys that a file may have and that hold no weights.
  """

  rows: tuple[Row, ...]
  ignored: frozenset[str] = frozenset()


# ---- Networks ----

Kind = Callable[[str, tuple[str, ...]], Iterable[Row]]


@dataclasses.dataclass(frozen=True)
class Part:
  """A part of a network, with its names in our tree and in two forms.

  Attributes:
    path: our path inside the surrounding part.
    content: the parts inside, iterated once, or what makes a layer's rows.
    key: key in diffusers or transformers, inside the surrounding part;
      alternatives are separated by "|", and the first is written. None is the
      same as `path`.
    original: key in the original code; None is the same as `key`.
    original_content: layer in the original code, if its layout differs.
  """

  path: str
  content: Kind | Iterable["Part"]
  key: str | None = None
  original: str | None = None
  original_content: Kind | None = None


def rows(
  parts: Iterable[Part], form: str, path: str = "", keys: Iterable[str] = ("",)
) -> Iterator[Row]:
  """The rows of some parts in one form.

  Args:
    parts: parts of one network.
    form: one of `LIBRARIES`, or any other name for the original code.
    path: our path of the surrounding part.
    keys: spellings of its torch key.
  """
  for part in parts:
    key, content = part.path if part.key is None else part.key, part.content
    if form not in LIBRARIES:
      key = key if part.original is None else part.original
      content = part.original_content or content
    inner_path = _join("/", path, part.path)
    inner_keys = tuple(
      _join(".", outer, name) for outer in keys for name in key.split("|")
    )
    if callable(content):
      yield from content(inner_path, inner_keys)
    else:
      yield from rows(content, form, inner_path, inner_keys)


def _join(separator: str, *names: str) -> str:
  return separator.join(filter(None, names))
