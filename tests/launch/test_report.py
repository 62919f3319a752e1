"""`i2vgen report`: where the time of a run went."""

import json

import pytest
from PIL import Image

from i2vgen_jax.training import laps
from launch import cli

# Two starts: 90 s of the second one are of steps whose reports were dropped.
ROWS = [
  {"step": 10, "loss": 2.0, "skipped": 1.0, "time": 1100.0,
   "seconds/start": 10.0, "seconds/compile": 20.0, "seconds/train": 70.0},
  {"step": 20, "loss": 1.0, "unseen_loss": 1.5, "skipped": 0.0,
   "rollbacks": 0, "grad_norm": 0.5, "examples_per_second": 4.0,
   "time": 1300.0, "seconds/start": 10.0, "seconds/train": 90.0,
   "seconds/data": 4.0, "seconds/checkpoint": 6.0},
]  # fmt: skip


@pytest.fixture
def workdir(tmp_path):
  lines = [json.dumps(row) + "\n" for row in ROWS]
  (tmp_path / "metrics.jsonl").write_text("".join(lines))
  (tmp_path / "config.json").write_text('{"train": {"num_steps": 50}}')
  return tmp_path


def test_time_is_divided_without_rest():
  seconds = laps.spent(ROWS)
  assert seconds == {
    "start": 20, "compile": 20, "train": 160, "data": 4, "checkpoint": 6,
    "evaluate": 0, "stopped or repeated": 90,
  }  # fmt: skip
  # From the first start on, 100 s before the first report.
  assert sum(seconds.values()) == 300


def test_the_command_prints_and_draws(workdir, capsys):
  assert cli.main(["report", str(workdir)]) == 0
  printed = capsys.readouterr().out
  assert (
    "step 20 of 50, 0:05:00 since the first start, goodput 53.3%" in printed
  )
  assert "data                    0:00:04   1.33%" in printed
  assert "skipped steps                 1" in printed
  assert Image.open(workdir / "curve.png").size == (1100, 700)


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
  assert cli.main(["report", str(tmp_path)]) == 2
  assert "no reports of a training in" in capsys.readouterr().err
