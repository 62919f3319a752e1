"""A training step or a video on a topology, and what it takes."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from i2vgen_jax import sharding
from i2vgen_jax.errors import InputError
from launch.planning import chips, parts, programs
from launch.planning.chips import Chip
from launch.planning.estimate import Estimate, estimate, size_by_kind
from launch.planning.programs import Program
from launch.progress import note

# Size of the clip that a refine stage is given.
_SMALL = (448, 256)
# Smallest side of a size that is proposed, in pixels.
_SMALLEST = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """What is planned.

  Attributes:
    config: of a training of a U-Net.
    mode: a training step of it, or a video.
    topology: chips to run on.
    layout: devices along each axis of the mesh.
    size: (width, height) of the frames in pixels.
    num_frames: number of frames of each clip.
    batch_size: number of clips of a training step.
    remat: what a training step computes again in its backward pass; see
      `i2vgen_jax.remat`.
    frozen: see `programs.make_stage`.
  """

  config: ConfigDict
  mode: Literal["train", "sample"]
  topology: str
  layout: Mapping[str, int]
  size: tuple[int, int]
  num_frames: int
  batch_size: int
  remat: str | None
  frozen: Path | None = None

  @property
  def chip(self) -> Chip:
    """The chip of the topology."""
    return chips.chip_of(self.topology)

  def mesh(self) -> Mesh:
    """The mesh of all devices of the topology."""
    devices = chips.devices(self.topology)
    return sharding.make_mesh(**self.layout, devices=devices)

  def settings(self) -> str:
    """The options of the command line that describe the run."""
    mesh = ",".join(f"{axis}={n}" for axis, n in self.layout.items())
    size = "x".join(map(str, self.size))
    words = f"--size {size} --num-frames {self.num_frames} --mesh {mesh}"
    if self.mode == "train":
      words += f" --batch-size {self.batch_size}"
      words += f" --remat {self.remat}" if self.remat else ""
    return words


@dataclasses.dataclass(frozen=True)
class Planned:
  """A program of a run and what it takes.

  Attributes:
    name: of the program.
    times: how often a video or a training step runs it.
    cost: of one run of it.
    holds: bytes on each device beside results and temporaries, by kind.
  """

  name: str
  times: int
  cost: Estimate
  holds: Mapping[str, int]

  @property
  def memory(self) -> dict[str, int]:
    """Bytes on each device, by kind."""
    return {
      **self.holds,
      "results": max(self.cost.results, 0),
      "temporaries": self.cost.temporaries,
    }

  @property
  def seconds(self) -> float:
    """Time of all its runs for a video or a training step."""
    return self.times * sum(self.cost.seconds.values())

  def fits(self, chip: Chip) -> bool:
    """Whether the memory of a device is enough."""
    return self.cost.fits and sum(self.memory.values()) <= chip.memory


def plan(run: Run, *, whole: bool, only_memory: bool = False) -> list[Planned]:
  """Compiles the programs of a run.

  Args:
    run: what to plan.
    whole: whether to compile the U-Net as a whole, rather than each of its
      distinct layers.
    only_memory: compile only the layer that needs most memory.

  Raises:
    InputError: the mesh, the batch or the frames do not divide, or the
      compiler refuses a program.
  """
  make = _plan_sample if run.mode == "sample" else _plan_train
  return make(run, run.mesh(), whole, only_memory)


def first_that_fits(run: Run) -> Run | None:
  """The first of some changed runs that fits in memory; None if none does."""
  for changed in _changes(run):
    note(f"trying {changed.settings()}")
    try:
      planned = plan(changed, whole=False, only_memory=True)
    except InputError as e:
      note(f"  {e}")
      continue
    if all(program.fits(run.chip) for program in planned):
      return changed
  return None


def _changes(run: Run) -> Iterator[Run]:
  """Each with the changes of those before: what costs least comes first."""
  devices = len(chips.devices(run.topology))
  if run.mode == "train" and run.remat != "nothing":
    run = dataclasses.replace(run, remat="nothing")
    yield run
  for axis in ("fsdp", "frames"):
    most = devices if axis == "fsdp" else run.num_frames
    while (n := 2 * run.layout.get(axis, 1)) <= most:
      layout = {**run.layout, axis: n}
      others = layout.get("fsdp", 1) * layout.get("frames", 1)
      if devices % others:
        break
      layout["data"] = devices // others
      run = dataclasses.replace(run, layout=layout)
      yield run
  while run.mode == "train" and run.batch_size % 2 == 0:
    run = dataclasses.replace(run, batch_size=run.batch_size // 2)
    yield run
  while run.num_frames > 1:
    run = dataclasses.replace(run, num_frames=run.num_frames // 2)
    yield run
  while min(run.size) >= 2 * _SMALLEST:
    # Halves of the sides that all U-Nets of public weights take.
    half = tuple(side // 2 // _SMALLEST * _SMALLEST for side in run.size)
    run = dataclasses.replace(run, size=half)
    yield run


def _plan_sample(
  run: Run, mesh: Mesh, whole: bool, only_memory: bool
) -> list[Planned]:
  stage = programs.make_stage(
    run.config,
    run.frozen,
    jnp.bfloat16,
    size=run.size,
    num_frames=run.num_frames,
  )
  given = _SMALL if stage.starts_from_clip else stage.sampling.size
  planned = []

  def compiled(program: Program) -> Any:
    if program.name == "denoise" and not whole:
      cost = _in_parts(found.values(), mesh, run.topology, only_memory)
    elif program.name == "start" and not whole:
      # It runs once, and compiling the layers of CLIP takes ten minutes.
      cost = Estimate.nothing()
    else:
      cost = estimate(program.traced, run.topology, _say(program.name))
    holds = size_by_kind(program.holds)
    planned.append(Planned(program.name, program.times, cost, holds))
    return _Results(program.traced, mesh)

  with parts.recording() as found:
    programs.sampling_programs(stage, mesh, given, compiled)
  return planned


class _Results:
  """Shapes and shardings of a program's results, as a compiled one has them."""

  def __init__(self, traced: jax.stages.Traced, mesh: Mesh):
    self.out_info = traced.out_info
    self.output_shardings = jax.tree.map(
      lambda x: sharding.clips_sharding(mesh, x.shape), traced.out_info
    )


def _plan_train(
  run: Run, mesh: Mesh, whole: bool, only_memory: bool
) -> list[Planned]:
  config = run.config.copy_and_resolve_references()
  config.data.size = run.size
  config.train.batch_size = run.batch_size
  dtype = jnp.dtype(config.unet.get("dtype", "float32"))
  stage = programs.make_stage(config, run.frozen, dtype)
  with parts.recording() as found:
    # Layers inside of remat are not recorded, so this traces without it.
    program, encode = programs.train_programs(
      config, stage, mesh, run.num_frames
    )
  holds = size_by_kind(program.holds)
  if whole:
    if run.remat:
      unet = stage.unet.clone(remat=True, remat_policy=run.remat)
      stage = dataclasses.replace(stage, unet=unet)
      program, _ = programs.train_programs(config, stage, mesh, run.num_frames)
    cost = estimate(program.traced, run.topology, _say("train"))
    return [Planned("train", 1, cost, holds)]
  cost = _in_parts(
    found.values(), mesh, run.topology, only_memory, True, run.remat
  )
  if not only_memory:
    cost += estimate(encode, run.topology, _say("encode"))
  # The update reads and writes the state and reads the gradients.
  state = sum(holds[k] for k in ("parameters", "average", "optimizer"))
  traffic = 2 * state + 2 * holds["parameters"]
  cost += Estimate.nothing({"optimizer": traffic / run.chip.bandwidth})
  gradients = {"gradients": holds["parameters"]}
  return [Planned("train", 1, cost, holds | gradients)]


def _in_parts(
  found: Collection[parts.Part],
  mesh: Mesh,
  topology: str,
  only_memory: bool,
  backward: bool = False,
  policy: str | None = None,
) -> Estimate:
  """The sum over the layers of a U-Net.

  What a layer is given stays in memory until its backward pass. In sampling,
  the inputs of half of the layers do, for the decoder. What else it keeps for
  its backward pass is taken to be all that it needs alone, unless `policy` is
  to keep nothing.
  """
  sizes = {id(part): part.size(mesh) for part in found}
  kept = sum(len(part.names) * sizes[id(part)] for part in found)
  chosen = [*found]
  if only_memory:
    chosen = [max(found, key=lambda part: sizes[id(part)])]
  total, needed = Estimate.nothing(), 0
  for number, part in enumerate(chosen, 1):
    say = _say(f"layer {number} of {len(chosen)}, {part.names[0]}")
    traced = part.trace(mesh, backward, policy)
    cost = estimate(traced, topology, say)
    for name in part.names:
      total += cost.under(f"I2VGenUNet/{name}")
    needed += len(part.names) * cost.temporaries
  if not backward:
    kept //= 2
  elif policy != "nothing":
    # Layers that were not compiled need memory like that of their inputs.
    compiled = sum(len(part.names) * sizes[id(part)] for part in chosen)
    kept += needed * kept // compiled
  return dataclasses.replace(total, temporaries=total.temporaries + kept)


def _say(name: str) -> Callable[[str], None]:
  return lambda line: note(f"{name}: {line}")


def video_seconds(planned: Sequence[Planned]) -> float:
  """Time of all programs together."""
  return sum(program.seconds for program in planned)
