"""`i2vgen plan`: whether a run fits on TPUs that are not here, and its time."""

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
from ml_collections import ConfigDict

from i2vgen_jax.errors import InputError
from i2vgen_jax.files import check_writable, write_json
from i2vgen_jax.remat import Policy
from launch import arguments
from launch.arguments import Count, Layout, Size
from launch.planning import chips
from launch.planning.chips import Chip
from launch.planning.runs import (
  Planned,
  Run,
  first_that_fits,
  plan,
  video_seconds,
)
from launch.train import load_config

# Names of the U-Net's layers.
_BLOCK = re.compile(r"(down|up)_\d_\d|mid_\d")
_NUMBER = re.compile(r"_\d(?=_|$)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
  """Plans a training or a video on TPUs that are not here.

      i2vgen plan --config configs/i2vgen_xl.py:released --topology v5e:1x1 \\
          --mode sample

  Compiles the programs with libtpu and prints what each chip must hold, the
  modelled time by layer, and what share of the chip's peak that is. Results
  are kept, so that a second call is fast. docs/performance.md says how the
  times are made and how far they can be trusted.

  Attributes:
    config: A config of a U-Net, FILE:NAME.
    topology: Chips, such as v5e:4x4, v5p:2x2x1, v6e:2x2, v4:2x2x1 or
      tpu7x:2x2x1; v5e:1x1 is one chip.
    mode: A training step, or a video with weights in bfloat16.
    size: Size of the frames; that of the config by default.
    num_frames: Number of frames of each clip; the most of the config by
      default.
    batch_size: Clips in a training step; that of the config by default.
    frozen: Cascade folder with the networks beside the U-Net; by default they
      are those of all public weights.
    mesh: Devices along each axis, such as data=8,fsdp=2; that of the config by
      default, and for a video `frames`.
    remat: Plan a training step with config.unet.remat=True and this
      config.unet.remat_policy, whatever the config has.
    whole: Compile every program as a whole, which takes longer, and
      print how far the sum over layers is from it. Without it, each distinct
      layer of the U-Net is compiled once and their costs are added up, and a
      video is planned without the time of its text and image encoders.
    json: File for all figures.
    plot: PNG file that shows where the time goes, by layer.
  """

  config: str
  topology: str
  mode: Literal["train", "sample"] = "train"
  size: Size | None = None
  num_frames: Count | None = None
  batch_size: Count | None = None
  frozen: Path | None = None
  mesh: Layout | None = None
  remat: Policy | None = None
  whole: bool = False
  json: Path | None = None
  plot: Path | None = None


def main(argv: list[str]) -> None:
  """Prints the plan.

  Raises:
    InputError: no such config or topology, a mesh or batch that does not
      divide, or no libtpu.
  """
  args = arguments.parse(Arguments, argv, "i2vgen plan")
  for path in filter(None, (args.json, args.plot)):
    check_writable(path)
  # The devices of the topology are not those of this machine, which cannot
  # read what JAX keeps of a program for them.
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_enable_compilation_cache", False)
  # Kernels name the lines of their source. What is kept of a program would not
  # be found again when a line moves.
  jax.config.update("jax_traceback_in_locations_limit", 0)
  run = _run(load_config(args.config), args)
  planned = plan(run, whole=args.whole)
  print(*_report(run, planned), sep="\n")
  errors = {}
  if args.whole:
    errors = _errors(planned, plan(run, whole=False))
    print("", *_error_table(errors), sep="\n")
  fits = all(program.fits(run.chip) for program in planned)
  fitting = run if fits else first_that_fits(run)
  if fitting is None:
    print("no smaller run that was tried fits")
  elif not fits:
    print(f"this fits: {fitting.settings()}")
  if args.json is not None:
    write_json(args.json, _figures(run, planned, fitting, errors))
  if args.plot is not None:
    _draw(args.plot, run, planned)


def _run(config: ConfigDict, args: Arguments) -> Run:
  """What the command line asks for, with the config's values as defaults."""
  if "unet" not in config:
    raise InputError(
      f"{args.config} trains no U-Net; plan one of base, refine, released or "
      "image_to_video"
    )
  if args.mode == "sample":
    size, num_frames = config.sampling.size, config.sampling.num_frames
    layout = {"data": 1, "frames": len(chips.devices(args.topology))}
  else:
    size, layout = config.data.size, config.mesh
    num_frames = max(bucket[0] for bucket in config.data.buckets)
  return Run(
    config=config,
    mode=args.mode,
    topology=args.topology,
    layout=dict(args.mesh or layout),
    size=args.size or tuple(size),
    num_frames=args.num_frames or num_frames,
    batch_size=args.batch_size or config.train.batch_size,
    remat=args.remat or _policy(config),
    frozen=args.frozen,
  )


def _policy(config: ConfigDict) -> Policy | None:
  unet = config.unet
  return unet.get("remat_policy", "nothing") if unet.get("remat") else None


# ---- What is printed ----


def _report(run: Run, planned: Sequence[Planned]) -> Iterator[str]:
  devices = len(chips.devices(run.topology))
  yield f"{run.mode} on {run.topology}, {devices} devices: {run.settings()}"
  yield ""
  yield from _memory_table(planned, run.chip)
  for program in planned:
    if program.cost.seconds:
      yield ""
      yield from _time_table(program, run.chip.peak * devices)
  if len(planned) > 1:
    yield ""
    yield f"one video: {video_seconds(planned):.1f} s"


def _memory_table(planned: Sequence[Planned], chip: Chip) -> Iterator[str]:
  names = [program.name for program in planned]
  yield f"{'GiB on each device':24}" + "".join(f"{n:>12}" for n in names)
  kinds = dict.fromkeys(kind for program in planned for kind in program.memory)
  totals = [sum(program.memory.values()) for program in planned]
  for kind in kinds:
    cells = [program.memory.get(kind, 0) for program in planned]
    yield f"  {kind:22}" + "".join(f"{n / 2**30:12.2f}" for n in cells)
  yield f"  {'total':22}" + "".join(f"{n / 2**30:12.2f}" for n in totals)
  fits = all(program.fits(chip) for program in planned)
  verdict = "fits" if fits else "does not fit"
  yield f"{verdict} in {chip.memory / 2**30:.0f} GiB"


def _time_table(program: Planned, peak: float) -> Iterator[str]:
  """Time and work of each kind of layer, beside a peak of all devices."""
  seconds, work = by_kind(program.cost.seconds), by_kind(program.cost.flops)
  total = sum(seconds.values())
  repeated = f", {program.times} times" if program.times > 1 else ""
  title = program.name + repeated
  yield f"{title:24}{'ms':>12}{'share':>8}{'TFLOP':>8}{'peak':>8}"

  def row(name: str, time: float, count: float) -> str:
    of_peak = count / (time * peak) if time else 0.0
    return (
      f"  {name:22}{time * 1e3:12.2f}{time / total:8.1%}{count / 1e12:8.2f}"
      f"{of_peak:8.1%}"
    )

  for name, time in sorted(seconds.items(), key=lambda item: -item[1]):
    yield row(name, time, work.get(name, 0))
  yield row("total", total, sum(work.values()))
  if program.cost.collectives:
    yield row("of which collectives", program.cost.collectives, 0)


def _errors(
  whole: Sequence[Planned], in_parts: Sequence[Planned]
) -> dict[str, dict[str, float]]:
  """Relative errors of the programs that were added up from their layers."""
  errors = {}
  for program, parts in zip(whole, in_parts, strict=True):
    if not parts.seconds or parts.cost == program.cost:
      continue
    memory = sum(parts.memory.values()) / sum(program.memory.values())
    work = sum(parts.cost.flops.values()) / sum(program.cost.flops.values())
    errors[program.name] = {
      "time": parts.seconds / program.seconds - 1,
      "work": work - 1,
      "memory": memory - 1,
    }
  return errors


def _error_table(errors: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
  yield f"{'error of the sum':24}{'time':>12}{'work':>12}{'memory':>12}"
  for name, kinds in errors.items():
    yield f"  {name:22}" + "".join(f"{x:+12.1%}" for x in kinds.values())


def by_kind(values: Mapping[str, float]) -> dict[str, float]:
  """Sums over the layers of the same kind.

  In the U-Net these are the layers of its blocks, such as `spatial`, and
  elsewhere the networks.
  """
  sums = collections.Counter()
  for path, value in values.items():
    sums[_block_and_kind(path)[1]] += value
  return dict(sums)


def _block_and_kind(path: str) -> tuple[str, str]:
  """The block of a layer, and what kind of layer it is."""
  network, *names = path.split("/")
  if network != "I2VGenUNet" or not names:
    return network or "other", network or "other"
  block = names[0]
  in_block = _BLOCK.fullmatch(block) and len(names) > 1
  return block, names[1] if in_block else _NUMBER.sub("", block)


def _draw(path: Path, run: Run, planned: Sequence[Planned]) -> None:
  """Draws the program that takes most of the time."""
  # Needs matplotlib, which the rest does not.
  from launch.planning import plot

  longest = max(planned, key=lambda program: program.seconds)
  seconds = collections.Counter()
  for layer, time in longest.cost.seconds.items():
    seconds[_block_and_kind(layer)] += time
  plot.draw(path, seconds, f"{longest.name} on {run.topology}, modelled")


def _figures(
  run: Run,
  planned: Sequence[Planned],
  fitting: Run | None,
  errors: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
  return {
    "errors": errors,
    "run": run.settings(),
    "fitting": None if fitting is None else fitting.settings(),
    "topology": run.topology,
    "chip": dataclasses.asdict(run.chip),
    "programs": {
      program.name: {
        "times": program.times,
        "memory": program.memory,
        **dataclasses.asdict(program.cost),
      }
      for program in planned
    },
  }
