"""Encoded datasets give the latents that training would compute."""

import cascade_standin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.loading.reader import Reader
from data_pipelines.procedural.build import build_procedural
from data_pipelines.shards import latents
from data_pipelines.shards.dataset import Dataset, dataset_dir
from i2vgen_jax import autoencoding, interop
from i2vgen_jax.errors import InputError
from i2vgen_jax.tokenizer import Tokenizer
from launch import train

SIZE = (32, 16)


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
  """Six clips of 8 frames and six pictures, in 3 shards each."""
  folder = tmp_path_factory.mktemp("pixels") / "set"
  build_procedural(folder, 6, "train", size=(48, 32), shard_size=2)
  return folder


@pytest.fixture(scope="module")
def encoded(pixels, weights, tmp_path_factory):
  from launch import cli

  folder = tmp_path_factory.mktemp("encoded") / "set"
  for kind in ("text_video", "text_image"):
    argv = ["data", "encode", dataset_dir(pixels, kind), "--output", folder]
    argv += ["--weights", weights, "--size=32x16", "--chunk=3"]
    assert cli.main([str(a) for a in argv]) == 0
  return folder


@pytest.fixture
def towers(weights):
  networks = interop.open_weights(weights).networks
  return {name: networks[name].load() for name in ("vae", "image_encoder")}


def reader(folder, kinds, weights, towers, **changes):
  videos, stills = (dataset_dir(folder, kind) for kind in kinds)
  options = {
    "batch_size": 4,
    "size": SIZE,
    "buckets": ((4, 8.0, 2.0), (1, 1.0, 1.0)),
    "clip_size": towers["image_encoder"].module.image_size,
    "tokenizer": Tokenizer.load(weights / "tokenizer", max_length=16),
    "seed": 3,
  }
  return Reader([videos], [stills], **options | changes)


def test_latents_match_the_pixels(pixels, encoded, weights, towers):
  kinds = ("text_video", "text_image")
  ours = reader(pixels, kinds, weights, towers)
  kinds = ("latent_video", "latent_image")
  theirs = reader(encoded, kinds, weights, towers)
  seen = set()
  for step in range(6):
    a, b = ours.batch(step), theirs.batch(step)
    seen.add(b.num_frames)
    assert b.frames is None and b.clip_images is None
    for name in ("token_ids", "fps", "index"):
      np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    vae, tower = towers["vae"], towers["image_encoder"]
    frames = autoencoding.to_unit_range(jnp.asarray(a.frames))
    posterior = autoencoding.encode_clips(vae.module, vae.params, frames, 2)
    moments = posterior.moments
    np.testing.assert_allclose(b.moments, moments, rtol=2e-3, atol=2e-3)
    embeds = tower.module.apply({"params": tower.params}, a.clip_images)
    np.testing.assert_allclose(b.image_embeds, embeds, rtol=2e-3, atol=2e-3)
  assert seen == {1, 4}


def test_tfds_opens_them(encoded):
  import tensorflow_datasets as tfds

  for kind in ("latent_video", "latent_image"):
    directory = dataset_dir(encoded, kind)
    builder = tfds.builder_from_directory(directory)
    assert builder.info.splits["train"].shard_lengths == [2, 2, 2]
    [first, *_] = tfds.as_numpy(builder.as_dataset(split="train"))
    ours = Dataset([directory])[0]
    assert first["moments"] == ours["moments"]
    assert first["times"].tolist() == pytest.approx(ours["times"])
    shape = latents.encoded_of(ours).moments.shape
    assert shape[0] == ours["num_frames"]


def test_encoding_resumes_and_rejects_other_networks(
  pixels, encoded, weights, tmp_path, run, refused
):
  source = dataset_dir(pixels, "text_video")
  argv = ["data", "encode", source, "--output", tmp_path / "a"]
  argv += ["--size=32x16", "--chunk=3"]
  assert run(*argv, "--weights", weights)[0] == 0
  directory = dataset_dir(tmp_path / "a", "latent_video")
  names = {p.name: p.read_bytes() for p in directory.iterdir()}
  want = dataset_dir(encoded, "latent_video")
  assert names == {p.name: p.read_bytes() for p in want.iterdir()}
  (directory / "dataset_info.json").unlink()
  next(directory.glob("*-00001-of-00003")).unlink()
  kept = next(directory.glob("*-00002-of-00003"))
  before = kept.stat().st_mtime_ns
  assert run(*argv, "--weights", weights)[0] == 0
  assert kept.stat().st_mtime_ns == before
  assert names == {p.name: p.read_bytes() for p in directory.iterdir()}
  other = cascade_standin.write_cascade(tmp_path / "other", seed=1)
  assert "other networks" in refused(*argv, "--weights", other)
  assert "multiples of" in refused(
    *argv[:5], "--size=33x16", "--weights", weights
  )
  assert "holds latent_video already" in refused(
    "data", "encode", directory, *argv[3:], "--weights", weights
  )


def test_other_sizes_are_rejected(encoded, weights, towers):
  kinds = ("latent_video", "latent_image")
  large = reader(encoded, kinds, weights, towers, size=(48, 32))
  with pytest.raises(InputError, match="32x16"):
    large.batch(0)


def training(frozen, encoded):
  config = cascade_standin.get_config("tiny")
  config.frozen = str(frozen)
  config.data.video_dirs = (str(dataset_dir(encoded, "latent_video")),)
  config.data.size = SIZE
  config.data.buckets = ((4, 8.0, 1.0),)
  config.data.keep_latents = False
  config.unet.update({"context_dim": 16, "head_dim": 8, "input_heads": 1})
  config.unet.block_channels = (8,)
  config.sampling.num_steps = 2
  return config


def test_training_rejects_latents_of_other_networks(encoded, tmp_path):
  other = cascade_standin.write_cascade(tmp_path / "other", seed=1)
  config = training(other, encoded)
  with pytest.raises(InputError, match="encoded by another image_encoder"):
    train.run(config, tmp_path / "run")


@pytest.mark.slow
def test_training_reads_latents(encoded, weights, tmp_path):
  config = training(weights, encoded)
  config.data.image_dirs = (str(dataset_dir(encoded, "latent_image")),)
  config.data.buckets = ((4, 8.0, 1.0), (1, 1.0, 1.0))
  config.train.update(
    {"num_steps": 3, "batch_size": 2 * len(jax.devices()), "log_every": 1}
  )
  config.train.warmup_steps = 0
  train.run(config, tmp_path / "run")
  assert list((tmp_path / "run" / "samples").iterdir())
  assert (tmp_path / "run" / "export").exists()
