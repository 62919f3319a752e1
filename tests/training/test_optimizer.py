"""The parts of the optimizer, by the updates that they make."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_standins import make_config, make_tx

from i2vgen_jax.errors import InputError
from i2vgen_jax.models.unet import I2VGenUNet
from i2vgen_jax.training.optimizer import (
  SPATIAL_PATHS,
  learning_rate_schedule,
  path_mask,
)


def first_update(params, grads, **settings):
  tx = make_tx(learning_rate=0.1, num_steps=10, **settings)
  return tx.update(grads, tx.init(params), params)[0]


def schedule(learning_rate, num_steps, warmup_steps, decay):
  config = make_config(
    learning_rate=learning_rate,
    num_steps=num_steps,
    warmup_steps=warmup_steps,
    decay=decay,
  )
  return learning_rate_schedule(config.train)


class TestSchedule:
  def test_warmup_is_linear_and_then_constant(self):
    rate = schedule(0.8, 100, 4, "constant")
    rates = [float(rate(i)) for i in (0, 1, 2, 3, 4, 50, 99)]
    np.testing.assert_allclose(rates, [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8])

  def test_cosine_decays_to_half_and_to_zero(self):
    rate = schedule(0.8, 110, 10, "cosine")
    rates = [float(rate(i)) for i in (10, 60, 110)]
    np.testing.assert_allclose(rates, [0.8, 0.4, 0.0], atol=1e-7)

  def test_no_warmup_starts_at_the_full_rate(self):
    assert float(schedule(0.8, 5, 0, "constant")(0)) == (pytest.approx(0.8))

  def test_bad_settings(self):
    with pytest.raises(InputError, match="unknown decay 'cosin'"):
      schedule(0.1, 10, 0, "cosin")
    with pytest.raises(InputError, match="warm-up of 11 steps in a run of 10"):
      schedule(0.1, 10, 11, "constant")


class TestUpdates:
  def test_weight_decay_applies_to_kernels_only(self):
    params = {
      "dense": {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)},
      "norm": {"scale": jnp.full(2, 3.0)},
    }
    zeros = jax.tree.map(jnp.zeros_like, params)
    update = first_update(params, zeros, weight_decay=0.5)
    np.testing.assert_allclose(update["dense"]["kernel"], -0.1 * 0.5 * 3.0)
    np.testing.assert_array_equal(update["dense"]["bias"], 0)
    np.testing.assert_array_equal(update["norm"]["scale"], 0)

  def test_spatial_updates_are_scaled_at_any_gradient(self):
    params = {
      "down_0_0": {
        "resnet": {"kernel": jnp.ones(3)},
        "temporal_conv": {"kernel": jnp.ones(3)},
      }
    }
    grads = jax.tree.map(lambda p: jnp.array([1.0, -2.0, 0.3]), params)
    update = first_update(params, grads, spatial_grad_scale=0.2)["down_0_0"]
    np.testing.assert_allclose(
      update["resnet"]["kernel"],
      0.2 * update["temporal_conv"]["kernel"],
      rtol=1e-6,
    )
    # Adam's first step is the rate, in the direction of the sign.
    np.testing.assert_allclose(
      update["temporal_conv"]["kernel"], [-0.1, 0.1, -0.1], rtol=1e-5
    )

  def test_clipping_bounds_the_global_norm(self):
    # Adam is invariant to the scale of one gradient, not to the ratio of two.
    params = {"a": jnp.zeros(2)}
    grads = [{"a": jnp.array([30.0, 40.0])}, {"a": jnp.array([0.3, 0.4])}]

    def moment(clip):
      tx = make_tx(learning_rate=1.0, num_steps=9, grad_clip=clip)
      state = tx.init(params)
      for grad in grads:
        _, state = tx.update(grad, state, params)
      return optax.tree_utils.tree_get(state, "mu")["a"]

    # The first moment is 0.9 of the first and 0.1 of the second.
    np.testing.assert_allclose(
      moment(None), [0.9 * 3 + 0.03, 0.9 * 4 + 0.04], rtol=1e-5
    )
    np.testing.assert_allclose(
      moment(1.0), [0.9 * 0.06 + 0.03, 0.9 * 0.08 + 0.04], rtol=1e-5
    )


def test_spatial_paths_are_those_listed_by_the_public_code():
  """It lists 863,871,684 of the 1,420,469,224 weights of variant (c)."""

  def init():
    latents = jnp.zeros((1, 2, 8, 8, 4))
    return I2VGenUNet().init(
      jax.random.key(0),
      latents,
      jnp.zeros(1),
      fps=jnp.zeros(1),
      image_latents=latents[:, 0],
      image_embeds=jnp.zeros((1, 1024)),
      text_context=jnp.zeros((1, 77, 1024)),
    )["params"]

  params = jax.eval_shape(init)
  listed = path_mask(params, SPATIAL_PATHS)
  sizes = jax.tree.map(lambda p, hit: p.size * hit, params, listed)
  assert sum(jax.tree.leaves(sizes)) == 863_871_684


def test_beta2_is_the_second_moment_decay():
  """With β2 = 0 the first, large gradient does not affect the second update."""
  params, large, small = ({"w": jnp.full(1, x)} for x in (0.0, 10.0, 1.0))

  def second_update(beta2):
    tx = make_tx(learning_rate=1.0, num_steps=9, beta2=beta2)
    _, state = tx.update(large, tx.init(params), params)
    return float(tx.update(small, state, params)[0]["w"][0])

  # The first moment, bias-corrected, is 0.1 * (0.9 * 10 + 1) / 0.19.
  mean = (0.09 * 10 + 0.1) / 0.19
  assert second_update(0.0) == pytest.approx(-mean, rel=1e-4)
  assert second_update(0.5) == pytest.approx(-mean / np.sqrt(34), rel=1e-4)


class TestMuon:
  PARAMS: ClassVar = {
    "conv": {"kernel": jnp.zeros((3, 3, 4, 8)), "bias": jnp.zeros(8)},
    "dense": {"kernel": jnp.zeros((6, 4))},
  }

  def update(self, **settings):
    keys = iter(jax.random.split(jax.random.key(0), 3))
    grads = jax.tree.map(
      lambda leaf: jax.random.normal(next(keys), leaf.shape), self.PARAMS
    )
    return first_update(self.PARAMS, grads, optimizer="muon", **settings)

  def test_kernels_are_orthogonal_and_as_large_as_those_of_adamw(self):
    update = self.update()
    for name in ("conv", "dense"):
      kernel = np.asarray(update[name]["kernel"])
      matrix = kernel.reshape(-1, kernel.shape[-1])
      values = np.linalg.svd(matrix, compute_uv=False)
      assert values.max() / values.min() < 2
      # As in Liu et al. 2025: 0.2 of the rate for each element.
      assert np.sqrt((matrix**2).mean()) == pytest.approx(0.02, rel=0.3)

  def test_other_parameters_are_left_to_adam(self):
    """With Nesterov momentum: a first step of 1.4737 times the rate."""
    bias = np.asarray(self.update()["conv"]["bias"])
    np.testing.assert_allclose(np.abs(bias), 0.14737, rtol=1e-4)

  def test_weight_decay_applies_to_kernels_only(self):
    params = jax.tree.map(jnp.ones_like, self.PARAMS)
    zeros = jax.tree.map(jnp.zeros_like, params)
    update = first_update(params, zeros, optimizer="muon", weight_decay=0.5)
    np.testing.assert_allclose(update["dense"]["kernel"], -0.05, rtol=1e-5)
    np.testing.assert_array_equal(update["conv"]["bias"], 0)


def test_an_unknown_optimizer_is_named():
  with pytest.raises(InputError, match="unknown optimizer 'lion'"):
    make_tx(optimizer="lion")
