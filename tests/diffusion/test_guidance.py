"""Guidance: the two branches, their order, and what leaves them unchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i2vgen_jax.diffusion.guidance import classifier_free
from i2vgen_jax.errors import InputError
from i2vgen_jax.types import Conditioning

ROWS, SHAPE = 2, (2, 3, 4, 5, 4)
T = jnp.array([7, 9])


def condition(value):
  return Conditioning(
    text_context=jnp.full((ROWS, 3, 6), value),
    fps=jnp.array([8.0, 16.0]),
  )


def inputs():
  draw = np.random.default_rng(0).standard_normal(SHAPE)
  return jnp.asarray(draw, jnp.float32)


class Network:
  """Linear in a text value and in fps; remembers the batches it was given."""

  def __init__(self):
    self.calls = []

  def __call__(self, xt, t, cond):
    self.calls.append((xt, t, cond))
    text = cond.text_context.mean(axis=(1, 2))[:, None, None, None, None]
    fps = cond.fps[:, None, None, None, None]
    return text * xt**2 + fps * jnp.sin(xt) + t[:, None, None, None, None]


def test_without_null_conditioning_the_network_runs_once():
  network, xt = Network(), inputs()
  guided = classifier_free(network, condition(0.3), None, 1.0)
  output = guided(xt, T)
  ((seen, _, cond),) = network.calls
  assert seen.shape == SHAPE and cond.text_context.shape[0] == ROWS
  np.testing.assert_array_equal(output, Network()(xt, T, condition(0.3)))


def test_one_call_with_the_unconditional_rows_first():
  network, xt = Network(), inputs()
  classifier_free(network, condition(0.3), condition(-0.2), 3.0)(xt, T)
  ((seen, t, cond),) = network.calls
  np.testing.assert_array_equal(seen, np.concatenate([xt, xt]))
  assert t.tolist() == [7, 9, 7, 9]
  np.testing.assert_allclose(cond.text_context[:, 0, 0], [-0.2, -0.2, 0.3, 0.3])
  assert cond.fps.tolist() == [8, 16, 8, 16]
  assert cond.image_embeds is None and cond.image_latents is None


def test_guidance_interpolates_and_extrapolates_linearly():
  xt = inputs()
  uncond, cond = (Network()(xt, T, condition(v)) for v in (-0.2, 0.3))

  def at(scale):
    network = Network()
    return classifier_free(network, condition(0.3), condition(-0.2), scale)(
      xt, T
    )

  np.testing.assert_allclose(at(0.0), uncond, rtol=1e-6)
  # 9 steps of the same length from the unconditional output.
  np.testing.assert_allclose(
    np.asarray(at(9.0), np.float64) - uncond,
    9 * (np.asarray(cond, np.float64) - uncond),
    atol=2e-4,
  )
  # Here the network is linear in the text, so guidance extrapolates it.
  np.testing.assert_allclose(
    at(9.0), Network()(xt, T, condition(-0.2 + 9 * 0.5)), rtol=1e-4, atol=1e-4
  )


def test_scale_may_be_traced():
  network, xt = Network(), inputs()

  @jax.jit
  def run(scale):
    return classifier_free(network, condition(0.3), condition(-0.2), scale)(
      xt, T
    )

  for scale in (1.0, 9.0):
    guided = classifier_free(Network(), condition(0.3), condition(-0.2), scale)
    np.testing.assert_allclose(run(scale), guided(xt, T), rtol=1e-5, atol=1e-5)
  assert len(network.calls) == 1


def test_guidance_between_equal_branches_changes_nothing():
  xt, cond = inputs(), condition(0.3)
  guided = classifier_free(Network(), cond, cond, 7.5, rescale=0.2)
  np.testing.assert_allclose(guided(xt, T), Network()(xt, T, cond), rtol=1e-5)


def test_full_rescale_has_the_deviation_of_the_conditional_output():
  xt = inputs()
  plain, half, full = (
    np.asarray(
      classifier_free(Network(), condition(0.3), condition(-0.2), 7.5, rescale)(
        xt, T
      )
    ).reshape(ROWS, -1)
    for rescale in (0.0, 0.5, 1.0)
  )
  cond = np.asarray(Network()(xt, T, condition(0.3))).reshape(ROWS, -1)
  assert np.all(plain.std(1) > 1.1 * cond.std(1))
  np.testing.assert_allclose(full.std(1), cond.std(1), rtol=1e-5)
  np.testing.assert_allclose(half, (plain + full) / 2, rtol=1e-5)
  # Every row by its own factor, shape unchanged.
  for row in range(ROWS):
    assert np.ptp(full[row] / plain[row]) < 1e-5


def test_low_precision_outputs_are_combined_in_float32():
  def bf16(xt, t, cond):
    return Network()(xt, t, cond).astype(jnp.bfloat16)

  guided = classifier_free(bf16, condition(0.3), condition(-0.2), 9.0)
  assert guided(inputs(), T).dtype == jnp.float32


def test_conditionings_of_different_variants_are_refused():
  other = Conditioning(fps=jnp.array([8.0, 16.0]))
  with pytest.raises(InputError, match="different members"):
    classifier_free(Network(), condition(0.3), other, 3.0)
