"""`i2vgen sweep`: runs of one command that differ in a few settings.

A run is a command line that leaves all its results in files, and a training
resumes by the same one. So a sweep starts processes and looks at their exit
status. Engines such as Ray Tune, submitit and the launchers of Hydra were not
taken: they run Python functions, with a service, a queue or a config system of
their own, and jobs elsewhere are those of `i2vgen launch`.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from i2vgen_jax.errors import InputError, writing
from i2vgen_jax.files import locked, read_json, write_json
from i2vgen_jax.training import record
from i2vgen_jax.training.laps import spent
from launch import arguments, launch, outputs, ranking
from launch.arguments import Count, Text
from launch.progress import Row, StateTable, note

# What starts a command.
PROGRAM = (sys.executable, "-m", "launch.cli")
_LOOK = 0.5  # seconds between two looks at the processes
_LONGEST = 120  # characters of a name; file systems allow 255 bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
  """Runs a command once for each of the settings that a file lists.

      i2vgen sweep configs/sweep_training.py --workdir sweeps/training \\
          --metric loss -- train --config=configs/i2vgen_xl.py:tiny_lora

  After -- follow train, evaluate, sample or launch, which starts a job for each
  run, and the arguments of all runs. The function `sweep` of the file yields a
  dict for each run: keys of the config for train and launch, flags for the
  others. Each run has a folder in the workdir, with its log. The same command
  continues a sweep: finished runs are skipped, failed and interrupted ones are
  started again. At the end report.csv ranks the runs, and report.png shows the
  metric against the cost.

  Attributes:
    file: Python file with the function `sweep`.
    workdir: Folder of the sweep.
    metric: What ranks the runs: a name in metrics.jsonl of a training, such as
      unseen_loss, or in the JSON file of the others, with dots between groups.
    highest: The highest metric is the best; by default the lowest.
    cost: What the metric is drawn against: a name as for --metric, a setting,
      or the seconds of the command, for train those of its training steps.
    at_once: Number of runs at the same time.
    dry_run: Print the command of each run, for launch with all that its job
      would write and run, and run none.
  """

  file: tyro.conf.Positional[Path]
  workdir: Path
  metric: Text
  highest: bool = False
  cost: Text = "seconds"
  at_once: Count = 1
  dry_run: bool = False


def main(argv: list[str]) -> None:
  """Runs what is not finished, and writes the report.

  Raises:
    InputError: an argument or the file of the sweep is unusable, the folder is
      used by another sweep or has runs of another command, or no run has the
      metric.
    SystemExit: a run failed; the others have run, and the report is written.
  """
  dashes = argv.index("--") if "--" in argv else len(argv)
  args = arguments.parse(Arguments, argv[:dashes], "i2vgen sweep")
  runs = make_runs(args.file, args.workdir, argv[dashes + 1 :])
  if args.dry_run:
    for run in runs:
      print(f"i2vgen {shlex.join(run.words)}")
      command, *rest = run.words
      if command == "launch":
        launch.main([*rest[:1], "--dry-run", *rest[1:]])
    return
  outputs.make_folder(args.workdir)
  with locked(args.workdir) as lock:
    waiting = [run for run in runs if not run.is_finished()]
    _run_all(runs, waiting, args.at_once, lock)
    settings = {run.name: run.settings for run in runs}
    results = {run.name: run.results() for run in runs if run.is_finished()}
    if results:
      order = args.metric, args.cost, args.highest
      print(*ranking.write(args.workdir, settings, results, *order), sep="\n")
      note(f"wrote report.csv and report.png in {args.workdir}")
  if failed := len(runs) - len(results):
    note(f"{failed} of {len(runs)} failed; the same command tries them again")
    raise SystemExit(1)


# ---- What is run ----


# How the flag of a setting begins, the flag for the folder of a run, and the
# file with its results.
_COMMANDS = {
  "train": ("--config.", "--workdir={}", record.METRICS),
  "launch": ("--config.", "--workdir={}", record.METRICS),
  "evaluate": ("--", "--output={}", "figures.json"),
  "sample": ("--", "--output={}/video.mp4", "video.json"),
}


@dataclasses.dataclass
class Run:
  """One run of a sweep.

  Attributes:
    settings: what distinguishes it.
    shared: words after `i2vgen` that all runs share.
    folder: for its results; its name is that of the run.
    state: waiting, running, finished or failed.
    seconds: how long it has been running.
    said: the last line of its log.
  """

  settings: Mapping[str, Any]
  shared: Sequence[str]
  folder: Path
  state: str = "waiting"
  seconds: float = 0.0
  said: str = ""

  def __post_init__(self):
    self.name, self.log = self.folder.name, self.folder / "log.txt"
    self._mark = self.folder / "run.json"
    prefix, output, _ = _COMMANDS[self.shared[0]]
    flags = [f"{prefix}{k}={v}" for k, v in self.settings.items()]
    self._command = [*self.shared, *flags]
    self.words = [*self._command, output.format(self.folder)]
    if self.shared[0] == "launch":
      # Behind the backend. Names are unique: no two jobs train in one folder.
      self.words.insert(2, f"--name=sweep-{_digest(str(self.folder))}")

  def is_finished(self) -> bool:
    """Whether it ended well, now or before.

    Raises:
      InputError: another command did that.
    """
    if self.state == "waiting" and self._mark.exists():
      before = read_json(self._mark)["command"]
      if before != self._command:
        raise InputError(
          f"{self.folder} is a run of i2vgen {shlex.join(before)}; use that "
          "command or another --workdir"
        )
      self.state, self.said = "finished", "before"
    return self.state == "finished"

  def ended(self, status: int) -> None:
    """Takes in the exit status of its process."""
    if status:
      self.state = "failed"
      self.said = f"status {status}: {self.said}; see {self.log}"
    else:
      self.state, self.said = "finished", ""
      result = {"command": self._command, "seconds": self.seconds}
      write_json(self._mark, result)

  def results(self) -> dict[str, Any]:
    """Those of a finished run by name; of a training, the last of each."""
    results = {"seconds": read_json(self._mark)["seconds"]}
    *_, file = _COMMANDS[self.shared[0]]
    if file != record.METRICS:
      return results | read_json(self.folder / file)
    rows = record.read(self.folder)
    for row in rows:
      results |= {k: v for k, v in row.items() if v is not None}
    return results | ({"seconds": spent(rows)["train"]} if rows else {})

  def row(self) -> Row:
    took = datetime.timedelta(seconds=round(self.seconds))
    return Row(self.name, self.state, str(took) if took else "", self.said)


def make_runs(file: Path, workdir: Path, shared: Sequence[str]) -> list[Run]:
  """The runs that a file lists.

  Args:
    file: with the function `sweep`.
    workdir: of the sweep.
    shared: words after `i2vgen` that all runs share.

  Raises:
    InputError: the words or the file are unusable.
  """
  if not shared or shared[0] not in _COMMANDS:
    names = ", ".join(_COMMANDS)
    raise InputError(f"sweep needs -- and a command after it: one of {names}")
  own = {_COMMANDS[shared[0]][1].partition("=")[0]}
  if shared[0] == "launch":
    own |= {"--name", "--dry-run"}
  for flag in own.intersection(word.partition("=")[0] for word in shared):
    raise InputError(f"sweep sets {flag} of each run itself; leave it out")
  if not file.is_file():
    raise InputError(f"no file {file}; check the path")
  sweep = runpy.run_path(str(file)).get("sweep", lambda: ())
  runs = {}
  for settings in sweep():
    if not isinstance(settings, dict):
      raise InputError(f"sweep in {file} yields {settings!r}; yield a dict")
    name = name_of(settings)
    if name in runs:
      raise InputError(f"sweep in {file} yields {name} twice; yield it once")
    runs[name] = Run(settings, shared, workdir / name)
  if not runs:
    raise InputError(
      f"no function sweep in {file} that yields a dict for each run; write one"
    )
  return [*runs.values()]


def name_of(settings: Mapping[str, Any]) -> str:
  """The name of a run, which depends on its settings alone.

  Settings that are long or cannot be in the name of a folder have a part of
  their SHA-256 at the end.
  """
  text = ",".join(f"{k}={settings[k]}" for k in sorted(settings)) or "defaults"
  plain = re.sub(r"[^\w.=,+-]+", "_", text, flags=re.ASCII)
  if plain == text and len(text) <= _LONGEST:
    return text
  return f"{plain[:_LONGEST]}-{_digest(text)}"


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:8]


# ---- The runs ----


def _run_all(
  runs: Sequence[Run], waiting: list[Run], at_once: int, lock: int
) -> None:
  """Runs those that are waiting, in order.

  Each process keeps the lock of the workdir, whose descriptor this is: a sweep
  that was killed is not started again beside processes of it.
  """
  going: list[tuple[Run, float, subprocess.Popen]] = []
  with StateTable() as table, _stop_signals() as caught:
    try:
      while (waiting or going) and not caught:
        while waiting and len(going) < at_once:
          run = waiting.pop(0)
          going.append((run, time.monotonic(), _start(run, lock)))
        table.show([run.row() for run in runs])
        time.sleep(_LOOK)
        for run, start, process in going:
          status = process.poll()
          run.seconds = time.monotonic() - start
          run.said = _last_line(run.log)
          if status is not None:
            run.ended(status)
        going = [job for job in going if job[2].returncode is None]
      table.show([run.row() for run in runs])
      if caught:
        raise KeyboardInterrupt
    finally:
      # After a signal or an error; a training saves a checkpoint then.
      for _, _, process in going:
        process.terminate()
      for _, _, process in going:
        process.wait()


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
  """Collects Ctrl-C and SIGTERM; a second one raises KeyboardInterrupt.

  An exception at any time could lose a process that was just started.
  """
  caught: list[int] = []

  def catch(number: int, _: Any) -> None:
    if caught:
      raise KeyboardInterrupt
    caught.append(number)
    note("ending the runs; the same command continues the sweep")

  numbers = (signal.SIGINT, signal.SIGTERM)
  before = {number: signal.signal(number, catch) for number in numbers}
  try:
    yield caught
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _start(run: Run, lock: int) -> subprocess.Popen:
  run.state = "running"
  with writing(run.folder):
    run.folder.mkdir(exist_ok=True)
    log = run.log.open("a")
  with log:
    print(f"$ i2vgen {shlex.join(run.words)}", file=log, flush=True)
    return subprocess.Popen(
      [*PROGRAM, *run.words],
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      pass_fds=(lock,),
      # Ctrl-C reaches this process alone, which then ends the others.
      start_new_session=True,
    )


def _last_line(log: Path) -> str:
  with log.open("rb") as file:
    file.seek(max(log.stat().st_size - 2000, 0))
    text = file.read().decode(errors="replace")
  # A progress bar returns to the start of its line.
  line = re.split(r"[\r\n]+", text.strip())[-1]
  return line.removeprefix("i2vgen: ").removeprefix("error: ")
