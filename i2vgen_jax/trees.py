"""Named arrays compared by shape."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax

Shape = tuple[int, ...]
_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class Differences:
  """How the arrays that were found differ from those expected.

  Attributes:
    missing: expected names that were not found.
    unexpected: found names that were not expected.
    wrong_shapes: name -> (found, expected).
  """

  missing: tuple[str, ...]
  unexpected: tuple[str, ...]
  wrong_shapes: dict[str, tuple[Shape, Shape]]

  def __str__(self) -> str:
    """Empty if there are none."""
    problems = {
      "missing": self.missing,
      "unexpected": self.unexpected,
      "wrong shapes": [
        f"{name} is {found} and should be {expected}"
        for name, (found, expected) in self.wrong_shapes.items()
      ],
    }
    return "; ".join(
      f"{len(some)} {kind}: {few(some)}"
      for kind, some in problems.items()
      if some
    )


def compare_shapes(
  found: Mapping[str, Shape], expected: Mapping[str, Shape]
) -> Differences:
  """The differences between two sets of named arrays, sorted by name."""
  return Differences(
    missing=tuple(sorted(expected.keys() - found.keys())),
    unexpected=tuple(sorted(found.keys() - expected.keys())),
    wrong_shapes={
      name: (found[name], expected[name])
      for name in sorted(found.keys() & expected.keys())
      if found[name] != expected[name]
    },
  )


def shapes_of(tree: Any) -> dict[str, Shape]:
  """The shape of each leaf by its path, for example "mlp/in/kernel"."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
    for path, leaf in leaves
  }


def few(names: Iterable[str]) -> str:
  """The first of some names, and how many more there are."""
  names = list(names)
  more = len(names) - _SHOWN
  return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
