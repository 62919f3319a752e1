"""What the tests of the command line share."""

import sys

import av
import numpy as np
import pytest
import skimage.data
from absl import flags
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


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
  """A folder of three clips of 1.5 seconds, with their captions."""
  folder = tmp_path_factory.mktemp("clips")
  pictures = {
    "cat": (skimage.data.chelsea(), "a cat that looks up"),
    "coffee": (skimage.data.coffee(), "a cup of coffee on a table"),
    "rocket": (skimage.data.rocket(), "a rocket in the evening"),
  }
  for step, (name, (pixels, caption)) in enumerate(pictures.items(), 2):
    picture = Image.fromarray(pixels).resize((480, 320))
    with av.open(str(folder / f"{name}.mp4"), "w") as file:
      stream = file.add_stream("libx264", rate=24)
      stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
      for x in range(0, 36 * step, step):
        box = (x, 60, x + 320, 240)
        frame = av.VideoFrame.from_image(picture.crop(box))
        file.mux(stream.encode(frame))
      file.mux(stream.encode())
    (folder / f"{name}.txt").write_text(caption)
  return folder


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


@pytest.fixture
def fresh_flags(monkeypatch):
  """Resets absl's global flags after a test; a test may do it in between."""
  known = set(flags.FLAGS)
  monkeypatch.setattr(sys, "argv", sys.argv)

  def reset():
    for name in set(flags.FLAGS) - known:
      delattr(flags.FLAGS, name)
    flags.FLAGS["config"].unparse()
    flags.FLAGS["workdir"].unparse()
    flags.FLAGS.unparse_flags()

  flags.FLAGS.unparse_flags()
  yield reset
  reset()


@pytest.fixture
def no_job(monkeypatch):
  """JAX joins a job only before its first use in a process."""
  from launch import train  # imports TensorFlow

  joined = []
  monkeypatch.setattr(train.processes, "join", lambda *a: joined.append(a))
  return joined


@pytest.fixture
def trained(monkeypatch):
  """Arguments of the calls of the trainer, which does nothing."""
  from launch import train

  runs = []

  def run(config, *args, **_):
    runs.append((config, *args))
    return config.train.num_steps

  monkeypatch.setattr(train, "run", run)
  return runs
