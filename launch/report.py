"""`i2vgen report`: how a training run went, as a table and a picture."""

import dataclasses
import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from i2vgen_jax.errors import InputError
from i2vgen_jax.files import read_json
from i2vgen_jax.training import record
from i2vgen_jax.training.laps import AWAY, spent
from launch import arguments

_MEANINGS = {
  "start": "weights read or drawn",
  "compile": "programs compiled before the first step",
  "train": "training steps",
  "data": "devices waited for data",
  "checkpoint": "steps waited for a checkpoint",
  "evaluate": "held-out loss and sample pictures",
  AWAY: "between two starts, and steps done again after a failure",
}
# Of the last report, with its unit.
_LAST = {
  "loss": "",
  "unseen_loss": "on held-out clips",
  "learning_rate": "",
  "grad_norm": "",
  "examples_per_second": "",
  "frames_per_second": "",
  "tflops_per_second": "",
  "mfu": "of the peak of the devices",
  "rollbacks": "",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
  """Says where the time of a training run went and how its losses fell.

      i2vgen report runs/tiny

  It also draws WORKDIR/curve.png, as the run does. The run may still be going
  on.

  Attributes:
    workdir: Folder of the run.
  """

  workdir: tyro.conf.Positional[Path]


def main(argv: list[str]) -> None:
  """Prints the table and draws the picture.

  Raises:
    InputError: the folder has no reports of a run.
  """
  workdir = arguments.parse(Arguments, argv, "i2vgen report").workdir
  rows = record.read(workdir)
  if not rows:
    raise InputError(
      f"no reports of a training in {workdir / record.METRICS}; give the "
      "--workdir of i2vgen train"
    )
  config = read_json(workdir / record.CONFIG)
  print("\n".join(lines(rows, config["train"]["num_steps"])))
  record.draw(workdir)
  print(f"\ndrawn in {workdir / record.CURVE}")


def lines(rows: Sequence[dict[str, Any]], num_steps: int) -> list[str]:
  """The report as text, with the goodput: the share of training steps."""
  seconds = spent(rows)
  whole = math.fsum(seconds.values())
  goodput = seconds["train"] / whole
  text = [
    f"step {rows[-1]['step']} of {num_steps}, "
    f"{_duration(whole)} since the first start, goodput {goodput:.1%}",
    "",
  ]
  text += [
    f"{kind:20} {_duration(s):>10} {s / whole:7.2%}  {_MEANINGS[kind]}"
    for kind, s in seconds.items()
  ]
  skipped = sum(row.get("skipped", 0) for row in rows)
  text += ["", f"{'skipped steps':20} {skipped:10.0f}"]
  for name, unit in _LAST.items():
    found = [row[name] for row in rows if row.get(name) is not None]
    if found:
      text.append(f"{name:20} {found[-1]:10.4g}  {unit}".rstrip())
  return text


def _duration(seconds: float) -> str:
  return str(datetime.timedelta(seconds=round(seconds)))
