"""Progress on stderr: one line that is rewritten, or a few lines in a log."""

import sys
import time

# Lines per job where nobody looks at a terminal.
_LINES = 8


class Line:
  """The progress of one job at a time; may be called from any thread."""

  def __init__(self):
    self.silent = False
    self._job, self._total, self._done, self._width = "", 0, 0, 0
    self._start = self._first = 0.0

  def begin(self, job: str, total: int, first: str = "") -> None:
    """Starts a job of `total` pieces; `first` says what comes before them."""
    self._job, self._total, self._done = job, total, 0
    self._start = time.monotonic()
    if first:
      self._write(f"{job}: {first}")

  def update(self, done: int) -> None:
    """`done` pieces are finished; calls that come late are passed over."""
    if done <= self._done or done > self._total:
      return
    passed = self._lines(done) > self._lines(self._done)
    if not self._done:
      # The first piece waits for the compiler: it says nothing of the rest.
      self._first = time.monotonic()
    self._done = done
    if passed or sys.stderr.isatty():
      self._write(f"{self._job}: {done}/{self._total}{self._remaining()}")

  def end(self) -> None:
    """The job is finished."""
    seconds = time.monotonic() - self._start
    self._write(f"{self._job}: done in {_clock(seconds)}", last=True)
    self._done = self._total

  def _lines(self, done: int) -> int:
    return done * _LINES // self._total

  def _remaining(self) -> str:
    if self._done < 2:
      return ""
    seconds = (time.monotonic() - self._first) / (self._done - 1)
    return f", {_clock(seconds * (self._total - self._done))} left"

  def _write(self, text: str, last: bool = False) -> None:
    if self.silent:
      return
    if sys.stderr.isatty():
      text, self._width = text.ljust(self._width), len(text)
      print(f"\r{text}", end="\n" if last else "", file=sys.stderr, flush=True)
      self._width = 0 if last else self._width
    else:
      print(text, file=sys.stderr, flush=True)


class Lines:
  """Progress of one job after the other."""

  def __init__(self):
    self._line, self._job = Line(), ""

  def __call__(self, job: str, done: int, total: int) -> None:
    """`done` of `total` pieces of a job are finished."""
    if job != self._job:
      self.end()
      self._line.begin(job, total)
      self._job = job
    self._line.update(done)

  def end(self) -> None:
    """The last job is finished."""
    if self._job:
      self._line.end()
    self._job = ""


def note(text: str) -> None:
  """One line that a person should read, whatever the progress."""
  print(f"i2vgen: {text}", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}:{minutes:02}:{seconds:02}"
  return f"{minutes}:{seconds:02}"
