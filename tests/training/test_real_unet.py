"""The real U-Net on every mesh layout, at toy widths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_standins import (
  VAE,
  WIDTH,
  ImageTower,
  TextTower,
  make_batch,
  make_frozen,
)

from i2vgen_jax import sharding
from i2vgen_jax.diffusion.schedules import make_schedule
from i2vgen_jax.models.unet import I2VGenUNet
from i2vgen_jax.training.objectives import diffusion_objective
from i2vgen_jax.training.optimizer import make_optimizer
from i2vgen_jax.training.state import abstract_state, state_from
from i2vgen_jax.training.step import make_train_step

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


def one_device():
  return sharding.make_mesh(devices=jax.devices()[:1])


def init(rng):
  latents = jnp.zeros((1, 2, 4, 4, 4))
  return UNET.init(
    rng,
    latents,
    jnp.zeros(1),
    fps=jnp.zeros(1),
    image_latents=latents[:, 0],
    image_embeds=jnp.zeros((1, WIDTH)),
    text_context=jnp.zeros((1, 5, WIDTH)),
  )["params"]


def random_params():
  """Not `init`: its zero-initialised layers would hide what feeds them."""
  shapes = jax.eval_shape(init, jax.random.key(0))
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda s: rng.normal(0, 0.1, s.shape).astype(np.float32), shapes
  )


def objective_on(mesh):
  return diffusion_objective(
    unet=UNET,
    vae=VAE(),
    text_encoder=TextTower(),
    image_encoder=ImageTower(),
    schedule=make_schedule("cosine", True),
    mesh=mesh,
    scaling_factor=0.5,
    encode_chunk=4,
    text_dropout=0.1,
    image_dropout=0.1,
    prediction_type="v",
    noise_offset=0.1,
    max_timestep=None,
    timestep_shift=1.0,
  )


def place(tree, mesh):
  return jax.device_put(tree, sharding.param_shardings(tree, mesh))


def loss_on(mesh):
  batch = sharding.to_global(make_batch(0), mesh)
  loss, _ = jax.jit(objective_on(mesh))(
    place(random_params(), mesh),
    place(make_frozen(), mesh),
    batch,
    jax.random.key(0),
  )
  return float(loss)


def test_loss_on_all_three_axes():
  split = loss_on(sharding.make_mesh(data=2, fsdp=2, frames=2))
  assert split == pytest.approx(loss_on(one_device()), rel=1e-5)


def two_steps_on(mesh):
  """Losses, gradient norms and the weights after."""
  tx = make_optimizer(learning_rate=1e-3, num_steps=2)
  abstract = abstract_state(init, tx, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  step = make_train_step(
    objective_on(mesh),
    tx,
    ema_decay=0.9,
    seed=0,
    shardings=shardings,
    metrics_sharding=sharding.replicated(mesh),
  )
  state = state_from(random_params(), tx, shardings)
  frozen, numbers = place(make_frozen(), mesh), []
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
