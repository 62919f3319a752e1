"""The real U-Net on every mesh layout, at toy widths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_standins import (
  WIDTH,
  compiled_step,
  make_batch,
  make_denoising,
  make_tx,
  one_device,
  place,
  random_like,
)

from i2vgen_jax import sharding
from i2vgen_jax.models.unet import I2VGenUNet
from i2vgen_jax.training.state import state_from

UNET = I2VGenUNet(
  block_channels=(8, 16),
  layers_per_block=1,
  head_dim=8,
  input_heads=1,
  context_dim=WIDTH,
  norm_groups=4,
  image_grid=2,
)
LAYOUTS = [
  {"data": 8},
  {"fsdp": 8},
  {"data": 4, "fsdp": 2},
  {"data": 2, "frames": 4},
  {"data": 2, "fsdp": 2, "frames": 2},
]


@pytest.fixture(autouse=True)
def split_small_arrays(monkeypatch):
  monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 256)


def make_task(mesh):
  return make_denoising(mesh, UNET, text_dropout=0.1, image_dropout=0.1)


def random_params():
  """Not `init`, whose zero-initialised layers would hide what feeds them."""
  latents = jnp.zeros((1, 2, 4, 4, 4))
  conditions = {
    "fps": jnp.zeros(1),
    "image_latents": latents[:, 0],
    "image_embeds": jnp.zeros((1, WIDTH)),
    "text_context": jnp.zeros((1, 5, WIDTH)),
  }
  init = functools.partial(UNET.init, **conditions)
  return random_like(init, latents, jnp.zeros(1), scale=0.1)


def loss_on(mesh):
  task, batch = make_task(mesh), sharding.to_global(make_batch(0), mesh)
  params, frozen = place(random_params(), mesh), place(task.frozen, mesh)
  loss, _ = jax.jit(task.loss)(params, frozen, batch, jax.random.key(0))
  return float(loss)


def test_loss_on_all_three_axes():
  split = loss_on(sharding.make_mesh(data=2, fsdp=2, frames=2))
  assert split == pytest.approx(loss_on(one_device()), rel=1e-5)


def two_steps_on(mesh):
  """Losses, gradient norms and the weights after."""
  task, tx = make_task(mesh), make_tx(learning_rate=1e-3, num_steps=2)
  step, shardings = compiled_step(task, tx, mesh)
  state = state_from(random_params(), tx, shardings)
  frozen, numbers = place(task.frozen, mesh), []
  for i in range(2):
    batch = sharding.to_global(make_batch(8 * i), mesh)
    state, metrics = step(state, frozen, batch)
    numbers += [float(metrics["loss"]), float(metrics["grad_norm"])]
  return numbers, jax.device_get(state.params)


@pytest.mark.slow
def test_training_on_every_layout():
  expected, expected_params = two_steps_on(one_device())
  for layout in LAYOUTS:
    numbers, params = two_steps_on(sharding.make_mesh(**layout))
    np.testing.assert_allclose(numbers, expected, rtol=1e-4)
    # Adam's first steps have the size of the rate whatever the gradient, so
    # a gradient of rounding error alone may move a weight either way.
    far = [
      (np.abs(a - b) > 1e-4).mean()
      for a, b in zip(
        *map(jax.tree.leaves, (params, expected_params)), strict=True
      )
    ]
    assert np.mean(far) < 1e-3, layout
