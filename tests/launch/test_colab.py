"""The notebook for Colab, executed, and what it installs there."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from i2vgen_jax.interop import open_weights

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "launch" / "colab" / "i2vgen_xl.ipynb"
# Of all runtimes in the list of packages.
PYTHON, PLATFORM = "3.13", "x86_64-manylinux_2_35"


@pytest.fixture
def execute(tmp_path, monkeypatch):
  """Executes the notebook with values in its forms; returns its cells.

  The folder of this Python comes first, so that the notebook finds i2vgen
  there and installs nothing.
  """
  folder = Path(sys.executable).parent
  monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
  assert shutil.which("i2vgen"), "install the package first"

  def execute(**form):
    notebook = nbformat.read(NOTEBOOK, 4)
    for name, value in form.items():
      line = re.compile(rf"^{name} = .*(?=  # @param)", re.MULTILINE)
      found = 0
      for cell in notebook.cells:
        cell.source, count = line.subn(f"{name} = {value!r}", cell.source)
        found += count
      assert found == 1, name
    metadata = {"metadata": {"path": tmp_path}}
    NotebookClient(notebook, timeout=600, resources=metadata).execute()
    return notebook.cells

  return execute


def outputs(cells):
  return [output for cell in cells[1:] for output in cell.outputs]


def printed(cells):
  return "".join(o.text for o in outputs(cells) if o.output_type == "stream")


def test_runs_from_top_to_bottom(execute, tmp_path):
  cells = execute()
  shown = [o.data for o in outputs(cells) if o.output_type == "display_data"]
  video, sheet = shown
  assert "data:video/mp4;base64" in video["text/html"]
  assert len(sheet["image/png"]) > 10_000
  # The bars of both stages.
  assert "base: 100%" in printed(cells) and "refine: 100%" in printed(cells)
  report = json.loads((tmp_path / "video.json").read_text())
  assert report["weights"]["bundled"]
  assert report["prompt"] == "the camera pans left slowly"


def test_forms_reach_the_video(execute, tmp_path, photos, weights):
  """And other weights are converted to bfloat16 first."""
  picture = str(photos["square"])
  form = {"prompt": "a cat's paw", "seed": 3, "steps": 2, "size": "64x64"}
  execute(picture=picture, weights=str(weights), guidance_scale=2.5, **form)
  report = json.loads((tmp_path / "video.json").read_text())
  assert (report["prompt"], report["seed"]) == ("a cat's paw", 3)
  assert report["input"]["path"] == picture
  settings = report["settings"]["base"]
  assert (settings["num_steps"], settings["guidance_scale"]) == (2, 2.5)
  assert report["settings"]["refine"]["size"] == [64, 64]
  (folder,) = tmp_path.glob("*-bfloat16")
  assert report["weights"]["folder"] == str(folder)
  tensors = open_weights(folder).networks["base"].tensors
  assert set(map(str, tensors.dtypes.values())) == {"bfloat16"}


@pytest.mark.slow
def test_trains_a_lora_on_clips(execute, tmp_path, clips):
  cells = execute(clips=str(clips), name="mine", lora_steps=5)
  assert "wrote 3 clips" in printed(cells)
  assert "training a LoRA of rank 8" in printed(cells)
  report = json.loads((tmp_path / "mine" / "video.json").read_text())
  assert report["weights"]["folder"] == str(tmp_path / "mine" / "run")
  assert report["prompt"] == "the camera pans left slowly"
  video, _ = [
    o.data for o in cells[3].outputs if o.output_type == "display_data"
  ]
  assert "data:video/mp4;base64" in video["text/html"]


def test_stops_at_an_error_of_the_command(execute, tmp_path):
  (tmp_path / "notes.txt").write_text("no picture")
  with pytest.raises(CellExecutionError, match="stopped") as error:
    execute(picture="notes.txt")
  assert "notes.txt is not a picture" in str(error.value)
  assert not (tmp_path / "video.mp4").exists()


def test_every_form_value_is_on_a_line_of_its_own():
  """Colab shows no field for a value that the formatter has moved."""
  for cell in nbformat.read(NOTEBOOK, 4).cells:
    for line in cell.source.splitlines():
      if "@param" in line:
        assert re.match(r"\w+ = \S.*  # @param [\[{]", line), line


# ---- Against the packages of Colab ----


@pytest.fixture(scope="module")
def preinstalled():
  """Versions by package, of each runtime."""
  parser = configparser.ConfigParser(delimiters=["=="])
  parser.read(Path(__file__).with_name("colab_packages.txt"))
  return {runtime: dict(parser[runtime]) for runtime in parser.sections()}


def resolved(*words, text=None):
  """Versions by package that uv would install on Colab."""
  target = ["--python-version", PYTHON, "--python-platform", PLATFORM]
  options = ["-q", "--no-header", "--no-annotate", *target]
  done = subprocess.run(
    [sys.executable, "-m", "uv", "pip", "compile", *options, *words],
    capture_output=True,
    cwd=ROOT,
    input=text,
    text=True,
  )
  if "Failed to fetch" in done.stderr:
    pytest.skip("the package registry cannot be reached")
  assert not done.returncode, done.stderr
  return dict(line.split("==") for line in done.stdout.splitlines())


def test_the_kernel_keeps_its_packages(preinstalled):
  """Whatever is installed beside the kernel replaces nothing there."""
  source = nbformat.read(NOTEBOOK, 4).cells[1].source
  installs = re.findall(r'"-m", "pip", "install", "--quiet", "(.*)"\)', source)
  assert installs == ["uv"] and source.count('"install"') == 2
  new = resolved("-", text="\n".join(installs))
  for runtime in preinstalled.values():
    assert not new.keys() & runtime.keys()


@pytest.mark.parametrize(
  ("runtime", "extra"),
  [("cpu", None), ("gpu", "cuda"), ("tpu", "tpu"), ("cpu", "data")],
)
def test_the_environment_resolves(preinstalled, runtime, extra):
  extras = ["--extra", extra] if extra else []
  found = resolved("pyproject.toml", *extras)
  assert not {"ipython", "ipykernel", "tensorflow"} & found.keys()
  assert ("libtpu" in found) == (runtime == "tpu")
  assert ("jax-cuda13-plugin" in found) == (runtime == "gpu")
  # How the notebook tells the runtimes apart.
  assert ("libtpu" in preinstalled[runtime]) == (runtime == "tpu")
  # Why it makes an environment: this JAX cannot replace that of the kernel,
  # which other packages there need.
  assert found["jax"] != preinstalled[runtime]["jax"]
