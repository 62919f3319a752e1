"""Networks trained on a real film get better at held-out clips."""

import cascade_standin
import diffusers
import jax
import model_testing
import numpy as np
import public_standin
import pytest
import torch
from PIL import Image
from unet_reference import draw_inputs, their_output

from data_pipelines.footage.build import build_footage
from data_pipelines.footage.settings import FootageSettings, ScanSettings
from i2vgen_jax.training import record
from i2vgen_jax.training.checkpoint import load_params
from launch import train
from launch.weights import open_weights

# It takes minutes to decode the film and to train.
pytestmark = pytest.mark.slow

REPOSITORY = cascade_standin.CONFIGS.parents[1]
# Number of first rows that are used of the lists in docs/real-footage.
NUM_ROWS = {"train": 16, "unseen": 6}


@pytest.fixture(scope="module")
def shards(film, tmp_path_factory):
  """text_video directories of different shots of the film, by name."""
  folder = tmp_path_factory.mktemp("footage")
  (folder / "bbb.mp4").symlink_to(film("bbb"))
  scan = ScanSettings(split_shots=False, max_seconds=3)
  for name, count in NUM_ROWS.items():
    text = (REPOSITORY / f"docs/real-footage/{name}.csv").read_text()
    rows = folder / f"{name}.csv"
    rows.write_text("\n".join(text.splitlines()[: 1 + count]))
    built = build_footage(
      rows, folder / name, FootageSettings(scan=scan, short_side=128)
    )
    assert built.num_videos >= count
    assert set(built.dropped) <= {"duplicate"}
  return {name: folder / name / "text_video" / "1.0.0" for name in NUM_ROWS}


def test_the_loss_on_held_out_clips_falls(shards, tmp_path):
  config = cascade_standin.get_config("tiny")
  config.frozen = str(REPOSITORY / "i2vgen_jax" / "assets" / "tiny")
  config.data.video_dirs = (str(shards["train"]),)
  config.data.unseen_dirs = (str(shards["unseen"]),)
  config.unet.update(
    {"block_channels": (8, 16), "head_dim": 8, "norm_groups": 4}
  )
  config.sampling.num_steps = 2
  config.train.update({"num_steps": 40, "log_every": 5, "sample_every": 20})
  config.train.update({"learning_rate": 3e-3, "warmup_steps": 10})
  train.run(config, tmp_path)

  reports = record.read(tmp_path)
  assert [report["step"] for report in reports] == list(range(5, 41, 5))
  assert all(report["loss"] > 0 for report in reports)
  unseen = {r["step"]: r["unseen_loss"] for r in reports if "unseen_loss" in r}
  assert sorted(unseen) == [20, 40]
  assert unseen[40] < 0.95 * unseen[20]
  assert Image.open(tmp_path / "curve.png").format == "PNG"
  assert Image.open(tmp_path / "samples" / "step_00000040.png").width == 8 * 64


def tune(name, repository, shards, workdir, **changes):
  """Held-out losses of a training of small weights of public variant (c)."""
  config = cascade_standin.get_config(name)
  config.frozen = config.init_from = str(repository)
  config.lora.rank = 4
  config.unet.update(public_standin.SMALL_UNET)
  config.unet.update({"dtype": "float32", "remat": False})
  config.data.video_dirs = (str(shards["train"]),)
  config.data.unseen_dirs = (str(shards["unseen"]),)
  config.data.update({"size": (16, 16), "buckets": ((2, 8.0, 1.0),)})
  config.sampling.update({"size": (16, 16), "num_frames": 2, "num_steps": 2})
  # Random weights have more to learn than released ones.
  config.train.update({"num_steps": 200, "learning_rate": 2e-3})
  config.train.update({"log_every": 10, "sample_every": 50} | changes)
  train.run(config, workdir)
  reports = record.read(workdir)
  return [r["unseen_loss"] for r in reports if "unseen_loss" in r]


@pytest.fixture(scope="module")
def untuned(repository, shards, tmp_path_factory):
  """Held-out loss of the weights that a fine-tuning starts from."""
  workdir = tmp_path_factory.mktemp("untuned")
  still = {"num_steps": 1, "warmup_steps": 0, "learning_rate": 0.0}
  [loss] = tune("released_tuned", repository, shards, workdir, **still)
  return loss


@pytest.mark.parametrize("name", ["released_tuned", "released_lora"])
def test_fine_tuning_lowers_the_loss_on_held_out_clips(
  name, repository, shards, untuned, tmp_path, run
):
  workdir, folder = tmp_path / "run", tmp_path / "diffusers"
  losses = tune(name, repository, shards, workdir)
  print(f"{name}: held-out loss {untuned:.4f}, then {losses}")
  assert len(losses) == 4
  assert losses[-1] < losses[0] < untuned

  network = open_weights(str(workdir)).networks["base"].load(np.float32)
  if name == "released_lora":
    trained, whole = map(
      model_testing.count, (load_params(workdir), network.params)
    )
    assert trained < 0.05 * whole
    source = [repository, "--lora", workdir / "export" / "lora"]
  else:
    source = [workdir / "export" / "base"]
  assert run("convert", *source, folder, "--to", "diffusers")[0] == 0
  theirs = diffusers.I2VGenXLUNet.from_pretrained(folder / "unet")
  inputs = draw_inputs(1, 4, 16, 16, public_standin.WIDTH)
  with torch.no_grad():
    expected = their_output(theirs.eval(), **inputs).numpy()
  run_unet = jax.jit(network.module.apply)
  ours = run_unet({"params": network.params}, **inputs)
  assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()
