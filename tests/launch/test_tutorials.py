"""The commands of README.md for a video and a training, executed in order.

Bash runs the blocks of a page as they are there, but for the lengths below. A
folder with the package, which is installed already, stands for the clone.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from documentation import REPOSITORY, bash_blocks


@pytest.fixture
def clone(tmp_path):
  """A working directory with what the commands name of the repository."""
  for name in ("configs", "docs", "i2vgen_jax"):
    (tmp_path / name).symlink_to(REPOSITORY / name)
  return tmp_path


def execute(page, section, folder, lengths):
  """Runs the blocks of a section of a page in a folder; returns the output.

  Args:
    page: path in the repository.
    section: its title, up to where the next section begins.
    folder: working directory.
    lengths: replacements of text, each of which must be there.
  """
  text = (REPOSITORY / page).read_text()
  section = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
  script = "\n".join(bash_blocks(section))
  assert script
  for old, new in lengths.items():
    assert old in script
    script = script.replace(old, new)
  # One device, as a reader has; tests/conftest.py makes eight.
  flags = os.environ["XLA_FLAGS"].replace("count=8", "count=1")
  path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
  done = subprocess.run(
    ["bash", "-euo", "pipefail", "-c", script],
    cwd=folder,
    env=os.environ | {"PATH": path, "XLA_FLAGS": flags},
    capture_output=True,
    text=True,
  )
  assert not done.returncode, done.stderr
  return done.stdout + done.stderr


def test_the_readme_makes_a_video(clone):
  programs = clone / ".venv" / "bin"
  programs.mkdir(parents=True)
  (programs / "i2vgen").symlink_to(Path(sys.executable).with_name("i2vgen"))
  lengths = {
    # The environment is that of the tests.
    "python3 -m venv .venv && .venv/bin/pip install -q -e . &&": "",
    # The page does not end, and has tests of its own.
    ".venv/bin/pip install -q -e '.[serve]' &&": "",
    ".venv/bin/i2vgen serve --gallery gallery": "",
  }
  execute("README.md", "Make a video", clone, lengths)
  assert (clone / "video.mp4").exists() and (clone / "video.png").exists()


@pytest.mark.slow
def test_the_readme_trains_on_clips(clone, clips):
  (clone / "clips").symlink_to(clips)
  lengths = {
    ". .venv/bin/activate && pip install -q -e '.[data]'": "",
    # The fewest after the warm-up.
    "num_steps=50": "num_steps=5",
    "num_steps=60": "num_steps=6",
  }
  shown = execute("README.md", "Train on your own clips", clone, lengths)
  assert "wrote 3 clips" in shown
  assert "training from step 0 to 5" in shown
  assert "training from step 5 to 6" in shown
  assert "WARNING" not in shown
  assert (clone / "inspection" / "index.html").exists()
  report = json.loads((clone / "trained.json").read_text())
  assert report["weights"]["folder"] == str(clone / "runs" / "clips")
  page = (clone / "evaluation" / "report.html").read_text()
  assert page.count("<video") == 9 and "runs/clips" in page
