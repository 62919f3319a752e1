"""Training of a LoRA: what is trained, resumed and exported, and its loss."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from cascade_standin import get_config, random_params
from training_standins import (
  WIDTH,
  make_batch,
  make_config,
  make_frozen,
  make_stage,
  one_device,
)

from i2vgen_jax import interop, trees
from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.lora_files import open_lora
from i2vgen_jax.interop.stored import table_of
from i2vgen_jax.models.unet import I2VGenUNet
from i2vgen_jax.training.checkpoint import load_params
from i2vgen_jax.training.denoising import Denoising
from i2vgen_jax.training.loop import train
from i2vgen_jax.training.lora import PRETRAINED, LoraDenoising

UNET = I2VGenUNet(
  block_channels=(16,),
  layers_per_block=1,
  head_dim=8,
  input_heads=2,
  context_dim=WIDTH,
  norm_groups=4,
  image_grid=2,
)
STEPS = 60
RNG = jax.random.key(3)

pytestmark = pytest.mark.usefixtures("quick_compiler")


def moving_clips(start):
  """Eight clips of a bright column that moves to the right."""
  batch = make_batch(start, num_frames=4)
  frames = np.full_like(batch.frames, 40)
  for row, index in enumerate(batch.index):
    for k in range(4):
      frames[row, k, :, (index + k) % 8] = 230
  return dataclasses.replace(batch, frames=frames)


@pytest.fixture(scope="module")
def task():
  """A LoRA of random weights, which are not those of `init`: no zeros."""
  pretrained = random_params(UNET, 1)
  return LoraDenoising(
    stage=make_stage(UNET),
    mesh=one_device(),
    negative_ids=np.zeros((1, 5), np.int32),
    frozen={**make_frozen(), PRETRAINED: pretrained},
    rank=1,
    alpha=2.0,
    origin="elsewhere",
  )


def batches(start):
  # Four batches again and again.
  for step in itertools.count(start):
    yield step, moving_clips(8 * (step % 4))


def run(task, workdir, num_steps):
  """Trains; returns what was logged."""
  config = make_config(
    num_steps=num_steps,
    learning_rate=2e-2,
    weight_decay=0.0,
    log_every=10,
    checkpoint_every=10,
    sample_every=10,
    ema_decay=0.5,
  )
  train(
    task,
    batches,
    config,
    workdir,
    one_device(),
    held_out=lambda: (("clips", moving_clips(n)) for n in (100, 108)),
  )
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def trained(task, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("lora")
  return workdir, run(task, workdir, STEPS)


def held_out_loss(task, params):
  rng = jax.random.fold_in(jax.random.key(0), 1)
  loss = jax.jit(task.held_out_loss)
  clips = moving_clips(100), moving_clips(108)
  return np.mean([loss(params, task.frozen, batch, rng)[0] for batch in clips])


def test_the_held_out_loss_falls_below_that_of_the_weights_alone(task, trained):
  before = held_out_loss(task, task.init_params(RNG))
  losses = [line["unseen_loss"] for line in trained[1]]
  assert losses[-1] < losses[0] < before
  assert losses[-1] < 0.9 * before


def test_the_first_loss_is_that_of_the_weights_alone(task):
  fields = {
    f.name: getattr(task, f.name) for f in dataclasses.fields(Denoising)
  }
  plain, batch = Denoising(**fields), moving_clips(0)
  pretrained = task.frozen[PRETRAINED]
  expected = jax.jit(plain.loss)(pretrained, task.frozen, batch, RNG)[0]
  params = task.init_params(RNG)
  loss = jax.jit(task.loss)(params, task.frozen, batch, RNG)[0]
  assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_checkpoints_hold_the_lora_alone(task, trained):
  whole = sum(x.size for x in jax.tree.leaves(task.frozen[PRETRAINED]))
  for name in ("params", "ema_params"):
    shapes = jax.tree.leaves(load_params(trained[0], name=name))
    assert sum(x.size for x in shapes) < 0.05 * whole
  assert trees.shapes_of(load_params(trained[0])) == trees.shapes_of(
    jax.eval_shape(task.init_params, RNG)
  )


def test_a_resumed_run_ends_as_an_uninterrupted_one(task, trained, tmp_path):
  run(task, tmp_path, 20)
  run(task, tmp_path, STEPS)
  one, two = map(load_params, (trained[0], tmp_path))
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_the_export_is_the_lora_alone(task, trained, tmp_path):
  params = load_params(trained[0])
  folder = tmp_path / "export"
  task.export(folder, params, moving_clips(0))
  assert [path.name for path in folder.iterdir()] == ["lora"]
  shapes = trees.shapes_of(task.frozen[PRETRAINED])
  stored = open_lora(folder / "lora")
  pairs = stored.load(table_of(UNET, "diffusers"), shapes)
  (a, b), layer = pairs["temporal_in/block/attn_1/to_q/kernel"], params
  for name in ("temporal_in", "block", "attn_1", "to_q"):
    layer = layer[name]
  np.testing.assert_array_equal(a, layer["lora_A"]["kernel"])
  np.testing.assert_array_equal(b, 2 * layer["lora_B"]["kernel"])
  assert stored.stage == "base"


class TestConfig:
  @pytest.fixture
  def config(self, weights):
    config = get_config("tiny_lora")
    stored = interop.open_weights(weights).networks["base"]
    with config.unlocked():
      config.unet.update(stored.config["module"])
    config.frozen = str(weights)
    config.init_from = str(weights / "base")
    return config

  def test_the_weights_are_frozen_in_the_type_asked_for(self, config):
    config.lora.pretrained_dtype = "bfloat16"
    task = LoraDenoising.from_config(config, one_device())
    kept = jax.tree.leaves(task.frozen[PRETRAINED])
    assert {str(x.dtype) for x in kept} == {"bfloat16"}
    assert (task.rank, task.alpha) == (8, 8.0)

  def test_towers_have_the_type_of_the_computation(self, config):
    config.unet.dtype = "bfloat16"
    task = LoraDenoising.from_config(config, one_device())
    towers = ("vae", "image_encoder")
    kept = jax.tree.leaves([task.frozen[name] for name in towers])
    assert {str(x.dtype) for x in kept} == {"bfloat16"}
    modules = [getattr(task.stage, name) for name in towers]
    assert {str(module.dtype) for module in modules} == {"bfloat16"}

  def test_a_rank_of_zero_is_refused(self, config):
    config.lora.rank = 0
    with pytest.raises(InputError, match=r"lora\.rank must be at least 1"):
      LoraDenoising.from_config(config, one_device())

  def test_weights_are_required(self, config):
    config.init_from = None
    with pytest.raises(InputError, match=r"config\.init_from is not set"):
      LoraDenoising.from_config(config, one_device())

  def test_incomplete_weights_are_refused(self, config, weights):
    config.init_from = str(weights / "refine")
    with pytest.raises(InputError, match=r"lacks .* of its arrays"):
      LoraDenoising.from_config(config, one_device())
