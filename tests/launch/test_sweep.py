"""`i2vgen sweep`: runs are skipped, continued and isolated, and ranked."""

import csv
import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cascade_standin import CONFIGS, SMALL_TRAINING, get_config
from flax.traverse_util import flatten_dict
from PIL import Image

from data_pipelines.procedural.build import build_procedural
from i2vgen_jax.errors import InputError
from i2vgen_jax.training import record
from launch import cli, sample, sweep

REPOSITORY = CONFIGS.parents[1]

# A training of three steps that resumes, and fails at one rate. A file `hold`
# stops all but five runs and a step of the sixth. The file `history` has a line
# for each step.
TRAINING = r"""
import json, pathlib, sys, time
words = dict(word.partition("=")[::2] for word in sys.argv[2:])
folder = pathlib.Path(words["--workdir"])
rate = float(words["--config.train.learning_rate"])
if rate == float(words.get("--config.fails", 0)):
  sys.exit("a bar\rcannot train at such a rate")
metrics = folder / "metrics.jsonl"
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
for step in range(done + 1, 4):
  while (folder.parent / "hold").exists() and (rate, step) > (0.6, 1):
    time.sleep(0.01)
  report = {"step": step, "loss": abs(rate - 0.2) + 1 / step}
  report |= {"time": 100.0 + step, "seconds/train": 10 * rate}
  with metrics.open("a") as file:
    file.write(json.dumps(report) + "\n")
  with (folder.parent / "history").open("a") as file:
    file.write(f"{folder.name} {step}\n")
"""
RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
SWEEP = f"""
def sweep():
  for rate in {RATES}:
    yield {{"train.learning_rate": rate}}
"""
NAMES = [f"train.learning_rate={rate}" for rate in RATES]
ARGV = ("sweep", "settings.py", "--workdir=work", "--metric=loss")


@pytest.fixture
def work(tmp_path, monkeypatch):
  """The workdir of sweeps over stand-ins of a training."""
  monkeypatch.chdir(tmp_path)
  Path("training.py").write_text(TRAINING)
  Path("settings.py").write_text(SWEEP)
  monkeypatch.setattr(sweep, "PROGRAM", (sys.executable, "training.py"))
  monkeypatch.setattr(sweep, "_LOOK", 0.02)
  return Path("work")


@pytest.fixture
def start(work):
  """Starts a sweep as a process of its own."""
  work.mkdir()
  Path("command.py").write_text(
    "import sys\n"
    "from launch import cli, sweep\n"
    "sweep.PROGRAM = (sys.executable, 'training.py')\n"
    "sys.exit(cli.main(sys.argv[1:]))\n"
  )
  command = (sys.executable, "command.py", *ARGV, "--at-once=2", "--", "train")
  env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
  return lambda: subprocess.Popen(
    command, env=env, stderr=subprocess.PIPE, text=True
  )


def history(work):
  path = work / "history"
  return path.read_text().splitlines() if path.exists() else []


def wait_for(condition):
  end = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


def children(process):
  path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
  return [int(child) for child in path.read_text().split()]


def is_alive(pid):
  path = Path(f"/proc/{pid}/stat")
  return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


def report(work):
  with (work / "report.csv").open() as file:
    return [*csv.DictReader(file)]


def test_a_killed_sweep_continues_and_repeats_nothing(start, run, work):
  # Five runs are finished, the sixth has done a step, the seventh none.
  (work / "hold").touch()
  first = start()
  wait_for(lambda: (work / NAMES[6] / "log.txt").exists())
  wait_for(lambda: len(history(work)) == 16)
  wait_for(lambda: len(children(first)) == 2)
  left = children(first)
  first.kill()
  first.wait()
  status, lines = run(*ARGV, "--", "train")
  assert status == 2
  assert "work is in use by another process" in lines[-1]
  for child in left:
    os.kill(child, signal.SIGKILL)
  wait_for(lambda: not any(map(is_alive, left)))
  before = history(work)
  steps = [f"{name} {step}" for name in NAMES for step in (1, 2, 3)]
  assert sorted(before) == steps[:16]
  (work / "hold").unlink()
  status, lines = run(*ARGV, "--", "train")
  assert status == 0
  assert sum(line.endswith(": finished, before") for line in lines) == 5
  assert history(work)[:16] == before
  assert sorted(history(work)) == sorted(steps)
  starts = [
    (work / name / "log.txt").read_text().count("$ i2vgen train")
    for name in NAMES
  ]
  assert starts == [1, 1, 1, 1, 1, 2, 2, 1, 1, 1, 1, 1]
  assert run(*ARGV, "--", "train")[0] == 0
  assert len(history(work)) == len(steps)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_runs(start, work, number):
  (work / "hold").touch()
  process = start()
  wait_for(lambda: len(history(work)) == 16)
  wait_for(lambda: len(children(process)) == 2)
  left = children(process)
  process.send_signal(number)
  _, err = process.communicate()
  assert process.returncode == 130
  assert "the same command continues the sweep" in err
  assert not any(map(is_alive, left))
  assert len(history(work)) == 16


def test_a_failure_is_isolated_and_tried_again(work, monkeypatch, capsys):
  argv = [*ARGV, "--at-once=3", "--", "train", "--config.fails=0.4"]
  with pytest.raises(SystemExit) as ended:
    cli.main(argv)
  assert ended.value.code == 1
  out, err = capsys.readouterr()
  log = work / NAMES[3] / "log.txt"
  said = f": status 1: cannot train at such a rate; see {log}"
  (line,) = [line for line in err.splitlines() if "cannot train" in line]
  assert line.startswith(f"i2vgen: {NAMES[3]}: failed")
  assert line.endswith(said.removeprefix(":"))
  assert "cannot train at such a rate" in log.read_text()
  assert err.splitlines()[-1] == (
    "i2vgen: 1 of 12 failed; the same command tries them again"
  )
  assert len(history(work)) == 3 * 11
  assert len(out.splitlines()) == 1 + 11
  assert report(work)[-1]["run"] == NAMES[3]
  assert not report(work)[-1]["rank"]
  Path("training.py").write_text(TRAINING.replace("fails", "never"))
  assert cli.main(argv) == 0
  assert len(history(work)) == 3 * 12
  assert all(row["rank"] for row in report(work))


def test_the_report_ranks(work, run, refused, capsys):
  assert cli.main([*ARGV, "--cost=train.learning_rate", "--", "train"]) == 0
  assert capsys.readouterr().out.splitlines()[1].split() == [
    *("1", "0.333", "0.2", NAMES[1])
  ]
  rows = report(work)
  assert [row["rank"] for row in rows] == [*map(str, range(1, 13))]
  losses = [float(row["loss"]) for row in rows]
  assert losses == sorted(losses)
  # The loss of the last step.
  assert losses[0] == pytest.approx(1 / 3)
  assert all(f"={row['train.learning_rate']}" in row["run"] for row in rows)
  with Image.open(work / "report.png") as picture:
    assert picture.width == 1280
  assert run(*ARGV, "--highest", "--", "train")[0] == 0
  rows = report(work)
  assert rows[0]["run"] == NAMES[-1]
  # Of all three reports.
  assert float(rows[0]["seconds"]) == pytest.approx(3 * 10 * RATES[-1])
  line = run(*ARGV, "--cost=learning_rate", "--", "train")[1][-1]
  assert "no run has a finite learning_rate" in line
  assert "such as train.learning_rate" in line
  assert "is a run of i2vgen train" in refused(*ARGV, "--", "train", "--x=1")


@pytest.mark.slow
def test_two_trainings(weights, tmp_path, capsys):
  """Of the ordinary command, in two steps each."""
  build_procedural(tmp_path / "data", 8, "train", size=(48, 32))
  file = tmp_path / "settings.py"
  file.write_text(
    "def sweep():\n  for seed in (0, 1):\n    yield {'train.seed': seed}\n"
  )
  argv = [
    *("sweep", str(file), f"--workdir={tmp_path}/work", "--metric=loss"),
    *("--", "train", f"--config={CONFIGS}:tiny"),
    f"--config.frozen={weights}",
    f"--config.data.video_dirs=('{tmp_path}/data/text_video/1.0.0',)",
    *SMALL_TRAINING,
    "--config.train.num_steps=2",
  ]
  assert cli.main(argv) == 0
  rows = report(tmp_path / "work")
  assert sorted(row["run"] for row in rows) == ["train.seed=0", "train.seed=1"]
  for row in rows:
    folder = tmp_path / "work" / row["run"]
    assert record.read(folder)[-1]["loss"] == float(row["loss"])
    assert (folder / "export" / "base" / "config.json").exists()
    assert float(row["seconds"]) > 0
  assert float(rows[0]["loss"]) < float(rows[1]["loss"])
  capsys.readouterr()
  assert cli.main(argv) == 0
  assert capsys.readouterr().err.count("finished, before") == 2


# ---- Without processes ----


def test_names_are_unique_and_stable():
  grid = [
    {"train.learning_rate": rate, "data.size": size}
    for rate, size in itertools.product((1e-3, 2e-3), ((96, 64), (64, 96)))
  ]
  texts = [{"init_from": text} for text in ("a/b", "a_b", "a b", "b" * 300)]
  names = [sweep.name_of(settings) for settings in (*grid, *texts, {})]
  assert len({*names}) == len(names)
  assert all(len(name) < 200 and "/" not in name for name in names)
  turned = [sweep.name_of(dict(reversed(s.items()))) for s in grid]
  assert turned == names[:4]
  # They are folders of sweeps that exist.
  assert sweep.name_of({"steps": 2, "solver": "ddim"}) == "solver=ddim,steps=2"
  assert names[4] == "init_from=a_b-7409d838"


@pytest.mark.parametrize("name", ["training", "sampling"])
def test_examples_change_settings_that_exist(name, tmp_path):
  command = "train" if name == "training" else "evaluate"
  file = CONFIGS.with_name(f"sweep_{name}.py")
  runs = sweep.make_runs(file, tmp_path, [command])
  assert len(runs) >= 6
  config = flatten_dict(get_config("tiny_lora").to_dict(), sep=".")
  fields = {field.name for field in dataclasses.fields(sample.Settings)}
  known = config.keys() if name == "training" else fields
  assert all(run.settings.keys() <= known for run in runs)


@pytest.mark.parametrize(
  ("text", "argv", "part"),
  [
    (SWEEP, [], "a command after it: one of train, launch, evaluate"),
    (SWEEP, ["convert"], "one of train, launch, evaluate, sample"),
    (SWEEP, ["train", "--workdir=x"], "sets --workdir of each run itself"),
    (SWEEP, ["sample", "--output", "x.mp4"], "sets --output of each run"),
    (SWEEP, ["launch", "gke", "--name=x"], "sets --name of each run itself"),
    (SWEEP, ["launch", "gke", "--dry-run"], "sets --dry-run of each run"),
    ("x = 1", ["train"], "no function sweep in"),
    ("def sweep():\n  yield from ()", ["train"], "no function sweep in"),
    ("def sweep():\n  yield 3", ["train"], "yields 3; yield a dict"),
    (
      "def sweep():\n  yield {'a': 1}\n  yield {'a': '1'}",
      ["train"],
      "yields a=1 twice",
    ),
    (None, ["train"], "no file"),
  ],
)
def test_unusable_sweeps_are_refused(tmp_path, text, argv, part):
  file = tmp_path / "settings.py"
  if text is not None:
    file.write_text(text)
  with pytest.raises(InputError, match=part):
    sweep.make_runs(file, tmp_path, argv)


def test_a_dry_run_prints_commands(tmp_path, capsys):
  (tmp_path / "settings.py").write_text(
    "def sweep():\n  yield {'steps': 2, 'negative_prompt': 'a b'}\n"
  )
  argv = ["sweep", tmp_path / "settings.py", "--workdir=s", "--metric=x"]
  argv += ["--dry-run", "--", "sample", "--image=a.jpg"]
  assert cli.main([*map(str, argv)]) == 0
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith(
    "i2vgen sample --image=a.jpg --steps=2 '--negative_prompt=a b' --output=s/"
  )
  assert not (tmp_path / "s").exists()
