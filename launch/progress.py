"""Progress on stderr: a bar or table on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.table import Table
from tqdm import tqdm

# Lines per job where stderr is not a terminal.
_LINES = 8


class ProgressBar:
  """Shows the progress of one job at a time; may be called from any thread.

  As a context manager it ends the last job:

      with ProgressBar() as progress:
        build(progress=progress)  # which calls progress(job, done, total)

  Attributes:
    silent: whether to show nothing.
  """

  def __init__(self):
    self.silent = False
    self._job, self._total, self._done = "", 0, 0
    self._start = self._first = 0.0
    self._at_first = 0
    self._compiles = False
    self._bar: tqdm | None = None

  def __enter__(self) -> "ProgressBar":
    return self

  def __exit__(self, *exception: object) -> None:
    if exception[0] is None:
      self.end()
    elif self._bar is not None:
      self._bar.close()

  def __call__(self, job: str, done: int, total: int) -> None:
    """Reports `done` of `total` pieces; a new `job` ends the one before."""
    if job != self._job:
      self.end()
      self.begin(job, total)
    self.update(done)

  def begin(self, job: str, total: int, first: str = "") -> None:
    """Starts a job; `first` describes what happens before its first piece."""
    self._job, self._total, self._done = job, total, 0
    self._start = time.monotonic()
    self._compiles = bool(first)
    if first:
      self._print(f"{job}: {first}", end="" if sys.stderr.isatty() else "\n")

  def update(self, done: int) -> None:
    """Reports `done` finished pieces; late calls are ignored."""
    if done <= self._done or done > self._total or self.silent:
      return
    if not self._done:
      # What comes first includes compilation: estimates start after it.
      self._first, self._at_first = time.monotonic(), done
    if sys.stderr.isatty():
      self._draw(done)
    elif done * _LINES // self._total > self._done * _LINES // self._total:
      left = ""
      if self._done:
        seconds = (time.monotonic() - self._first) / (done - self._at_first)
        seconds *= self._total - done
        left = f", {tqdm.format_interval(seconds)} left"
      self._print(f"{self._job}: {done}/{self._total}{left}")
    self._done = done

  def end(self) -> None:
    """Ends the job, if there is one."""
    if not self._job:
      return
    if self._bar is not None:
      self._bar.close()
      self._bar = None
    text = tqdm.format_interval(time.monotonic() - self._start)
    if self._done and self._compiles:
      first = tqdm.format_interval(self._first - self._start)
      text += f", first step after {first}"
    self._print(f"{self._job}: done in {text}")
    self._job, self._done = "", self._total

  def _draw(self, done: int) -> None:
    if self._bar is None:
      self._bar = tqdm(
        desc=self._job,
        total=self._total,
        initial=done,
        leave=False,
        mininterval=0,
        miniters=1,
        dynamic_ncols=True,
      )
    else:
      self._bar.update(done - self._done)

  def _print(self, text: str, end: str = "\n") -> None:
    if not self.silent:
      start = "\r" if sys.stderr.isatty() else ""
      print(f"{start}{text}", end=end, file=sys.stderr, flush=True)


class Row(NamedTuple):
  """One of several jobs: what it does, for how long, and what it said last."""

  name: str
  state: str
  time: str
  said: str


class StateTable:
  """The states of several jobs: a table on a terminal, its changes in a log.

  As a context manager it leaves the last table on the terminal.
  """

  # What is above the lower end of a small terminal.
  _ORDER = ("running", "failed", "waiting", "finished")

  def __init__(self):
    self._states: dict[str, str] = {}
    console = Console(stderr=True, markup=False, highlight=False)
    self._live = Live(console=console, auto_refresh=False)

  def __enter__(self) -> "StateTable":
    if sys.stderr.isatty():
      self._live.start()
    return self

  def __exit__(self, *exception: object) -> None:
    self._live.stop()

  def show(self, rows: Sequence[Row]) -> None:
    """Shows the jobs as they are now."""
    if not sys.stderr.isatty():
      for row in rows:
        if row.state not in ("waiting", self._states.get(row.name)):
          time = f" in {row.time}" if row.time else ""
          said = f", {row.said}" if row.said else ""
          note(f"{row.name}: {row.state}{time}{said}")
        self._states[row.name] = row.state
      return
    table = Table(box=None, pad_edge=False)
    for name in Row._fields[:-1]:
      table.add_column(name)
    table.add_column("last line", no_wrap=True, overflow="ellipsis")
    for row in sorted(rows, key=lambda row: self._ORDER.index(row.state)):
      table.add_row(*row)
    self._live.update(table, refresh=True)


def note(text: str) -> None:
  """Prints one line on stderr, whether progress is silent or not."""
  print(f"i2vgen: {text}", file=sys.stderr, flush=True)
