"""`i2vgen launch --dry-run` of each backend, checked by who would read it.

gcloud checks its own commands where it is installed, JobSet's Python models the
manifest, bash the scripts, and SkyPilot its task where `sky` is on the PATH.
"""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from i2vgen_jax.files import write_json
from launch import cli
from launch.jobs import running

TRAIN = (
  *("--", "--config=configs/i2vgen_xl.py:base", "--workdir=/bucket/runs/a b"),
  *("--config.mesh.fsdp=8", "--config.train.batch_size=16"),
  "--config.data.size=(256, 448)",
)
PLACE = ("--bucket=films", "--data=data/clips", "--secret=HF_TOKEN")
ZONE = ("--project=paper", "--zone=us-central1-a")
BACKENDS = {
  "queued": ("--tpu=v5e-64", "--spot", *PLACE, *ZONE),
  "mig": ("--tpu=tpu7x-32", "--spot", *PLACE, *ZONE),
  "gke": ("--tpu=v6e-16", "--spot", *PLACE, "--slices=2", "--queue=research"),
  "skypilot": ("--tpu=v5p-32", "--spot", *PLACE, "--zone=us-central1-a"),
  "slurm": ("--tpu=v5p-32", "--slices=2", "--partition=tpu"),
}


@pytest.fixture
def dry_run(capsys, monkeypatch, tmp_path):
  """What a backend would write and run: texts by file name, commands."""
  monkeypatch.chdir(tmp_path)

  def dry_run(backend, *more):
    argv = ("launch", backend, "--name=f1", "--dry-run", *BACKENDS[backend])
    capsys.readouterr()
    assert cli.main([*argv, *more, *TRAIN]) == 0
    assert not [*tmp_path.iterdir()]
    printed = capsys.readouterr().out
    _, *parts = re.split(r"^# (file|commands): (.*)\n", printed, flags=re.M)
    texts, commands = {}, []
    for kind, title, text in zip(*[iter(parts)] * 3, strict=True):
      if kind == "file":
        texts[Path(title).name] = text
      else:
        commands += map(shlex.split, text.splitlines())
    return texts, commands

  return dry_run


def of_gcloud(commands):
  return {shlex.join(c) for c in commands if c[0] == "gcloud"}


@pytest.mark.skipif(not shutil.which("gcloud"), reason="needs gcloud")
def test_gcloud_accepts_its_commands(dry_run, tmp_path):
  account = "--service-account=me@paper.example"
  lines = {"gcloud compute tpus queued-resources create a --nodes=3"}
  lines |= of_gcloud(dry_run("queued")[1])
  lines |= of_gcloud(dry_run("queued", account, "--slices=2")[1])
  lines |= of_gcloud(dry_run("mig", account)[1])
  file = tmp_path / "commands.json"
  file.write_text(json.dumps([{"command_string": line} for line in lines]))
  lint = ("gcloud", "meta", "lint-gcloud-commands", f"--commands-file={file}")
  done = subprocess.run(lint, check=True, capture_output=True, text=True)
  results = json.loads(done.stdout)
  assert len(results) == len(lines) > 12
  (wrong,) = (result for result in results if not result["success"])
  assert "--nodes" in wrong["error_message"]


def test_the_job_set_has_no_unknown_field(dry_run):
  models = pytest.importorskip("kubeflow_trainer_api.models")
  manifest = yaml.safe_load(dry_run("gke")[0]["jobset.yaml"])

  def read(manifest):
    return models.JobsetV1alpha2JobSet.from_dict(manifest).to_dict()

  assert read(manifest) == manifest
  job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
  job["paralelism"] = 4
  assert read(manifest) != manifest
  job["parallelism"] = "all"
  with pytest.raises(ValueError, match="parallelism"):
    read(manifest)


def test_the_job_set_has_one_pod_for_each_host(dry_run):
  manifest = yaml.safe_load(dry_run("gke")[0]["jobset.yaml"])
  metadata, spec = manifest["metadata"], manifest["spec"]
  assert metadata["labels"] == {"kueue.x-k8s.io/queue-name": "research"}
  assert spec["failurePolicy"]["maxRestarts"] == 10
  (slices,) = spec["replicatedJobs"]
  job = slices["template"]["spec"]
  assert (slices["replicas"], job["parallelism"], job["completions"]) == (
    2,
    4,
    4,
  )
  pod = job["template"]["spec"]
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
    "cloud.google.com/gke-tpu-topology": "4x4",
    "cloud.google.com/gke-spot": "true",
  }
  (container,) = pod["containers"]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  secret = {"name": "hf-token", "key": "HF_TOKEN"}
  assert container["env"][0]["valueFrom"] == {"secretKeyRef": secret}


@pytest.mark.skipif(not shutil.which("sky"), reason="needs SkyPilot")
@pytest.mark.parametrize(
  ("change", "said"),
  [("", "'tpu-v5p-32': 1"), ("runn: ls", "Did you mean 'run'")],
)
def test_skypilot_reads_its_task(dry_run, tmp_path, monkeypatch, change, said):
  file = tmp_path / "task.yaml"
  file.write_text(dry_run("skypilot")[0]["task.yaml"] + change)
  monkeypatch.setenv("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.delenv("PYTHONPATH", raising=False)
  # SkyPilot is in an environment of its own.
  python = Path(shutil.which("sky")).resolve().with_name("python")
  read = "import sky, sys; print(sky.Task.from_yaml(sys.argv[1]).resources)"
  done = subprocess.run(
    [python, "-c", read, file], capture_output=True, text=True
  )
  assert said.lower() in (done.stdout + done.stderr).lower()


def test_the_skypilot_task(dry_run):
  files, commands = dry_run("skypilot")
  task = yaml.safe_load(files["task.yaml"])
  assert task["resources"]["accelerators"] == "tpu-v5p-32"
  assert task["secrets"] == {"HF_TOKEN": None}
  assert task["file_mounts"]["/bucket"]["source"] == "gs://films"
  assert commands[-2][:3] == ["sky", "jobs", "launch"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_scripts_are_valid_and_quote_the_arguments(
  dry_run, tmp_path, backend
):
  files = dry_run(backend)[0]
  scripts = [text for name, text in files.items() if name.endswith(".sh")]
  assert scripts
  for text in scripts:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    if shutil.which("shellcheck"):
      subprocess.run(["shellcheck", "-"], input=text, text=True, check=True)
  (line,) = (
    line
    for text in scripts
    for line in text.splitlines()
    if "i2vgen train" in line
  )
  words = shlex.split(line)
  start = words.index("train") + 1
  assert words[start : start + len(TRAIN) - 1] == list(TRAIN[1:])


@pytest.mark.parametrize(
  ("backend", "topology"),
  [("queued", "v5e:8x8"), ("mig", "tpu7x:2x2x4"), ("skypilot", "v5p:2x2x4")],
)
def test_plans_first_what_is_trained(dry_run, backend, topology):
  assert dry_run(backend)[1][0][3:] == [
    "plan",
    f"--topology={topology}",
    "--config=configs/i2vgen_xl.py:base",
    "--batch-size=16",
    "--mesh=fsdp=8",
    "--size=448x256",
    "--json=launched/f1/plan.json",
  ]
  assert "plan" not in dry_run(backend, "--no-plan")[1][0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sweep_renders_a_job_for_each_run(
  backend, capsys, monkeypatch, tmp_path
):
  monkeypatch.chdir(tmp_path)
  Path("rates.py").write_text(
    "def sweep():\n"
    "  for rate in (0.1, 0.2):\n"
    "    yield {'train.learning_rate': rate}\n"
  )
  config, _, *others = TRAIN[1:]
  argv = ("sweep", "rates.py", "--workdir=/bucket/rates", "--metric=loss")
  argv = (*argv, "--dry-run", "--", "launch", backend, *BACKENDS[backend])
  assert cli.main([*argv, "--", config, *others]) == 0
  printed = capsys.readouterr().out
  _, *jobs = re.split(r"^i2vgen (launch .*)\n", printed, flags=re.M)
  names = []
  for rate, words, shown in zip((0.1, 0.2), jobs[::2], jobs[1::2], strict=True):
    command, backend, name, *rest = shlex.split(words)
    assert rest[-2:] == [
      f"--config.train.learning_rate={rate}",
      f"--workdir=/bucket/rates/train.learning_rate={rate}",
    ]
    # It is what the command itself prints, which the other tests check.
    assert cli.main([command, backend, "--dry-run", name, *rest]) == 0
    assert shown == capsys.readouterr().out
    assert name.removeprefix("--name=") in shown
    names.append(name)
  assert len({*names}) == 2


@pytest.mark.parametrize("fits", [True, False])
def test_starts_only_what_fits(fits, monkeypatch, capsys, tmp_path):
  monkeypatch.chdir(tmp_path)
  calls = []

  def call(command):
    calls.append(command)
    figures = {"run": "this", "fitting": "this" if fits else "a smaller one"}
    write_json(Path("launched/f1/plan.json"), figures)
    return "the plan\n"

  monkeypatch.setattr(running, "call", call)
  monkeypatch.setattr(running, "run", lambda *_: calls.append("started"))
  monkeypatch.setattr(running.shutil, "which", lambda program: program)
  argv = ("launch", "queued", "--name=f1", *BACKENDS["queued"], *TRAIN)
  assert cli.main([*argv]) == (0 if fits else 2)
  out, err = capsys.readouterr()
  assert out == "the plan\n"
  assert ("started" in calls) == fits
  assert ("does not fit on v5e-64" in err) == (not fits)


@pytest.mark.parametrize(
  ("backend", "changed", "parts"),
  [
    ("queued", ["--tpu=v5e-46"], ["v5e-46", "did you mean v5e-4"]),
    ("queued", ["--tpu=gpu"], ["unknown TPU type 'gpu'", "v5e-4, v5e-8"]),
    ("queued", ["--tpu=tpu7x-32"], ["has no tpu7x-32", "mig or gke"]),
    ("mig", ["--tpu=v5e-64"], ["have no v5e-64", "queued or gke"]),
    ("skypilot", ["--tpu=tpu7x-32"], ["SkyPilot has no tpu7x-32"]),
    ("gke", ["--name=My_job"], ["'My_job'", "lower-case"]),
    ("gke", ["--bucket=gs://films"], ["'gs://films'", "--bucket"]),
    ("gke", ["--secret=tell-no-one"], ["never the value"]),
    ("mig", ["--", "--config=a"], ["-- --config=FILE:NAME --workdir=DIR"]),
    ("gke", ["--", "--config=a", "--workdir=runs/a"], ["/bucket/runs/NAME"]),
    (
      "gke",
      ["--", "--config=a", "--workdir=/bucket/a", "--config.x=tell-no-one"],
      ["holds the value of HF_TOKEN"],
    ),
    ("slurm", [], ["sbatch is not on the PATH", "--dry-run"]),
  ],
)
def test_one_line_says_what_is_wrong(
  run, monkeypatch, tmp_path, backend, changed, parts
):
  monkeypatch.setenv("HF_TOKEN", "tell-no-one")
  monkeypatch.setenv("PATH", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  train = () if "--" in changed else TRAIN
  argv = ("--name=f1", *BACKENDS[backend], *changed, *train)
  status, (line,) = run("launch", backend, *argv)
  assert status == 2
  assert all(part in line for part in parts), line
  assert "tell-no-one" not in line
  assert not [*tmp_path.iterdir()]
