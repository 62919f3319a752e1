"""What a run logs without TensorBoard: metrics.jsonl and curve.png.

A line of `metrics.jsonl` is one report: `step`, the number of steps done, and
the values logged after it by name; a value that is not finite is null. A run
that resumes drops the lines of steps that it will repeat.
"""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from i2vgen_jax.errors import InputError, reading, writing
from i2vgen_jax.files import (
  read_json,
  remove_temporary,
  replacing,
  write_json_lines,
)
from i2vgen_jax.training.laps import spent
from i2vgen_jax.training.metrics import say

METRICS, CURVE = "metrics.jsonl", "curve.png"
CONFIG = "config.json"

# Keys of the config that decide which examples a step reads.
_ORDER = (
  r"component|objective|train\.(seed|batch_size)"
  r"|data\.(video_dirs|image_dirs|size|buckets|equal_work|augmentation\..*)"
)
# And, for a LoRA, those that decide what it is added to, and how much.
_ADDED = r"init_from|lora\..*"


def check_same(
  workdir: Path, config: Mapping[str, Any], allowed: Collection[str]
) -> None:
  """Refuses to resume a run with other data, as their order would jump.

  A LoRA is not continued on other weights either.

  Args:
    workdir: of the run, which may be new.
    config: the values now, in groups.
    allowed: keys that may differ.

  Raises:
    InputError: a key that decides the order of examples differs, or one that
      decides what a LoRA is added to.
  """
  path = workdir / CONFIG
  if not path.exists():
    return
  before = flatten_dict(read_json(path), sep=".")
  # As JSON has it: tuples are lists.
  after = flatten_dict(json.loads(json.dumps(config)), sep=".")
  if len(before.get("data.buckets", ())) > 1:
    # Runs that began before there was such a key.
    before.setdefault("data.equal_work", False)
  fixed = _ORDER
  if config.get("objective") == "lora":
    fixed += "|" + _ADDED
  for key in sorted(before.keys() & after.keys()):
    if not re.fullmatch(fixed, key) or before[key] == after[key]:
      continue
    if key not in allowed:
      raise InputError(
        f"{workdir} was trained with --config.{key}={before[key]}, now it is "
        f"{after[key]}; use the value from before, another workdir, or "
        f"--allow={key}"
      )


def resume(workdir: Path, step: int) -> None:
  """Keeps the reports of a run that resumes after `step` steps.

  Lines that are not the report of a step are left out, which is said; the
  file that has them is kept as metrics.jsonl.damaged.

  Raises:
    InputError: the record cannot be read, or matplotlib is missing.
  """
  remove_temporary(workdir)
  path = workdir / METRICS
  if path.exists():
    with reading(path, "move it away, and a new one is started"):
      lines = path.read_text("utf-8", errors="replace").split("\n")
    rows = [*map(_report, lines)]
    kept = [row for row in rows if row is not None and row["step"] <= step]
    # The last line is empty, or incomplete if the run was killed.
    if dropped := rows[:-1].count(None):
      damaged = path.replace(path.with_name(f"{METRICS}.damaged"))
      lines = "1 line that is" if dropped == 1 else f"{dropped} lines that are"
      say(f"{path}: left out {lines} not the report of a step; see {damaged}")
    write_json_lines(path, kept)
  draw(workdir)


def append(workdir: Path, step: int, values: Mapping[str, float]) -> None:
  """Adds the report after `step` steps."""
  finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
  path = workdir / METRICS
  with writing(path, "free the disk"), path.open("a") as file:
    file.write(json.dumps({"step": step} | finite) + "\n")


def read(workdir: Path) -> list[dict[str, Any]]:
  """The reports so far, in order; an empty list without a record.

  An incomplete last line, which a killed run leaves, is skipped.

  Raises:
    InputError: the record cannot be read, or has a line that is not a report.
  """
  path = workdir / METRICS
  if not path.exists():
    return []
  with reading(path, "move it away, and a new one is started"):
    lines = path.read_text("utf-8").split("\n")[:-1]
    reports = [*map(_report, lines)]
    if None in reports:
      number = reports.index(None) + 1
      raise ValueError(f"line {number} is not the report of a step")
    return reports


def _report(line: str) -> dict[str, Any] | None:
  """The report in a line; None if there is none."""
  try:
    report = json.loads(line)
    return report if isinstance(report["step"], int) else None
  except (ValueError, KeyError, TypeError):
    return None


def draw(workdir: Path) -> None:
  """Draws losses, gradient norm, speed and the use of time over the steps.

  Draws nothing if no loss has been logged.

  Raises:
    InputError: the record cannot be read, or matplotlib is missing.
  """
  try:
    from matplotlib.figure import Figure
  except ImportError as e:
    raise InputError(
      "cannot draw the loss: matplotlib is missing; install i2vgen-jax[data]"
    ) from e
  rows = read(workdir)
  held_out = sorted({k for row in rows for k in row if "unseen_loss" in k})
  if not any(row.get(name) for row in rows for name in ("loss", *held_out)):
    return
  figure = Figure(figsize=(11, 7), layout="constrained")
  panels = figure.subplots(2, 2).flat
  for title, names in (
    ("loss", ("loss", *held_out)),
    ("gradient norm", ("grad_norm",)),
    ("examples a second", ("examples_per_second",)),
  ):
    axes = next(panels)
    for name in names:
      points = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
      if points:
        label = name.replace("unseen_loss", "held-out clips")
        label = label.replace("loss", "training")
        marker = "o" if name in held_out else ""
        axes.plot(*zip(*points, strict=True), marker=marker, label=label)
    axes.set(title=title, xlabel="step", ylim=(0, None))
    axes.grid(alpha=0.3)
    if len(axes.lines) > 1:
      figure.legend(handles=axes.lines, loc="outside upper center", ncols=3)
  _draw_time(next(panels), rows)
  with replacing(workdir / CURVE) as temporary:
    figure.savefig(
      temporary, format="png", dpi=100, metadata={"Software": None}
    )


def _draw_time(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
  """Bars of the shares of time; reports of earlier versions have none."""
  timed = [row for row in rows if "time" in row]
  if not timed:
    axes.set_axis_off()
    return
  seconds = spent(timed)
  shares = [100 * s / sum(seconds.values()) for s in seconds.values()]
  bars = axes.barh([*seconds], shares)
  axes.bar_label(bars, [f"{share:.1f} %" for share in shares], padding=2)
  axes.invert_yaxis()
  axes.margins(x=0.15)
  axes.set(title="time since the first start", xlabel="per cent")
