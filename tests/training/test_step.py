"""One step: the average, the guard, and the same result on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_standins import (
  VAE,
  ImageTower,
  TextTower,
  UNet,
  init_unet,
  make_batch,
  make_frozen,
)

from i2vgen_jax import sharding
from i2vgen_jax.diffusion.schedules import make_schedule
from i2vgen_jax.training.objectives import diffusion_objective
from i2vgen_jax.training.optimizer import make_optimizer
from i2vgen_jax.training.state import abstract_state, create_state, init_state
from i2vgen_jax.training.step import make_train_step, train_step

BATCH = make_batch(0, size=1)


def distance(params, frozen, batch, rng):
  """Half the squared distance of one weight from a target."""
  return 0.5 * jnp.square(params["w"] - frozen), {}


def run_plain(targets, ema_decay, tx=None):
  tx = tx or optax.sgd(0.5)
  state = create_state({"w": jnp.float32(0.0)}, tx)
  states, metrics = [state], []
  for target in targets:
    state, m = train_step(
      state,
      jnp.float32(target),
      BATCH,
      objective=distance,
      tx=tx,
      ema_decay=ema_decay,
      rng=jax.random.key(0),
    )
    states.append(state)
    metrics.append(m)
  return states, metrics


class TestAverage:
  def test_by_hand(self):
    # Rate 0.5 towards 8: 0, 4, 6, 7. The first two averages keep less than
    # the decay of 0.15: 1/10 of 0, then 0.15 each (2/11 and 3/12 are more).
    states, _ = run_plain([8, 8, 8], ema_decay=0.15)
    weights = [float(s.params["w"]) for s in states]
    assert weights == [0, 4, 6, 7]
    averages = [float(s.ema_params["w"]) for s in states]
    second = 0.15 * 3.6 + 0.85 * 6
    third = 0.15 * second + 0.85 * 7
    np.testing.assert_allclose(averages, [0, 3.6, second, third], rtol=1e-6)

  def test_long_runs_keep_the_decay(self):
    tx = optax.sgd(0.0)
    state = create_state({"w": jnp.float32(1.0)}, tx)
    state = type(state)(
      jnp.int32(10**6), state.params, {"w": jnp.float32(0.0)}, state.opt_state
    )
    state, _ = train_step(
      state,
      jnp.float32(0),
      BATCH,
      objective=distance,
      tx=tx,
      ema_decay=0.9999,
      rng=jax.random.key(0),
    )
    assert float(state.ema_params["w"]) == pytest.approx(1e-4, rel=1e-3)


class TestGuard:
  @pytest.mark.parametrize("bad", [np.nan, np.inf])
  def test_a_bad_step_changes_nothing_but_the_count(self, bad):
    states, metrics = run_plain([8, bad, 8], ema_decay=0.5, tx=optax.adam(0.5))
    assert [float(m["skipped"]) for m in metrics] == [0, 1, 0]
    assert [int(s.step) for s in states] == [0, 1, 2, 3]
    before, after = states[1], states[2]
    same = jax.tree.map(
      lambda a, b: bool((a == b).all()),
      (before.params, before.ema_params, before.opt_state),
      (after.params, after.ema_params, after.opt_state),
    )
    assert all(jax.tree.leaves(same))

  def test_the_run_goes_on_as_if_the_step_had_not_been(self):
    with_bad, _ = run_plain([8, np.nan, 8], ema_decay=0.0, tx=optax.adam(0.5))
    without, _ = run_plain([8, 8], ema_decay=0.0, tx=optax.adam(0.5))
    assert float(with_bad[-1].params["w"]) == float(without[-1].params["w"])

  def test_gradient_norm_is_reported(self):
    _, metrics = run_plain([3], ema_decay=0.5)
    assert float(metrics[0]["grad_norm"]) == 3.0
    assert float(metrics[0]["loss"]) == 4.5


# ---- Every mesh layout ----


def run_on(mesh, num_frames, tx):
  """Two steps of a stand-in denoiser; losses and the last state."""
  objective = diffusion_objective(
    unet=UNet(),
    vae=VAE(),
    text_encoder=TextTower(),
    image_encoder=ImageTower(),
    schedule=make_schedule("cosine", True),
    mesh=mesh,
    scaling_factor=0.5,
    encode_chunk=2,
    text_dropout=0.3,
    image_dropout=0.3,
    prediction_type="v",
    noise_offset=0.1,
    max_timestep=None,
    timestep_shift=1.0,
  )
  abstract = abstract_state(init_unet(UNet()), tx, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  step = make_train_step(
    objective,
    tx,
    ema_decay=0.9,
    seed=0,
    shardings=shardings,
    metrics_sharding=sharding.replicated(mesh),
  )
  frozen = make_frozen()
  frozen = jax.device_put(frozen, sharding.param_shardings(frozen, mesh))
  state = init_state(init_unet(UNet()), tx, 0, shardings)
  losses = []
  for i in range(2):
    batch = make_batch(8 * i, num_frames=num_frames)
    state, metrics = step(state, frozen, sharding.to_global(batch, mesh))
    losses.append(float(metrics["loss"]))
  return losses, state


@pytest.fixture(scope="module")
def alone():
  """The same two steps on one device, per length of the clips."""
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  tx = make_optimizer(learning_rate=1e-2, num_steps=2, weight_decay=0.1)
  return {n: run_on(mesh, n, tx) for n in (1, 4)}


LAYOUTS = [
  {"data": 8},
  {"fsdp": 8},
  {"data": 4, "fsdp": 2},
  {"data": 2, "frames": 4},
  {"data": 2, "fsdp": 2, "frames": 2},
]


@pytest.mark.parametrize(
  ("layout", "num_frames"),
  [(layout, 4) for layout in LAYOUTS] + [(layout, 1) for layout in LAYOUTS[3:]],
  ids=str,
)
def test_layout_gives_what_one_device_gives(
  alone, layout, num_frames, monkeypatch
):
  # The stand-in's kernels are small: split all that divide.
  monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 1)
  tx = make_optimizer(learning_rate=1e-2, num_steps=2, weight_decay=0.1)
  mesh = sharding.make_mesh(**layout)
  losses, state = run_on(mesh, num_frames, tx)

  expected, one = alone[num_frames]
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
    (state.params, state.ema_params),
    (one.params, one.ema_params),
  )
  split = [
    not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state)
  ]
  # Params, average and both moments of the kernels.
  assert sum(split) >= 4 * 3 if mesh.shape["fsdp"] > 1 else not any(split)


def test_the_old_state_is_given_up():
  mesh = sharding.make_mesh()
  tx = optax.adam(0.1)
  params = {"kernel": jnp.ones((64, 64))}
  abstract = abstract_state(lambda _: params, tx, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  step = make_train_step(
    lambda p, *_: (jnp.square(p["kernel"]).sum(), {}),
    tx,
    ema_decay=0.9,
    seed=0,
    shardings=shardings,
    metrics_sharding=sharding.replicated(mesh),
  )
  state = init_state(lambda _: params, tx, 0, shardings)
  batch = sharding.to_global(make_batch(0), mesh)
  step(state, (), batch)
  assert state.params["kernel"].is_deleted()
  assert state.opt_state[0].mu["kernel"].is_deleted()
