"""Whole launches, with stand-ins for gcloud, kubectl, sbatch and the hosts."""

import os
import shlex
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from launch import cli
from launch.jobs import running
from launch.jobs.hosts import CLONE

TRAIN = ("--", "--config=configs/x.py:base", "--workdir=/bucket/runs/it's mine")
JOB = ("--name=films-1", "--no-plan", "--poll=0.1")
QUEUED = (
  *("launch", "queued", *JOB, "--tpu=v5e-16", "--bucket=films", "--spot"),
  *("--project=paper", "--zone=us-central1-a"),
)
# What boot.sh and run.sh call on a host. Each training ends as its line of the
# file `endings` says.
HOST = {
  "mountpoint": "",
  "gcsfuse": "",
  "curl": "",
  "sleep": "exec /bin/sleep 0.05",
  "uv": """
    if [ "$1" = venv ]; then
      mkdir -p .venv/bin
      cp "$(dirname "$0")/i2vgen" .venv/bin
    fi""",
  "i2vgen": r"""
    echo x >> "$WORLD/trainings"
    count=$(wc -l < "$WORLD/trainings")
    printf '%s\n' "$@" > "$WORLD/arguments"
    echo "training $count, token of ${#HF_TOKEN} letters, $LIBTPU_INIT_ARGS"
    ending=$(sed -n "${count}p" "$WORLD/endings")
    if [ "$ending" = preempted ]; then
      echo SUSPENDED > "$WORLD/state"
    fi
    if [ "$ending" = preempted ] || [ "$ending" = endless ]; then
      exec /bin/sleep 60
    fi
    exit "$ending" """,
}


def program(path, script):
  path.parent.mkdir(exist_ok=True)
  path.write_text(f"#!/bin/bash\n{script}\n")
  path.chmod(0o755)


@pytest.fixture
def world(tmp_path, monkeypatch):
  """Folder of the stand-ins; launches run in another one."""
  world = tmp_path / "world"
  (world / "bucket").mkdir(parents=True)
  standin = Path(__file__).with_name("gcloud_standin.py")
  call = shlex.join([sys.executable, "-S", str(standin)])
  program(world / "bin" / "gcloud", f'exec {call} "$@"')
  # The whole archive takes seconds.
  archive = 'tar -cf "${4#--output=}" -C "$2" configs'
  program(world / "bin" / "git", f'if [ "$3" = archive ]; then {archive}; fi')
  for name, script in HOST.items():
    program(world / "host" / name, script)
  monkeypatch.setenv("PATH", f"{world / 'bin'}:/usr/bin:/bin")
  monkeypatch.setenv("WORLD", str(world))
  (tmp_path / "here").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  return world


@pytest.fixture
def start(capsys):
  """Runs a command line: its exit status, stdout and stderr."""

  def start(*argv):
    capsys.readouterr()
    return (cli.main(list(argv)), *capsys.readouterr())

  return start


def calls(world):
  return (world / "calls").read_text().splitlines()


def changes(world):
  """What was done with the resource, in order."""
  words = [shlex.split(call) for call in calls(world)]
  verbs = [w[4] for w in words if w[3] == "queued-resources"]
  return [verb for verb in verbs if verb != "describe"]


def test_a_preempted_job_is_started_again_and_deleted(start, world):
  (world / "bin" / "git").unlink()
  secret = uuid.uuid4().hex
  (world / "secret").write_text(secret)
  # Before that it loses another host, which its own hosts repair.
  (world / "endings").write_text("1\npreempted\n0\n")
  Path("clips").mkdir()
  Path("clips/a.txt").write_text("a clip")
  argv = (*QUEUED, "--secret=HF_TOKEN", "--data=clips")
  _, planned, _ = start(*argv, "--dry-run", *TRAIN)
  assert not (world / "calls").exists()

  status, out, err = start(*argv, *TRAIN)
  assert status == 0, err
  assert changes(world) == ["create", "delete", "create", "delete"]
  assert not (world / "state").exists()
  assert "films-1 was preempted; starting it again" in err
  trainings = [line for line in out.splitlines() if ": training " in line]
  assert [line.split()[2] for line in trainings] == ["1,", "2,", "3,"]
  assert "token of 32 letters, --xla_tpu" in trainings[0]
  arguments = (world / "arguments").read_text().splitlines()
  assert arguments[:2] == ["train", TRAIN[1]]
  assert arguments[2].endswith("/runs/it's mine")
  assert (world / "bucket/data/clips/a.txt").read_text() == "a clip"
  assert (world / "home/i2vgen/films-1/configs/i2vgen_xl.py").exists()
  # The dry run printed what was run; the hosts read the secret.
  done = {call for call in calls(world) if "secrets" not in call}
  assert done == {c for c in planned.splitlines() if c.startswith("gcloud ")}
  # The value of the secret is nowhere else.
  files = [p for p in world.parent.rglob("*") if p.is_file()]
  holders = [p.name for p in files if secret.encode() in p.read_bytes()]
  assert holders == ["secret"]
  assert secret not in planned + out + err


@pytest.mark.parametrize(
  ("endings", "restarts", "said", "changed"),
  [
    ("2\n", 3, "films-1 failed; the logs", 1),
    ("1\n1\n", 1, "films-1 failed; the logs", 1),
    ("preempted\npreempted\n", 1, "films-1 was preempted 2 times", 2),
  ],
)
def test_a_job_that_does_not_finish_is_deleted(
  start, world, endings, restarts, said, changed
):
  (world / "endings").write_text(endings)
  status, _, err = start(*QUEUED, f"--restarts={restarts}", *TRAIN)
  assert status == 2
  assert said in err.splitlines()[-1]
  assert changes(world) == ["create", "delete"] * changed
  # Unusable input, status 2, is not tried again.
  assert (world / "trainings").read_text().count("x") == endings.count("\n")


def test_a_resource_of_another_launch_is_left_alone(start, world):
  (world / "state").write_text("ACTIVE\n")
  status, _, err = start(*QUEUED, *TRAIN)
  assert status == 2
  assert "gcloud failed: ERROR: (gcloud) ALREADY_EXISTS" in err.splitlines()[-1]
  assert changes(world) == ["create"]


def test_ctrl_c_deletes(start, world, monkeypatch):
  (world / "endings").write_text("endless\n")

  def interrupt(seconds):
    raise KeyboardInterrupt

  monkeypatch.setattr("time.sleep", interrupt)
  status, _, err = start(*QUEUED, *TRAIN)
  assert status == 130, err
  assert changes(world) == ["create", "delete"]


def test_a_network_that_fails_for_a_while_ends_nothing(start, world):
  (world / "endings").write_text("0\n")
  (world / "failures").write_text("3")
  status, _, err = start(*QUEUED, *TRAIN)
  assert status == 0
  assert err.count("cannot reach films-1") == 3


def test_gke_waits_for_the_job_set(start, world):
  program(
    world / "bin" / "kubectl",
    """
    echo "kubectl $*" >> "$WORLD/calls"
    if [ "$2" = get ]; then
      if [ -e "$WORLD/asked" ]; then echo -n Completed; fi
      touch "$WORLD/asked"
    fi""",
  )
  argv = ("launch", "gke", *JOB, "--tpu=v6e-16", "--bucket=films", *TRAIN)
  assert start(*argv)[0] == 0
  verbs = [c.split()[2] for c in calls(world) if c.startswith("kubectl")]
  assert verbs == ["create", "get", "get", "delete"]


@pytest.fixture
def slurm(world):
  program(world / "bin" / "srun", 'shift; exec "$@"')
  program(world / "bin" / "i2vgen", HOST["i2vgen"])
  program(world / "bin" / "scontrol", 'echo "$*" >> "$WORLD/calls"')
  program(
    world / "bin" / "sbatch",
    'SLURM_JOB_ID=7 bash "${@: -1}" > "${2#--output=}" 2>&1',
  )


@pytest.mark.parametrize("ending", [0, 1, 2])
@pytest.mark.usefixtures("slurm")
def test_slurm_requeues_all_but_unusable_input(start, world, ending):
  (world / "endings").write_text(f"{ending}\n")
  status, out, err = start("launch", "slurm", *JOB, "--tpu=v5p-16", *TRAIN)
  assert "slurm: training 1," in out
  assert status == (2 if ending else 0)
  assert (world / "calls").exists() == (ending == 1)
  assert ("sbatch ended with status" in err) == bool(ending)


@pytest.mark.usefixtures("slurm")
def test_a_sweep_starts_a_job_for_each_run(start, world, monkeypatch):
  """One fails, and is the only one that the next start launches."""
  monkeypatch.setenv("PYTHONPATH", str(CLONE))
  Path("rates.py").write_text(
    "def sweep():\n"
    "  for rate in (3, 1, 2):\n"
    "    yield {'train.learning_rate': rate}\n"
  )
  program(
    world / "bin" / "i2vgen",
    r"""
    printf '%s ' "$@" | tee -a "$WORLD/trainings"
    for word; do
      case $word in
      --workdir=*) cd "${word#--workdir=}" ;;
      *rate=*) loss=${word##*=} ;;
      esac
    done
    if [ "$loss" = 1 ] && mkdir "$WORLD/failed"; then exit 2; fi
    echo "{\"step\": 1, \"loss\": $loss, \"time\": 5}" > metrics.jsonl """,
  )
  argv = ("sweep", "rates.py", "--workdir=rates", "--metric=loss")
  argv = (*argv, "--cost=step", "--at-once=2", "--", "launch", "slurm")
  argv = (*argv, "--tpu=v5p-16", "--no-plan", "--poll=0.1")
  argv = (*argv, "--", "--config=configs/x.py:base")
  with pytest.raises(SystemExit):
    start(*argv)
  trainings = (world / "trainings").read_text()
  assert trainings.count("train --config=configs/x.py:base") == 3
  log = Path("rates/train.learning_rate=1/log.txt").read_text()
  assert "sbatch ended with status 2" in log
  status, out, _ = start(*argv)
  assert status == 0
  trainings = (world / "trainings").read_text()
  assert trainings.count("train --config") == 4
  ranks = [line.split()[1] for line in out.splitlines()[1:]]
  assert ranks == ["1", "2", "3"]


def test_the_end_of_the_launching_process_deletes(world):
  (world / "endings").write_text("endless\n")
  process = subprocess.Popen(
    [sys.executable, "-m", "launch.cli", *QUEUED, *TRAIN],
    env=os.environ | {"PYTHONPATH": str(CLONE)},
  )
  end = time.monotonic() + 60
  while not (world / "trainings").exists():
    assert time.monotonic() < end
    time.sleep(0.1)
  process.terminate()
  assert process.wait(60) == 130
  assert changes(world) == ["create", "delete"]


def test_shows_each_line_of_a_log_once(tmp_path, capsys):
  logs = running._Logs(tmp_path)
  file = tmp_path / "host.txt"
  shown = []
  # A file is read while it is written, and then a host replaces another.
  for text in ("on Monday\n1\n2", "", "on Monday\n1\n2\n", "on Friday\n3\n"):
    file.write_text(text)
    logs.show()
    shown.append(capsys.readouterr().out.replace("host: ", "").split("\n")[:-1])
  assert shown == [["on Monday", "1"], [], ["2"], ["on Friday", "3"]]
