"""`i2vgen plan` on small U-Nets."""

import dataclasses
import json

import jax
import pytest
from cascade_standin import CONFIGS
from PIL import Image

from launch.planning import chips

# The configs of this repository at the smallest widths that kernels take.
SMALL = """\
import runpy

def get_config(arg):
  config = runpy.run_path({path!r})["get_config"](arg).unlock()
  if "unet" in config:
    config.unet.block_channels = (64,)
    config.unet.layers_per_block = 1
    config.unet.input_heads = 2
    config.data.size = config.sampling.size = (64, 64)
    config.data.buckets = ((4, 8.0, 1.0),)
    config.sampling.num_frames = 4
    config.train.batch_size = 4
  return config.lock()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder with the config file, where compilations are kept too."""
  folder = tmp_path_factory.mktemp("plan")
  (folder / "small.py").write_text(SMALL.format(path=str(CONFIGS)))
  return folder


@pytest.fixture(autouse=True)
def restored():
  """The command changes settings of JAX for the rest of its process."""
  limit = jax.config.jax_traceback_in_locations_limit
  yield
  jax.config.update("jax_enable_compilation_cache", True)
  jax.config.update("jax_traceback_in_locations_limit", limit)


@pytest.fixture
def planned(run, folder, monkeypatch):
  """Plans a run; its figures."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(folder))

  def planned(config, *argv):
    path = folder / "plan.json"
    options = [f"--config={folder / 'small.py'}:{config}", f"--json={path}"]
    status, lines = run("plan", *options, *argv)
    assert status == 0, lines
    return json.loads(path.read_text())

  return planned


def unet_seconds(program):
  seconds = program["seconds"]
  return sum(v for k, v in seconds.items() if k.startswith("I2VGenUNet"))


def test_a_video_on_several_chips(planned, folder):
  figures = planned(
    "refine",
    "--mode=sample",
    "--topology=v5e:2x2",
    "--mesh=frames=4",
    f"--plot={folder / 'plan.png'}",
  )
  assert figures["fitting"] == figures["run"]
  assert [*figures["programs"]] == ["start", "denoise", "decode"]
  denoise = figures["programs"]["denoise"]
  assert denoise["times"] == 30
  assert denoise["memory"]["U-Net"] > 0 and denoise["memory"]["temporaries"] > 0
  # Layers over time gather what is split over frames.
  assert denoise["collectives"] > 0
  assert unet_seconds(denoise) > denoise["collectives"]
  assert sum(denoise["flops"].values()) > 0
  assert Image.open(folder / "plan.png").width == 1000


@pytest.mark.slow
def test_parts_add_up_to_the_whole(planned):
  figures = planned("refine", "--mode=sample", "--topology=v5e:1x1", "--whole")
  errors = figures["errors"]
  assert [*errors] == ["denoise"]
  assert abs(errors["denoise"]["work"]) < 0.01
  assert abs(errors["denoise"]["time"]) < 0.5


@pytest.mark.slow
def test_a_training_step(planned):
  figures = planned("refine", "--topology=v5e:2x2", "--mesh=data=2,fsdp=2")
  train = figures["programs"]["train"]
  kinds = {"parameters", "average", "optimizer", "towers", "gradients"}
  assert kinds <= train["memory"].keys()
  # The moments of AdamW are twice the parameters.
  assert train["memory"]["optimizer"] == pytest.approx(
    2 * train["memory"]["parameters"], rel=0.01
  )
  assert train["seconds"]["optimizer"] > 0


@pytest.mark.slow
def test_what_remat_computes_again_takes_time_but_is_no_work(planned):
  settings = ("base", "--topology=v5e:1x1", "--batch-size=1", "--mesh=data=1")
  layers, blocks = (
    planned(*settings, f"--remat={policy}")["programs"]["train"]
    for policy in ("layers", "nothing")
  )
  assert blocks["flops"] == layers["flops"]
  assert unet_seconds(blocks) > unet_seconds(layers)


@pytest.mark.slow
def test_a_run_that_does_not_fit_gets_one_that_does(planned, monkeypatch):
  v5e = dataclasses.replace(chips.CHIPS["v5e"], memory=2**30)
  monkeypatch.setitem(chips.CHIPS, "v5e", v5e)
  figures = planned("refine", "--topology=v5e:2x2", "--batch-size=512")
  assert sum(figures["programs"]["train"]["memory"].values()) > 2**30
  assert figures["fitting"] not in (None, figures["run"])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--topology=v5e:3x5"], "libtpu has no topology 'v5e:3x5'"),
    (["--topology=v5e:2x2", "--mesh=frames=3"], "does not fit 4 devices"),
    (["--topology=v5e:2x2", "--batch-size=3"], "a batch of 3 does not divide"),
    (
      ["--topology=v5e:2x2", "--mesh=frames=4", "--num-frames=6"],
      "clips of 6 frames do not divide",
    ),
    (
      ["--topology=v5e:1x1", "--mode=sample", "--size=100x100"],
      "size 100x100 does not fit stage refine",
    ),
  ],
)
def test_impossible_runs_are_refused(refused, folder, options, message):
  config = f"--config={folder / 'small.py'}:refine"
  assert message in refused("plan", config, *options)


def test_only_unets_are_planned(refused, folder):
  config = f"--config={folder / 'small.py'}:tiny_vae"
  line = refused("plan", config, "--topology=v5e:1x1")
  assert "trains no U-Net" in line
