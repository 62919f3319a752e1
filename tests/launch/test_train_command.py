"""The command line of a training: its help, and one line per mistake."""

import cascade_standin
import pytest

from launch import train

pytestmark = pytest.mark.usefixtures("fresh_flags", "no_job")

CONFIG = f"--config={cascade_standin.CONFIGS}:tiny"


def test_the_processes_of_a_job_are_joined(run, trained, no_job):
  run("train", CONFIG, "--workdir=run")
  job = ["--coordinator=host:1", "--num-processes=2", "--process-id=1"]
  run("train", CONFIG, "--workdir=run", *job)
  assert no_job == [(None, None, None), ("host:1", 2, 1)]


def test_a_stopped_run_says_how_it_is_resumed(monkeypatch, capsys):
  monkeypatch.setattr(train, "run", lambda *_, **__: 3)
  with pytest.raises(SystemExit) as stopped:
    train.main([CONFIG, "--workdir=a run"])
  assert stopped.value.code == 75
  expected = f"resume with: i2vgen train {CONFIG} '--workdir=a run'"
  assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
  ("argument", "parts"),
  [
    ("--config.train.num_stepz=3", ["num_stepz", "mean train.num_steps?"]),
    ("--config.trian.num_steps=3", ["trian", "mean train.num_steps?"]),
    ("--config.learning_rate=1", ["mean train.learning_rate?"]),
    ("--config.zzzzzz=1", ["'zzzzzz'", "see the config file"]),
    ("--config.train.num_steps=many", ["num_steps=many", "'many'"]),
    ("--config.train.num_steps=2.5", ["num_steps=2.5"]),
    ("--config.unet.use_text=maybe", ["use_text=maybe"]),
    ("--config.train=3", ["--config.train=3"]),
    ("--config.data.size[0]=3", ["data.size[0]"]),
    ("--config.train.num_steps", ["Missing value", "num_steps"]),
    ("--wrkdir=x", ["wrkdir", "workdir"]),
    ("--steps=3", ["'steps'"]),
    ("stray", ["'stray'"]),
  ],
)
def test_invalid_argument(refused, trained, argument, parts):
  line = refused("train", CONFIG, "--workdir=run", argument)
  for part in parts:
    assert part in line
  assert not trained


@pytest.mark.parametrize(
  ("argv", "part"),
  [
    ([], "needs --config"),
    ([CONFIG], "--workdir"),
    (["--workdir=run"], "--config"),
    ([CONFIG, "--workdir"], "workdir"),
    (["--config", "--workdir=run"], "--config"),
    (
      ["--config=https://host/a.py:tiny", "--workdir=run"],
      "https://host/a.py:tiny is a URL",
    ),
    ([CONFIG, "--workdir", "gs://a/b"], "gs://a/b is a URL"),
    (
      [CONFIG, "--workdir=run", "--config.frozen=http://host/w"],
      "http://host/w is a URL, but only local files",
    ),
    (
      [CONFIG, "--workdir=run", "--config.data.video_dirs=('s3://a/b', 'c')"],
      "s3://a/b is a URL",
    ),
    (["--config=absent.py:tiny", "--workdir=run"], "no config file absent.py"),
    ([f"{CONFIG}y", "--workdir=run"], "'tinyy'; choose one of base"),
  ],
)
def test_invalid_command_lines(refused, trained, argv, part):
  assert part in refused("train", *argv)
  assert not trained


@pytest.mark.parametrize("argv", [["--help"], ["-h"]])
def test_help_lists_configs_and_keys_with_defaults(capsys, trained, argv):
  train.main(argv)
  lines = capsys.readouterr().out.splitlines()
  for name in ("base", "refine", "released", "image_to_video"):
    assert any(line.startswith(f"| {name} |") for line in lines)
  assert "    --config.train.learning_rate=8e-05" in lines
  assert "    --config.frozen=None" in lines
  assert any("--config=configs/i2vgen_xl.py:tiny" in line for line in lines)
  assert not trained


def test_help_of_a_config_has_its_keys(capsys, trained):
  train.main([CONFIG, "--help"])
  lines = capsys.readouterr().out.splitlines()
  assert "    --config.unet.block_channels=(96, 128)" in lines
  assert "    --config.train.num_steps=7000" in lines


@pytest.mark.parametrize("text", ["", "def get_config():\n  return 3\n"])
def test_a_config_file_that_returns_no_config(refused, tmp_path, text):
  path = tmp_path / "other.py"
  path.write_text(text)
  line = refused("train", f"--config={path}", "--workdir=x")
  assert "no get_config" in line and "that returns a ConfigDict" in line


def test_a_bug_in_a_config_file_keeps_its_traceback(tmp_path):
  path = tmp_path / "broken.py"
  path.write_text("def get_config():\n  return 1 / 0\n")
  with pytest.raises(ZeroDivisionError):
    train.main([f"--config={path}", "--workdir=x"])


@pytest.mark.parametrize("joined", [True, False])
def test_flags_reach_the_trainer(run, trained, tmp_path, joined):
  argv = CONFIG.split("=") if not joined else [CONFIG]
  status, lines = run(
    "train",
    *argv,
    f"--workdir={tmp_path}",
    "--config.train.num_steps=7",
    "--config.data.size=(48, 32)",
  )
  assert (status, lines) == (0, [])
  [(config, workdir)] = trained
  assert config.train.num_steps == 7
  assert config.data.size == (48, 32)
  assert workdir == tmp_path


def test_an_error_while_training_is_not_a_flag_error(trained, monkeypatch):
  def fail(*_, **__):
    raise ValueError("inside")

  monkeypatch.setattr(train, "run", fail)
  with pytest.raises(ValueError, match="inside"):
    train.main([CONFIG, "--workdir=run"])


@pytest.mark.parametrize(
  ("key", "text", "value"),
  [
    ("video_dirs", "('a/text_video/1.0.0',)", ("a/text_video/1.0.0",)),
    ("video_dirs", "(('a', 3.0), ('b', 1))", (("a", 3.0), ("b", 1))),
    ("image_dirs", "()", ()),
    ("buckets", "((8, 8.0, 1.0),)", ((8, 8.0, 1.0),)),
    ("buckets", "((8, 8.0, 1, (32, 64)),)", ((8, 8.0, 1, (32, 64)),)),
  ],
)
def test_data_settings_on_the_command_line(run, trained, key, text, value):
  argv = [CONFIG, "--workdir=x", f"--config.data.{key}={text}"]
  argv.append("--config.data.augmentation.flip=0.5")
  assert run("train", *argv) == (0, [])
  [(config, _)] = trained
  assert config.data[key] == value
  assert config.data.augmentation.to_dict() == {"min_crop": 1.0, "flip": 0.5}
