"""Paths of layers, sums of estimates, and what is kept of a compilation."""

import jax
import jax.numpy as jnp
import pytest

from launch.planning import estimate as estimates
from launch.planning.estimate import Estimate, estimate, layer_of


@pytest.mark.parametrize(
  ("path", "layer"),
  [
    (
      "jit(f)/transpose(jvp(I2VGenUNet))/I2VGenUNet._trunk/down_0_0/resnet",
      "I2VGenUNet/down_0_0/resnet",
    ),
    (
      "jit(f)/I2VGenUNet/up_0_0/checkpoint/rematted_computation/conv_1",
      "I2VGenUNet/up_0_0/conv_1",
    ),
    ("jit(f)/AutoencoderKL.decode/decoder/while/body", "AutoencoderKL/decoder"),
    ("jit(f)/Net/temporal_conv/conv_1.in_blocks", "Net/temporal_conv/conv_1"),
    ("params['vae']['kernel']", ""),
    ("", ""),
  ],
)
def test_layers_are_the_modules_of_a_path(path, layer):
  assert layer_of(path) == layer


def test_estimates_add_up():
  one = Estimate({"a/x": 1.0, "b": 2.0}, 0.5, {"b": 10}, 100, 7)
  both = one + Estimate({"b": 3.0}, 0.25, {"b": 1}, 50, 8, fits=False)
  assert both.seconds == {"a/x": 1.0, "b": 5.0}
  assert (both.collectives, both.flops) == (0.75, {"b": 11})
  # One after another: the memory is that of the larger.
  assert (both.temporaries, both.results, both.fits) == (100, 8, False)
  assert one.under("net/up").seconds == {"net/up/x": 1.0, "net/up": 2.0}


@pytest.fixture
def traced(mesh):
  x = jax.ShapeDtypeStruct(
    (256, 256), jnp.bfloat16, sharding=jax.NamedSharding(mesh, jax.P())
  )
  with jax.set_mesh(mesh):
    return jax.jit(lambda a, b: jnp.tanh(a @ b)).trace(x, x)


def test_a_product_is_counted_and_timed(traced):
  found = estimate(traced, "v5e:1x1")
  assert found.flops == {"": 2 * 256**3}
  assert found.fits and found.collectives == 0
  # No faster than the chip, and not a thousand times slower.
  ideal = 2 * 256**3 / 197e12
  assert ideal < sum(found.seconds.values()) < 1000 * ideal


def test_what_was_compiled_is_kept(traced, monkeypatch):
  first = estimate(traced, "v5e:1x1")

  def refuse(*_):
    raise AssertionError("compiled again")

  monkeypatch.setattr(estimates, "_compile", refuse)
  assert estimate(traced, "v5e:1x1") == first
  with pytest.raises(AssertionError, match="compiled again"):
    estimate(traced, "v6e:1x1")
