"""One step: the moving average, bad gradients, the same result on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_standins import (
  SmallTask,
  UNet,
  compiled_step,
  make_batch,
  make_denoising,
  make_tx,
  one_device,
  place,
)

from i2vgen_jax import sharding
from i2vgen_jax.training.state import create_state, init_state
from i2vgen_jax.training.step import train_step

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
      loss_fn=distance,
      tx=tx,
      ema_decay=ema_decay,
      seed=0,
    )
    states.append(state)
    metrics.append(m)
  return states, metrics


class TestAverage:
  def test_three_updates_by_hand(self):
    # Rate 0.5 towards 8: 0, 4, 6, 7. The first two averages keep less than
    # the decay of 0.15: 1/10 of 0, then 0.15 each (2/11 and 3/12 are more).
    states, _ = run_plain([8, 8, 8], ema_decay=0.15)
    weights = [float(s.params["w"]) for s in states]
    assert weights == [0, 4, 6, 7]
    averages = [float(s.ema_params["w"]) for s in states]
    second = 0.15 * 3.6 + 0.85 * 6
    third = 0.15 * second + 0.85 * 7
    np.testing.assert_allclose(averages, [0, 3.6, second, third], rtol=1e-6)

  def test_long_runs_have_the_constant_decay(self):
    tx = optax.sgd(0.0)
    state = create_state({"w": jnp.float32(1.0)}, tx)
    state = type(state)(
      jnp.int32(10**6), state.params, {"w": jnp.float32(0.0)}, state.opt_state
    )
    state, _ = train_step(
      state,
      jnp.float32(0),
      BATCH,
      loss_fn=distance,
      tx=tx,
      ema_decay=0.9999,
      seed=0,
    )
    assert float(state.ema_params["w"]) == pytest.approx(1e-4, rel=1e-3)


class TestGuard:
  @pytest.mark.parametrize("bad", [np.nan, np.inf])
  def test_a_bad_step_changes_only_the_count(self, bad):
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

  def test_later_steps_are_as_without_the_bad_step(self):
    with_bad, _ = run_plain([8, np.nan, 8], ema_decay=0.0, tx=optax.adam(0.5))
    without, _ = run_plain([8, 8], ema_decay=0.0, tx=optax.adam(0.5))
    assert float(with_bad[-1].params["w"]) == float(without[-1].params["w"])

  def test_gradient_norm_and_loss_are_logged(self):
    _, metrics = run_plain([3], ema_decay=0.5)
    assert float(metrics[0]["grad_norm"]) == 3.0
    assert float(metrics[0]["loss"]) == 4.5


# ---- Every mesh layout ----


def run_on(mesh, num_frames, unet=None, **settings):
  """Two steps of a stand-in denoiser; losses and the last state."""
  task = make_denoising(mesh, unet)
  tx = make_tx(learning_rate=1e-2, num_steps=2, weight_decay=0.1)
  step, shardings = compiled_step(task, tx, mesh, **settings)
  frozen = place(task.frozen, mesh)
  state = init_state(task.init_params, tx, 0, shardings)
  losses = []
  for i in range(2):
    batch = make_batch(8 * i, num_frames=num_frames)
    state, metrics = step(state, frozen, sharding.to_global(batch, mesh))
    losses.append(float(metrics["loss"]))
  return losses, state


@pytest.fixture(scope="module")
def alone():
  """The same two steps on one device, by the number of frames."""
  return {n: run_on(one_device(), n) for n in (1, 4)}


def check_same(run, expected):
  """The state of a run, whose losses and weights are those of another."""
  (losses, state), (expected_losses, one) = run, expected
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
    (state.params, state.ema_params),
    (one.params, one.ema_params),
  )
  return state


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
def test_every_layout_matches_one_device(
  alone, layout, num_frames, monkeypatch
):
  # The stand-in's kernels are small; split all that can be split.
  monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 1)
  mesh = sharding.make_mesh(**layout)
  state = check_same(run_on(mesh, num_frames), alone[num_frames])
  split = [
    not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state)
  ]
  # Params, average and both moments of the kernels.
  assert sum(split) >= 4 * 3 if mesh.shape["fsdp"] > 1 else not any(split)


def test_kernels_that_are_split_twice_match_one_device(alone, monkeypatch):
  monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 1)
  monkeypatch.setattr(sharding, "FSDP_WIDTH", 2)
  mesh = sharding.make_mesh(fsdp=8)
  state = check_same(run_on(mesh, 4), alone[4])
  kernel = state.params["temporal_in"]["kernel"]
  assert kernel.shape == (16, 16)
  assert kernel.addressable_shards[0].data.shape == (8, 4)


def test_two_slices_match_one_device(alone, monkeypatch):
  devices = jax.devices()
  slices = [devices[::2], devices[1::2]]
  monkeypatch.setattr(sharding, "_slices", lambda _: slices)
  monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 1)
  mesh = sharding.make_mesh(fsdp=2, frames=2)
  losses, _ = run_on(mesh, 4)
  np.testing.assert_allclose(losses, alone[4][0], rtol=1e-5)


@pytest.mark.parametrize(("parts", "devices"), [(2, 1), (8, 1), (4, 2)])
def test_gradients_of_parts_add_up_to_those_of_the_batch(parts, devices):
  # The masks of dropout are those of a whole batch.
  unet = UNet(dropout=0.0)
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  whole = run_on(one_device(), 4, unet)
  check_same(run_on(mesh, 4, unet, accumulate=parts), whole)


def test_the_buffers_of_the_old_state_are_donated():
  mesh = sharding.make_mesh()
  tx = optax.adam(0.1)
  task = SmallTask(
    init=lambda _: {"kernel": jnp.ones((64, 64))},
    loss_fn=lambda p, *_: (jnp.square(p["kernel"]).sum(), {}),
  )
  step, shardings = compiled_step(task, tx, mesh)
  state = init_state(task.init_params, tx, 0, shardings)
  step(state, (), sharding.to_global(make_batch(0), mesh))
  assert state.params["kernel"].is_deleted()
  assert state.opt_state[0].mu["kernel"].is_deleted()
