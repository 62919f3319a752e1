"""What the trainer says about its data, and refuses; nothing is trained."""

import itertools

import cascade_standin
import jax
import numpy as np
import pytest
from dataset_standin import counting_clip, write_dataset

from data_pipelines.loading.reader import Reader
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
def reader(tmp_path):
  """Of two captions, of which one has more words than the tower's length."""
  build_vocabulary(["red", "moves"], tmp_path / "tokenizer")
  texts = ["red moves", "red " * 20]
  clip = counting_clip("one", (16, 16), 4, texts)
  return Reader(
    [write_dataset(tmp_path, "text_video", [clip])],
    batch_size=8, size=(16, 16), buckets=[(4, 8.0, 1.0)], clip_size=4,
    tokenizer=Tokenizer.load(tmp_path / "tokenizer", max_length=16), seed=0,
  )  # fmt: skip


def told(config, reader, capfd, steps):
  batches = train._batches(reader, 3, make_mesh(), config, None)
  numbers = [step for step, _ in itertools.islice(batches, steps)]
  assert numbers == list(range(3, 3 + steps))
  return capfd.readouterr().err.splitlines()


def test_cut_captions_are_told_as_often_as_the_loss(
  config, reader, capfd, monkeypatch
):
  monkeypatch.setattr(train.tasks, "text_length", lambda _: 16)
  lines = told(config, reader, capfd, 6)  # steps 3 to 8
  assert len(lines) == 3
  cut, of, read = lines[0].split()[:3]
  assert of == "of" and 0 < int(cut) < int(read)
  assert "cut" in lines[0]


def test_captions_that_nobody_reads_are_not_told_of(
  config, reader, capfd, monkeypatch
):
  monkeypatch.setattr(train.tasks, "text_length", lambda _: 2)
  assert told(config, reader, capfd, 6) == []
  assert reader.captions_cut > 0


def test_kept_latents_and_new_views_are_refused(config, tmp_path):
  config.data.keep_latents = True
  config.data.augmentation.flip = 0.5
  with pytest.raises(InputError, match="keep_latents"):
    train.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


class TestInitFrom:
  @pytest.fixture
  def folder(self, tmp_path):
    """A stored autoencoder, in float16 as the bundled one is."""
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
    params = train._initial_params(config)
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"float32"}
    stored = build.load(folder).params
    jax.tree.map(np.testing.assert_array_equal, params, stored)

  def test_another_width_is_refused(self, folder):
    config = cascade_standin.get_config("tiny_vae")
    config.init_from = str(folder)
    config.vae.latent_channels = 4
    with pytest.raises(InputError, match="another"):
      train._initial_params(config)

  def test_towers_start_from_nothing(self, folder):
    config = cascade_standin.get_config("tiny_clip")
    config.init_from = str(folder)
    with pytest.raises(InputError, match=r"config\.init_from"):
      train._initial_params(config)
