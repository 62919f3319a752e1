"""The compiler's own estimate of time, read from a compiled TPU program.

Each operation of a compiled program carries `estimated_cycles`, except Pallas
kernels (see `kernels`) and collectives. The body of a loop stands once in the
text, and the number of its trips in its condition.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

from launch.planning.chips import Chip

_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_PATH = re.compile(r'op_name="([^"]*)/[^/"]*"')
_CALLS = re.compile(
  r"(?:calls|to_apply|body|condition|branch_computations)="
  r"(?:%([\w.\-]+)|\{([^}]*)\})"
)
_WHILE = re.compile(r" while\(.*condition=%([\w.\-]+)")
_CONSTANT = re.compile(r"%([\w.\-]+) = s32\[\].* constant\((\d+)\)")
_LESS = re.compile(r" compare\(%[\w.\-]+, %([\w.\-]+)\), direction=LT")
_AHEAD = re.compile(r" = s32\[\]\S* add\(%[\w.\-]+, %([\w.\-]+)\)")
_COLLECTIVE = re.compile(
  r" = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all"
  r"|collective-permute)(?:-start)?\("
)
_GROUPS = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]*)\})")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+)(?:e\d\w*)?\[([\d,]*)\]")
_BITS = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class Operation:
  """An operation that takes time.

  Attributes:
    path: path of the layer that it belongs to.
    times: how often it runs.
    seconds: modelled time of all runs on a chip.
    is_collective: whether it moves data between chips.
  """

  path: str
  times: int
  seconds: float
  is_collective: bool


def operations(text: str, chip: Chip) -> list[Operation]:
  """The operations of a compiled program.

  Args:
    text: of the program after code generation.
    chip: what it was compiled for.
  """
  found = []
  computations = dict(_computations(text))
  for name, times in _counts(computations).items():
    for line in computations[name]:
      # JAX's primitive stands last.
      path = match[1] if (match := _PATH.search(line)) else ""
      if match := _COLLECTIVE.search(line):
        seconds = _link_seconds(match[2], match[1], line, chip)
        found.append(Operation(path, times, times * seconds, True))
      elif match := _CYCLES.search(line):
        seconds = int(match[1]) / chip.clock
        found.append(Operation(path, times, times * seconds, False))
  return found


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
  """Name and lines of each computation; the entry is last and named ENTRY.

  The attributes of a kernel may take several lines, the last of which begins
  with braces.
  """
  name, lines = None, []
  for line in text.splitlines():
    if name is None:
      if match := _HEAD.match(line):
        name = "ENTRY" if match[1] else match[2]
    elif line == "}":
      yield name, lines
      name, lines = None, []
    else:
      lines.append(line)


def _counts(computations: dict[str, list[str]]) -> dict[str, int]:
  """How often each computation runs. Callees stand before their callers."""
  counts = collections.Counter({"ENTRY": 1})
  for name in reversed(computations):
    for line in computations[name]:
      trips = 1
      if match := _WHILE.search(line):
        trips = _trips(computations[match[1]])
      for one, several in _CALLS.findall(line):
        for callee in (one, *re.findall(r"%([\w.\-]+)", several)):
          if callee in computations:
            counts[callee] += trips * counts[name]
  return {name: count for name, count in counts.items() if count}


def _trips(condition: list[str]) -> int:
  """The trips of a loop from 0 to a bound, as those of `lax.scan` are.

  The compiler starts some loops a step ahead: while i + 1 is below the bound.

  Raises:
    ValueError: the loop is another.
  """
  text = "\n".join(condition)
  constants = {name: int(value) for name, value in _CONSTANT.findall(text)}
  less, ahead = _LESS.search(text), _AHEAD.search(text)
  if not less or len(constants) != (2 if ahead else 1):
    raise ValueError(f"cannot tell the trips of a loop: {condition}")
  return constants[less[1]] - (constants[ahead[1]] if ahead else 0)


def _link_seconds(kind: str, shapes: str, line: str, chip: Chip) -> float:
  """Time on a ring of chips with links in both directions.

  The formulas are those of "How to Scale Your Model", section 3.
  """
  groups = _GROUPS.search(line)
  n = 2
  if groups:
    n = int(groups[1]) if groups[1] else groups[2].count(",") + 1
  # Of an asynchronous operation the tuple has the operand and the result.
  held = max(map(_bytes, _SHAPE.findall(shapes)), default=0)
  share = (n - 1) / n
  both_ways = 2 * chip.link
  match kind:
    case "all-gather":
      return held * share / both_ways
    case "reduce-scatter":
      return held * (n - 1) / both_ways
    case "all-reduce":
      return 2 * held * share / both_ways
    case "all-to-all":
      return held * n / 4 / both_ways
  return held / chip.link


def _bytes(shape: tuple[str, str]) -> int:
  kind, sides = shape
  bits = int(match[0]) if (match := _BITS.search(kind)) else 8
  return math.prod(map(int, filter(None, sides.split(",")))) * bits // 8
