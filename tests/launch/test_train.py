"""What the trainer reports about its data, and what it refuses."""

import itertools

import cascade_standin
import jax
import numpy as np
import pytest
from dataset_standin import counting_clip, write_dataset

from data_pipelines.loading.reader import Reader
from i2vgen_jax import interop
from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.formats import native
from i2vgen_jax.models import build
from i2vgen_jax.sharding import make_mesh
from i2vgen_jax.tokenizer import Tokenizer, build_vocabulary
from launch import train


@pytest.fixture
def config():
  config = cascade_standin.get_config("tiny")
  config.data.keep_latents = False
  config.train.update({"batch_size": 8, "log_every": 2})
  return config


@pytest.fixture
def reader_options(tmp_path):
  """Reads two captions, one with more words than the text encoder takes."""
  build_vocabulary(["red", "moves"], tmp_path / "tokenizer")
  texts = ["red moves", "red " * 20]
  clip = counting_clip("one", (16, 16), 4, texts)
  return {
    "video_dirs": [write_dataset(tmp_path, "text_video", [clip])],
    "batch_size": 8,
    "size": (16, 16),
    "buckets": [(4, 8.0, 1.0)],
    "clip_size": 4,
    "tokenizer": Tokenizer.load(tmp_path / "tokenizer", max_length=16),
    "seed": 0,
  }


def report(config, reader, capfd, steps):
  """Lines printed while batches are read from step 3 on."""
  batches = train._batches(reader, 3, list(range(8)), config, None)
  numbers = [step for step, _ in itertools.islice(batches, steps)]
  assert numbers == list(range(3, 3 + steps))
  return capfd.readouterr().err.splitlines()


def test_cut_captions_are_reported_as_often_as_the_loss(
  config, reader_options, capfd
):
  lines = report(config, Reader(**reader_options), capfd, 6)  # steps 3 to 8
  assert len(lines) == 3
  cut, of, read = lines[0].split()[:3]
  assert of == "of" and 0 < int(cut) < int(read)
  assert "cut" in lines[0]


def test_captions_that_no_network_reads_are_not_reported(
  config, reader_options, capfd
):
  reader = Reader(**reader_options | {"tokenizer": None})
  assert report(config, reader, capfd, 6) == []
  assert reader.captions_cut == 0


def test_kept_latents_with_augmentation_are_refused(config, tmp_path):
  config.data.keep_latents = True
  config.data.augmentation.flip = 0.5
  with pytest.raises(InputError, match="keep_latents"):
    train.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_an_unknown_objective_is_refused(config):
  config.objective = "denoising"
  with pytest.raises(InputError, match="'denoising'; use one of diffusion"):
    train.make_task(config, make_mesh())


@pytest.mark.parametrize("objective", ["diffusion", "contrastive"])
def test_frozen_networks_must_be_given(config, objective):
  config.update({"objective": objective, "frozen": None})
  with pytest.raises(InputError, match=r"config\.frozen is not set"):
    train.make_task(config, make_mesh())


def load_params(config):
  task = train.make_task(config, make_mesh())
  return task.load_params(config.init_from, jax.random.key(0))


class TestInitFrom:
  @pytest.fixture
  def folder(self, tmp_path):
    """A stored autoencoder in float16, as the bundled one."""
    config = cascade_standin.get_config("tiny_vae")
    module = build.make_module("vae", config.vae.to_dict(), tmp_path)
    params = jax.tree.map(
      lambda x: x.astype(np.float16), cascade_standin.random_params(module, 0)
    )
    fields = {"module": config.vae.to_dict(), "scaling_factor": 1.0}
    native.save(tmp_path / "vae", fields, params)
    return tmp_path / "vae"

  def test_training_keeps_its_weights_in_float32(self, folder):
    config = cascade_standin.get_config("tiny_vae")
    config.init_from = str(folder)
    params = load_params(config)
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"float32"}
    stored = interop.load_vae(folder)[1]
    jax.tree.map(np.testing.assert_array_equal, params, stored)

  def test_another_width_is_refused(self, folder):
    config = cascade_standin.get_config("tiny_vae")
    config.init_from = str(folder)
    config.vae.latent_channels = 4
    with pytest.raises(InputError, match="another"):
      load_params(config)

  def test_clip_towers_start_from_random_weights(self, folder):
    config = cascade_standin.get_config("tiny_clip")
    config.frozen = str(folder.parent)
    build_vocabulary([], folder.parent / "tokenizer")
    config.init_from = str(folder)
    with pytest.raises(InputError, match=r"config\.init_from"):
      load_params(config)
