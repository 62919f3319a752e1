"""What a run leaves to read without TensorBoard: metrics.jsonl, curve.png.

A line of `metrics.jsonl` is one report: `step`, the steps done, and what was
told after them by name; a number that is not finite is null. A run that
resumes drops the lines of steps that it will do again.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from i2vgen_jax.errors import InputError
from i2vgen_jax.training.files import replacing

METRICS, CURVE = "metrics.jsonl", "curve.png"


def resume(workdir: Path, step: int) -> None:
  """Makes the record that of a run which goes on after `step` steps.

  Raises:
    InputError: the record cannot be read, or matplotlib is missing.
  """
  path = workdir / METRICS
  kept = [row for row in read(workdir) if row["step"] <= step]
  if path.exists():
    with replacing(path) as partial:
      partial.write_text("".join(map(_line, kept)))
  draw(workdir)


def append(workdir: Path, step: int, values: Mapping[str, float]) -> None:
  """Adds the report after `step` steps."""
  finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
  with (workdir / METRICS).open("a") as file:
    file.write(_line({"step": step} | finite))


def read(workdir: Path) -> list[dict[str, Any]]:
  """The reports so far, in their order; none without a record.

  A last line without its end, which a run that was killed leaves, is passed
  over.

  Raises:
    InputError: the record cannot be read, or has a line that is no report.
  """
  path = workdir / METRICS
  if not path.exists():
    return []
  try:
    lines = path.read_text().split("\n")[:-1]
  except (OSError, UnicodeDecodeError) as e:
    raise InputError(
      f"cannot read {path}: {e}; move it away, and a new one is begun"
    ) from e
  return [_report(line, n, path) for n, line in enumerate(lines, 1)]


def draw(workdir: Path) -> None:
  """Draws the training's loss and that on unseen clips over the steps.

  Without a loss there is nothing to draw, and no picture.

  Raises:
    InputError: the record cannot be read, or matplotlib is missing.
  """
  try:
    from matplotlib.figure import Figure
  except ImportError as e:
    raise InputError(
      "cannot draw the loss, matplotlib is missing; install i2vgen-jax[data]"
    ) from e
  rows = read(workdir)
  figure = Figure(figsize=(7, 4), layout="constrained")
  axes = figure.subplots()
  for name, label, marker in (
    ("loss", "training", ""),
    ("unseen_loss", "unseen clips", "o"),
  ):
    points = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
    if points:
      axes.plot(*zip(*points, strict=True), marker=marker, label=label)
  if not axes.lines:
    return
  axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
  axes.grid(alpha=0.3)
  axes.legend()
  with replacing(workdir / CURVE) as partial:
    figure.savefig(partial, format="png", dpi=120, metadata={"Software": None})


def _line(report: Mapping[str, Any]) -> str:
  return json.dumps(report) + "\n"


def _report(line: str, number: int, path: Path) -> dict[str, Any]:
  try:
    report = json.loads(line)
  except ValueError:
    report = None
  if not isinstance(report, dict) or not isinstance(report.get("step"), int):
    raise InputError(
      f"line {number} of {path} is no report of a step; move the file away, "
      "and a new one is begun"
    )
  return report
