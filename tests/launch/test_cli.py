"""The entry point: which subcommand runs, and how it fails."""

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from i2vgen_jax.errors import InputError
from launch import cli


@pytest.fixture
def command(monkeypatch):
  """Makes `i2vgen sample` call the given function."""

  def replace(function):
    module = types.SimpleNamespace(main=function)
    monkeypatch.setitem(sys.modules, "launch.sample", module)

  return replace


def test_help_names_all_commands(capsys):
  assert cli.main(["--help"]) == 0
  text = capsys.readouterr().out
  for name in ("sample", "train", "data", "evaluate"):
    assert f"i2vgen {name}" in text


def test_no_command_shows_the_usage(run):
  status, lines = run()
  assert status == 2
  assert any("i2vgen sample" in line for line in lines)


def test_unknown_command_suggests_the_near_one(refused):
  assert "did you mean sample?" in refused("smaple")
  assert "see i2vgen --help" in refused("xyz")


@pytest.mark.parametrize("name", ["sample", "data", "train"])
def test_every_command_has_a_help(name, capsys):
  try:
    assert cli.main([name, "--help"]) == 0
  except SystemExit as e:
    assert e.code == 0
  assert f"i2vgen {name}" in capsys.readouterr().out


def test_arguments_reach_the_command(command):
  seen = []
  command(seen.append)
  assert cli.main(["sample", "--seed", "3"]) == 0
  assert seen == [["--seed", "3"]]


def test_an_error_is_one_line(command, refused):
  def fail(argv):
    raise InputError("first\n  second\tthird")

  command(fail)
  assert refused("sample") == "i2vgen: error: first second third"


def test_interrupt_is_quiet(command, run):
  def interrupt(argv):
    raise KeyboardInterrupt

  command(interrupt)
  assert run("sample") == (130, [])


def test_a_bug_keeps_its_traceback(command):
  command(lambda argv: {}["absent"])
  with pytest.raises(KeyError):
    cli.main(["sample"])


def test_missing_extra_is_named(command, refused):
  def fail(argv):
    raise ModuleNotFoundError("No module", name="grain.python")

  command(fail)
  line = refused("sample")
  assert "sample needs grain" in line and "'i2vgen-jax[data]'" in line


def test_missing_extra_of_the_page_is_named(monkeypatch, refused):
  monkeypatch.delitem(sys.modules, "launch.serve", raising=False)
  monkeypatch.setitem(sys.modules, "fastapi", None)
  line = refused("serve")
  assert "serve needs fastapi" in line and "'i2vgen-jax[serve]'" in line


def test_other_missing_modules_are_bugs(command):
  def fail(argv):
    raise ModuleNotFoundError("No module", name="numpyy")

  command(fail)
  with pytest.raises(ModuleNotFoundError):
    cli.main(["sample"])


def test_installed_command_fails_with_one_line(tmp_path):
  """As a process of its own, from another folder."""
  arguments = "sample --image absent.jpg --prompt x --output out.mp4"
  done = subprocess.run(
    [sys.executable, "-m", "launch.cli", *arguments.split()],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert done.stdout == ""
  assert done.stderr.splitlines() == [
    "i2vgen: error: cannot read picture absent.jpg: No such file or directory;"
    " check the path"
  ]
  assert not list(tmp_path.iterdir())


def test_out_of_memory_is_one_line(weights, photos, tmp_path):
  """Nor does JAX print a traceback when it shuts down."""
  # More than any machine has.
  size = "--size 1024x1024 --num-frames 1000000"
  options = f"--stage base {size} --weights {weights} --no-progress"
  files = f"--image {photos['square']} --output {tmp_path / 'out.mp4'}"
  argv = f"sample {options} {files} --prompt red".split()
  done = subprocess.run(
    [sys.executable, "-m", "launch.cli", *argv], capture_output=True, text=True
  )
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith("i2vgen: error: not enough memory: ")
  advice = r"free; stage base has room for about \d+ frames of 1024x1024$"
  assert re.search(advice, line), line
  assert not list(tmp_path.iterdir())


def test_compiled_programs_are_kept(tmp_path, monkeypatch):
  variable = "JAX_COMPILATION_CACHE_DIR"
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setenv(variable, "mine")
  cli._keep_compiled()
  assert os.environ[variable] == "mine" and not list(tmp_path.iterdir())
  monkeypatch.delenv(variable)
  cli._keep_compiled()
  folder = Path(os.environ[variable])
  assert folder.is_dir()
  assert folder.parent == tmp_path / "i2vgen-jax" / "compiled"


def test_a_cache_that_cannot_be_written_is_left_out(tmp_path, monkeypatch):
  (tmp_path / "file").touch()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  cli._keep_compiled()
  assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
