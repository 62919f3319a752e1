"""The progress bar on a terminal and the lines in a log."""

import io
import re
import sys

import pytest

from launch import progress
from launch.progress import ProgressBar, Row, StateTable


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """A clock that a test sets; starts at 100 seconds."""
  now = [100.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  return now


def follow(bar, total, clock, seconds_each=2.0):
  bar.begin("base", total, "compiling")
  clock[0] += 30  # the compiler
  for done in range(1, total + 1):
    bar.update(done)
    clock[0] += seconds_each
  bar.end()


def test_log_has_few_lines(capsys, clock):
  follow(ProgressBar(), 200, clock)
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == "base: compiling"
  assert lines[-1] == "base: done in 07:10, first step after 00:30"
  assert 5 <= len(lines) <= 12


def test_short_jobs_show_every_piece(capsys, clock):
  follow(ProgressBar(), 3, clock)
  lines = capsys.readouterr().err.splitlines()
  assert [line.partition(",")[0] for line in lines[1:-1]] == [
    "base: 1/3",
    "base: 2/3",
    "base: 3/3",
  ]


def test_remaining_time_leaves_out_the_compiler(capsys, clock):
  bar = ProgressBar()
  bar.begin("base", 1000)
  clock[0] += 500
  for done in range(1, 501):
    bar.update(done)
    clock[0] += 10
  text = capsys.readouterr().err.splitlines()[-1]
  assert text == "base: 500/1000, 1:23:20 left"


def test_remaining_time_of_batches(capsys, clock):
  bar = ProgressBar()
  bar.begin("clips", 64)
  for done in (16, 32):
    clock[0] += 160
    bar.update(done)
  text = capsys.readouterr().err.splitlines()[-1]
  assert text == "clips: 32/64, 05:20 left"


def test_terminal_rewrites_one_line(monkeypatch, clock):
  terminal = Terminal()
  monkeypatch.setattr(sys, "stderr", terminal)
  follow(ProgressBar(), 20, clock)
  text = terminal.getvalue()
  assert text.count("\n") == 1 and text.endswith("\n")
  shown = text.rstrip("\n").split("\r")[1:]
  # The bar draws 20 pieces and then clears itself.
  assert len(shown) == 1 + 20 + 2 + 1
  for done, bar in enumerate(shown[1:21], 1):
    assert f" {done}/20 " in bar
  # Every text covers the longer one before it.
  lengths = [len(part) for part in shown]
  for before, after, length in zip(shown, shown[1:], lengths[1:], strict=False):
    assert length >= len(before.rstrip()) or not after
  assert shown[-1] == "base: done in 01:10, first step after 00:30"


def test_a_callable_for_several_jobs(capsys, clock):
  with ProgressBar() as bar:
    for job in ("scan", "write"):
      for done in (1, 2):
        bar(job, done, 2)
  lines = capsys.readouterr().err.splitlines()
  assert [line.partition(",")[0] for line in lines] == [
    "scan: 1/2",
    "scan: 2/2",
    "scan: done in 00:00",
    "write: 1/2",
    "write: 2/2",
    "write: done in 00:00",
  ]


def test_silent(capsys, clock):
  bar = ProgressBar()
  bar.silent = True
  follow(bar, 20, clock)
  assert capsys.readouterr().err == ""


def test_late_and_repeated_calls_are_ignored(capsys, clock):
  bar = ProgressBar()
  bar.begin("base", 4)
  for done in (2, 1, 2, 3):
    bar.update(done)
  bar.end()
  bar.update(4)
  lines = capsys.readouterr().err.splitlines()
  assert [text[:9] for text in lines] == [
    "base: 2/4",
    "base: 3/4",
    "base: don",
  ]


def states(table):
  a = Row("rate=[1]", "waiting", "", "")
  b = Row("rate=2", "finished", "", "before")
  with table:
    table.show([a, b])
    a = Row("rate=[1]", "running", "0:00:01", "step 1")
    table.show([a, b])
    table.show([a._replace(said="step 2"), b])
    table.show([Row("rate=[1]", "failed", "0:00:03", "status 1: no"), b])


def test_a_log_has_a_line_for_each_change(capsys):
  states(StateTable())
  assert capsys.readouterr().err.splitlines() == [
    "i2vgen: rate=2: finished, before",
    "i2vgen: rate=[1]: running in 0:00:01, step 1",
    "i2vgen: rate=[1]: failed in 0:00:03, status 1: no",
  ]


def test_a_terminal_keeps_the_last_table(monkeypatch):
  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.setenv("COLUMNS", "80")
  monkeypatch.setattr(sys, "stderr", Terminal())
  states(StateTable())
  shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sys.stderr.getvalue())
  assert "step 2" in shown
  *_, title, failed, finished = shown.strip().splitlines()
  assert title.split() == ["name", "state", "time", "last", "line"]
  assert failed.split() == [
    "rate=[1]",
    "failed",
    "0:00:03",
    "status",
    "1:",
    "no",
  ]
  assert finished.split() == ["rate=2", "finished", "before"]
