"""The progress line, in a terminal and in a log."""

import io
import sys

import pytest

from launch import progress
from launch.progress import Line


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """A clock that a test sets; starts at 100 seconds."""
  now = [100.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  return now


def follow(line, total, clock, seconds_each=2.0):
  line.begin("base", total, "compiling")
  clock[0] += 30  # the compiler
  for done in range(1, total + 1):
    line.update(done)
    clock[0] += seconds_each
  line.end()


def test_log_has_few_lines(capsys, clock):
  follow(Line(), 200, clock)
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == "base: compiling"
  assert lines[-1] == "base: done in 7:10"
  assert 5 <= len(lines) <= 12


def test_short_jobs_show_every_piece(capsys, clock):
  follow(Line(), 3, clock)
  lines = capsys.readouterr().err.splitlines()
  assert [line.partition(",")[0] for line in lines[1:-1]] == [
    "base: 1/3",
    "base: 2/3",
    "base: 3/3",
  ]


def test_remaining_time_leaves_out_the_compiler(capsys, clock):
  line = Line()
  line.begin("base", 1000)
  clock[0] += 500
  for done in range(1, 501):
    line.update(done)
    clock[0] += 10
  text = capsys.readouterr().err.splitlines()[-1]
  assert text == "base: 500/1000, 1:23:20 left"


def test_terminal_rewrites_one_line(monkeypatch, clock):
  terminal = Terminal()
  monkeypatch.setattr(sys, "stderr", terminal)
  follow(Line(), 20, clock)
  text = terminal.getvalue()
  assert text.count("\n") == 1 and text.endswith("\n")
  shown = text.rstrip("\n").split("\r")[1:]
  assert len(shown) == 22
  # What was longer is covered to its end.
  lengths = [len(part) for part in shown]
  for before, after, length in zip(shown, shown[1:], lengths[1:], strict=False):
    assert length >= len(before.rstrip()) or after == shown[-1]
  assert shown[-1].rstrip() == "base: done in 1:10"


def test_silent(capsys, clock):
  line = Line()
  line.silent = True
  follow(line, 20, clock)
  assert capsys.readouterr().err == ""


def test_late_and_repeated_calls_are_passed_over(capsys, clock):
  line = Line()
  line.begin("base", 4)
  for done in (2, 1, 2, 3):
    line.update(done)
  line.end()
  line.update(4)
  lines = capsys.readouterr().err.splitlines()
  assert [text[:9] for text in lines] == [
    "base: 2/4",
    "base: 3/4",
    "base: don",
  ]
