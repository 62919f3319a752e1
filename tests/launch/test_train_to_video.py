"""From random weights to a video: `launch/make_tiny.sh` in miniature."""

import functools
import json
import shutil
from pathlib import Path

import cascade_standin
import jax
import numpy as np
import pytest

from data_pipelines.procedural.build import build_procedural
from i2vgen_jax import interop
from i2vgen_jax.cascade import Cascade
from i2vgen_jax.errors import InputError
from i2vgen_jax.tokenizer import build_vocabulary
from i2vgen_jax.training.checkpoint import load_params
from launch import train
from launch.weights import open_weights

# It compiles eight training runs.
pytestmark = pytest.mark.slow

SMALL_UNET = {"block_channels": (8, 16), "head_dim": 8, "norm_groups": 4}


def small(arg: str, cascade: Path, shards: Path):
  """The config of a bundled network, at widths that compile in seconds."""
  config = cascade_standin.get_config(arg)
  config.frozen = str(cascade)
  config.data.video_dirs = (str(shards / "text_video" / "1.0.0"),)
  config.train.update(
    # A row for each of the virtual devices.
    {"num_steps": 2, "batch_size": 8, "warmup_steps": 0, "log_every": 1}
  )
  if arg == "tiny_vae":
    config.vae.block_channels = (8,)
    config.autoencoder.scales = ((1, 4), (2, 4))
    config.data.size = (64, 64)
  elif arg != "tiny_clip":
    config.unet.update(SMALL_UNET)
    config.sampling.update({"num_steps": 2, "size": (32, 32)})
    config.data.size = (32, 32)
  return config


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
  folder = tmp_path_factory.mktemp("shards") / "train"
  build_procedural(folder, 8, "train", size=(64, 64))
  return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shards):
  """A cascade folder of four networks, two steps each."""
  root = tmp_path_factory.mktemp("train")
  cascade = root / "cascade"
  build_vocabulary(["red", "moves"], cascade / "tokenizer")
  for arg in ("tiny_vae", "tiny_clip", "tiny", "tiny_refine"):
    train.run(small(arg, cascade, shards), root / arg)
    for network in (root / arg / "export").iterdir():
      shutil.copytree(network, cascade / network.name)
  return root


def test_four_trainings_make_a_cascade_that_samples(trained):
  cascade = Cascade.load(trained / "cascade", np.float32)
  picture = np.full((40, 48, 3), 128, np.uint8)
  base, refine = cascade.stages.values()
  clip = cascade.run(base, [picture], ["red moves"])
  refined = cascade.run(refine, clip, ["red moves"])
  assert clip.shape == (1, 8, 32, 32, 3)
  assert refined.shape == (1, 8, 32, 32, 3)


def test_a_workdir_stands_for_its_network_in_the_cascade(trained):
  weights = open_weights(str(trained / "tiny"))
  cascade = Cascade.load(weights, np.float32)
  expected = Cascade.load(trained / "cascade", np.float32)
  picture = np.full((40, 48, 3), 128, np.uint8)
  made, clip = (
    some.run(some.stage("base"), [picture], ["red moves"])
    for some in (cascade, expected)
  )
  np.testing.assert_array_equal(made, clip)


def test_a_run_leaves_config_checkpoints_and_pictures(trained):
  config = json.loads((trained / "tiny" / "config.json").read_text())
  assert config["unet"]["block_channels"] == [8, 16]
  assert (trained / "tiny" / "checkpoints" / "2").is_dir()
  assert (trained / "tiny" / "samples" / "step_00000002.png").is_file()


def test_autoencoder_scales_latents_to_unit_variance(trained):
  config = json.loads((trained / "cascade/vae/config.json").read_text())
  assert config["scaling_factor"] > 0


def test_a_decoder_trains_alone_and_the_latents_stay(trained, shards):
  config = small("tiny_vae", trained / "cascade", shards)
  config.autoencoder.decoder_only = True
  with pytest.raises(InputError, match=r"config\.init_from"):
    train.run(config, trained / "decoder")
  config.init_from = str(trained / "cascade" / "vae")
  train.run(config, trained / "decoder")
  before, after = (
    interop.open_weights(folder).networks["vae"].load()
    for folder in (trained / "cascade/vae", trained / "decoder/export/vae")
  )
  assert after.config == before.config
  same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
  same(after.params["encoder"], before.params["encoder"])
  with pytest.raises(AssertionError):
    same(after.params["decoder"], before.params["decoder"])


def test_towers_of_another_width_are_refused(trained, shards, tmp_path):
  config = small("tiny", trained / "cascade", shards)
  config.unet.context_dim = 32
  with pytest.raises(InputError, match="has width 64"):
    train.run(config, tmp_path / "run")


def test_latents_kept_in_memory_change_nothing(trained, shards):
  """The same first loss whether a step encodes frames or reads moments."""
  losses = []
  for keep in (False, True):
    config = small("tiny", trained / "cascade", shards)
    config.data.keep_latents = keep
    workdir = trained / f"keep_{keep}"
    train.run(config, workdir)
    losses.append(_params(workdir))
  np.testing.assert_allclose(*losses, rtol=0, atol=2e-4)


def _params(workdir: Path) -> np.ndarray:
  return load_params(workdir, name="params")["conv_out"]["kernel"].ravel()
