"""The losses of an evaluation are those that a training would log."""

import dataclasses

import jax
import numpy as np
import pytest
from cascade_standin import NUM_FRAMES, get_config
from dataset_standin import counting_clip, write_dataset

from data_pipelines.loading.reader import Reader
from i2vgen_jax.cascade import Cascade
from i2vgen_jax.files import read_json
from i2vgen_jax.sharding import make_mesh
from i2vgen_jax.training.denoising import Denoising
from launch.evaluation import inputs
from launch.evaluation.losses import by_timestep


@pytest.fixture(scope="module")
def cascade(weights):
  return Cascade.load(weights)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  # Of two frames, so that nothing is drawn.
  clips = [
    counting_clip(f"c{n}", (96, 64), NUM_FRAMES, [f"clip {n}"], fps=4 + n)
    for n in range(3)
  ]
  return write_dataset(tmp_path_factory.mktemp("data"), "text_video", clips)


@pytest.fixture(scope="module")
def found(dataset):
  return inputs.of_dataset(dataset, NUM_FRAMES, 0)


@pytest.fixture(scope="module")
def one(found):
  return inputs.Inputs(1, found.read)


@pytest.fixture(scope="module")
def losses(cascade, one):
  return by_timestep(cascade, cascade.plan(), one, seed=3, batch_size=8)


def test_levels_are_those_of_the_training(losses):
  assert {name: [*found] for name, found in losses.items()} == {
    # A shift of 3, and all levels of 8 behind a shift of 100.
    "base": [300, 642, 833, 954],
    "refine": [7],
  }


@pytest.mark.parametrize(
  ("name", "config"), [("base", "tiny"), ("refine", "tiny_refine")]
)
def test_losses_are_those_of_the_training(
  cascade, tmp_path, losses, weights, name, config
):
  config = get_config(config)
  config.frozen = str(weights)
  stored = read_json(weights / name / "config.json")
  for group, ours in (("unet", "module"), ("sampling", "sampling")):
    for key, value in stored[ours].items():
      config[group][key] = tuple(value) if isinstance(value, list) else value
  mesh = make_mesh(devices=jax.devices()[:1])
  task = Denoising.from_config(config, mesh)
  sampling = task.stage.sampling
  clip = counting_clip("c0", (96, 64), NUM_FRAMES, ["clip 0"], fps=4)
  dataset = write_dataset(tmp_path, "text_video", [clip])
  batch = Reader(
    [str(dataset)],
    batch_size=1,
    size=sampling.size,
    buckets=[(sampling.num_frames, sampling.fps, 1.0)],
    clip_size=task.clip_size,
    tokenizer=task.tokenizer,
    seed=3,
  ).batch(0)
  loss = jax.jit(task.held_out_loss)
  params = cascade.networks[name].params
  loss, sums = loss(params, task.frozen, batch, jax.random.key(3))
  [level] = [
    int(part.removeprefix("timestep "))
    for part, (_, rows) in sums.items()
    if rows
  ]
  assert losses[name][level] == pytest.approx(float(loss), rel=1e-5)


def test_each_clip_counts_once_in_batches_of_any_size(cascade, found, losses):
  stages = {"base": cascade.plan()["base"]}
  whole, parts = (
    by_timestep(cascade, stages, found, seed=3, batch_size=size)
    for size in (8, 2)
  )
  assert parts["base"] == pytest.approx(whole["base"], rel=1e-5)
  assert losses["base"] != pytest.approx(whole["base"], rel=1e-2)


def test_weights_that_do_not_say_have_the_levels_they_sample_at(cascade):
  refine = cascade.networks["refine"]
  config = refine.config | {
    "diffusion": dataclasses.asdict(cascade.stages["refine"].diffusion)
  }
  networks = cascade.networks | {
    "refine": dataclasses.replace(refine, config=config)
  }
  public = dataclasses.replace(cascade, networks=networks)
  stages = {"refine": cascade.plan()["refine"]}
  mesh = make_mesh(devices=jax.devices()[:1])
  task = Denoising.from_cascade(public, stages, "refine", mesh)
  start = stages["refine"].sampling.start_timestep
  expected = (start + 1) * np.array([0.125, 0.375, 0.625, 0.875])
  np.testing.assert_array_equal(task.held_out_levels, expected.astype(int))
  assert task.frozen.keys() == {"vae", "text_encoder"}


def test_a_mesh_that_does_not_divide_the_clips(weights, one, losses):
  cascade = Cascade.load(weights, mesh=make_mesh(data=2, frames=4))
  stages = {"base": cascade.plan()["base"]}
  found = by_timestep(cascade, stages, one, seed=3, batch_size=8)
  assert found["base"] == pytest.approx(losses["base"], rel=1e-4)
