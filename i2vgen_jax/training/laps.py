"""Where the time of a run goes."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

# What a run spends time on: `start` until the weights are on the devices,
# `compile` before the first step, `data` while the devices wait for a batch,
# `checkpoint` and `evaluate` while no step runs, and `train` for all else.
KINDS = ("start", "compile", "train", "data", "checkpoint", "evaluate")
# Time of no report: between two starts, and of steps that were done again.
AWAY = "stopped or repeated"


class Laps:
  """A stopwatch: each end of a lap adds the time since the last one.

  Attributes:
    since: when the last lap ended, in seconds of `time.monotonic`.
  """

  def __init__(self):
    self._seconds = dict.fromkeys(KINDS, 0.0)
    self.since = time.monotonic()

  def end(self, kind: str) -> None:
    """Adds the time since the last end to one of `KINDS`."""
    now = time.monotonic()
    self._seconds[kind] += now - self.since
    self.since = now

  def report(self) -> dict[str, float]:
    """Seconds since the last report as `seconds/KIND`, and the time in UTC.

    Those of all reports of a run add up to its goodput.
    """
    values = {f"seconds/{kind}": s for kind, s in self._seconds.items() if s}
    self._seconds = dict.fromkeys(KINDS, 0.0)
    return values | {"time": time.time()}


def spent(reports: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Seconds since the first start of a run by what they went to.

  The share of `train` is the goodput of the run.

  Args:
    reports: all of a run, without those of steps that were done again.
  """

  def total(reports: Sequence[Mapping[str, Any]], kind: str) -> float:
    return math.fsum(row.get(f"seconds/{kind}", 0.0) for row in reports)

  seconds = {kind: total(reports, kind) for kind in KINDS}
  first = math.fsum(total(reports[:1], kind) for kind in KINDS)
  whole = reports[-1]["time"] - reports[0]["time"] + first
  return seconds | {AWAY: max(whole - math.fsum(seconds.values()), 0.0)}
