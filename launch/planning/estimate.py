"""Time, memory and work of a program on TPUs that are not here."""

import collections
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from i2vgen_jax.errors import InputError
from i2vgen_jax.files import write_json
from i2vgen_jax.flops import equations, needed_flops_by_path
from launch.planning import hlo, kernels
from launch.planning.chips import Chip, chip_of
from launch.planning.parts import size_in_bytes

# Wrappers that tracing adds to the path of a layer.
_WRAPPER = re.compile(
  r"(?:jvp|transpose|vmap|checkpoint|rematted_computation)\((.*)\)"
)
# Functions, control flow and arguments of a program.
_NO_LAYER = re.compile(
  r"jit\(.*|while|body|cond|branch_\d+_fun|closed_call|checkpoint|remat\w*"
  r"|shard_map|scan|.*\[.*"
)
_USED = re.compile(r"[Uu]sed ([\d.]+)([KMGT]) of ([\d.]+)([KMGT])")
# Part of the key of what is kept, which changes with how times are modelled.
_TIMES = "3"
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Estimate:
  """What a program takes.

  Attributes:
    seconds: time on each chip by layer, for one run.
    collectives: part of the time that moves data between chips.
    flops: multiplications and additions on all chips by layer, as plain code
      does them, without what padding and recomputation add.
    temporaries: bytes on each chip beside arguments and results.
    results: bytes of results on each chip that are no arguments.
    fits: whether the compiler could place all of it.
  """

  seconds: Mapping[str, float]
  collectives: float
  flops: Mapping[str, int]
  temporaries: int
  results: int
  fits: bool = True

  @classmethod
  def nothing(cls, seconds: Mapping[str, float] | None = None) -> "Estimate":
    """No work and no memory, only time."""
    return cls(seconds or {}, 0.0, {}, 0, 0)

  def __add__(self, other: "Estimate") -> "Estimate":
    """Both, one after another."""
    return Estimate(
      seconds=_sum(self.seconds, other.seconds),
      collectives=self.collectives + other.collectives,
      flops=_sum(self.flops, other.flops),
      temporaries=max(self.temporaries, other.temporaries),
      results=max(self.results, other.results),
      fits=self.fits and other.fits,
    )

  def __mul__(self, times: int) -> "Estimate":
    """The same several times."""
    return dataclasses.replace(
      self,
      seconds={k: v * times for k, v in self.seconds.items()},
      collectives=self.collectives * times,
      flops={k: v * times for k, v in self.flops.items()},
    )

  def under(self, name: str) -> "Estimate":
    """The same with the layer's name before each path."""
    return dataclasses.replace(
      self,
      seconds=_renamed(self.seconds, name),
      flops=_renamed(self.flops, name),
    )


def _sum(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
  return dict(collections.Counter(a) + collections.Counter(b))


def _renamed(values: Mapping[str, Any], name: str) -> dict[str, Any]:
  renamed = collections.Counter()
  for path, value in values.items():
    _, _, rest = path.partition("/")
    renamed["/".join(filter(None, (name, rest)))] += value
  return dict(renamed)


def estimate(
  traced: jax.stages.Traced, topology: str, say: Say = lambda line: None
) -> Estimate:
  """Compiles a program for a topology, unless that was done before.

  Args:
    traced: the program, with arguments on devices of the topology.
    topology: such as v5e:4x4.
    say: called with what is being done.

  Raises:
    InputError: the compiler refuses the program for another reason than
      memory.
  """
  lowered = traced.lower()
  # Locations name source lines, which change without changing the program.
  key = _key(_TIMES + lowered.as_text(debug_info=False), topology)
  known = _known(key)
  if known is None:
    made = _compile(traced, lowered, topology, say)
    known = _keep(key, dataclasses.asdict(made))
  return Estimate(**known)


def _compile(
  traced: jax.stages.Traced,
  lowered: jax.stages.Lowered,
  topology: str,
  say: Say,
) -> Estimate:
  chip = chip_of(topology)
  work = collections.Counter()
  for path, count in needed_flops_by_path(traced.jaxpr.jaxpr).items():
    work[layer_of(path)] += count
  flops = {k: v for k, v in work.items() if v}
  say("compiling")
  try:
    compiled, text = _compiled(lowered)
  except jax.errors.JaxRuntimeError as e:
    used = _USED.search(str(e))
    if "RESOURCE_EXHAUSTED" not in str(e) or not used:
      lines = " ".join(str(e).strip().splitlines()[:2])
      raise InputError(f"the compiler for {topology} failed: {lines}") from e
    size = int(float(used[1]) * _UNITS[used[2]])
    return Estimate({}, 0.0, flops, size, 0, fits=False)
  seconds, collectives = collections.Counter(), 0.0
  for operation in hlo.operations(text, chip):
    seconds[layer_of(operation.path)] += operation.seconds
    collectives += operation.seconds if operation.is_collective else 0.0
  for path, time in _kernel_seconds(traced, topology, chip, say):
    seconds[layer_of(path)] += time
  sizes = compiled.memory_analysis()
  return Estimate(
    seconds=dict(seconds),
    collectives=collectives,
    flops=flops,
    temporaries=sizes.temp_size_in_bytes,
    results=sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
  )


def _compiled(
  lowered: jax.stages.Lowered,
) -> tuple[jax.stages.Compiled, str]:
  """A compiled program, and its text as the compiler writes it.

  `as_text` fails for programs of v6e with asynchronous operations.
  """
  with tempfile.TemporaryDirectory() as folder:
    options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
    compiled = lowered.compile(compiler_options=options)
    [path] = Path(folder).glob("*.after_codegen.txt")
    return compiled, path.read_text()


def _kernel_seconds(
  traced: jax.stages.Traced, topology: str, chip: Chip, say: Say
) -> list[tuple[str, float]]:
  """Paths and times of the Pallas kernels of a program."""
  calls = [
    (kernels.kernel_of(equation), times, path)
    for equation, times, path in equations(traced.jaxpr.jaxpr, kernels=True)
    if equation.primitive.name == "pallas_call"
  ]
  keys = {call.key: _key(call.key, topology) for call, *_ in calls}
  bundles = {name: _known(key) for name, key in keys.items()}
  new = {c.key: c for c, *_ in calls if bundles[c.key] is None}
  count = kernels.count_bundles(
    [*new.values()],
    topology,
    lambda done: say(f"kernel {done} of {len(new)}"),
  )
  for name, number in count.items():
    bundles[name] = _keep(keys[name], number)
  return [
    (path, times * call.seconds(bundles[call.key], chip))
    for call, times, path in calls
  ]


def layer_of(path: str) -> str:
  """The path of flax modules in the path of an operation.

  For example of jit(f)/transpose(jvp(I2VGenUNet))/down_0/resnet/conv_1/dot it
  is I2VGenUNet/down_0/resnet/conv_1.
  """
  names = []
  for name in _split(path):
    while match := _WRAPPER.fullmatch(name):
      name = match[1]
    for each in _split(name):
      # Of I2VGenUNet._trunk the module counts, not its method.
      each = each.partition(".")[0]
      if each and not _NO_LAYER.fullmatch(each) and each not in names[-1:]:
        names.append(each)
  return "/".join(names)


def _split(path: str) -> list[str]:
  """The elements of a path; slashes in brackets do not separate."""
  parts, depth = [""], 0
  for letter in path:
    depth += {"(": 1, ")": -1}.get(letter, 0)
    if letter == "/" and depth == 0:
      parts.append("")
    else:
      parts[-1] += letter
  return parts


# ---- Results of earlier runs ----


def _key(text: str, topology: str) -> str:
  names = ("jax", "jaxlib", "libtpu")
  versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
  everything = " ".join([text, topology, *versions])
  return hashlib.sha256(everything.encode()).hexdigest()


def _place(key: str) -> Path:
  base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(base) / "i2vgen-jax" / "plans" / f"{key}.json"


def _known(key: str) -> Any:
  path = _place(key)
  return json.loads(path.read_text()) if path.is_file() else None


def _keep(key: str, value: Any) -> Any:
  path = _place(key)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_json(path, value)
  return value


def size_by_kind(holds: Mapping[str, Any]) -> dict[str, int]:
  """Bytes on each device of arrays, by kind."""
  return {kind: size_in_bytes(tree) for kind, tree in holds.items()}
