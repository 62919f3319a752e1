"""What the tests of the command line share."""

import sys

import numpy as np
import pytest
import skimage.data
from PIL import Image

from launch import cli


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
  """Photos of real scenes, by shape."""
  folder = tmp_path_factory.mktemp("photos")
  pictures = {
    "landscape.jpg": skimage.data.coffee(),
    "portrait.png": np.rot90(skimage.data.chelsea()),
    "square.jpg": skimage.data.astronaut(),
  }
  for name, pixels in pictures.items():
    Image.fromarray(pixels).save(folder / name)
  return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def own_hook(monkeypatch):
  """Restores the unraisable hook, which the command replaces."""
  monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)


@pytest.fixture
def run(capsys):
  """Runs a command line: its exit status and the lines on stderr."""

  def run(*argv):
    capsys.readouterr()
    status = cli.main([str(arg) for arg in argv])
    return status, capsys.readouterr().err.splitlines()

  return run


@pytest.fixture
def refused(run):
  """Runs a command line that must fail with one line; returns the line."""

  def refused(*argv):
    status, lines = run(*argv)
    assert status == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("i2vgen: error: ")
    return lines[0]

  return refused
