"""Attention by every route, against all scores at once in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_testing import draw

from i2vgen_jax import sharding
from i2vgen_jax.kernels import attention, flash_attention
from i2vgen_jax.kernels.attention import dot_product_attention
from i2vgen_jax.kernels.frame_attention import frame_attention


def expected(q, k, v, num_heads, causal=False):
  """Float64, [*b n c] with keys of the same leading axes."""

  def heads(x):
    x = np.float64(x).reshape(*x.shape[:-1], num_heads, -1)
    return np.moveaxis(x, -2, -3)

  q, k, v = heads(q), heads(k), heads(v)
  scores = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
  if causal:
    scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  y = np.moveaxis(weights / weights.sum(-1, keepdims=True) @ v, -3, -2)
  return y.reshape(*y.shape[:-2], -1)


def gradients(fn, *args):
  """Of a sum of all results with fixed random weights."""
  weight = draw(*jax.eval_shape(fn, *args).shape, seed=9)

  def loss(*args):
    return (fn(*args) * weight).sum()

  return jax.jit(jax.grad(loss, range(len(args))))(*args)


def assert_near(actual, wanted, rtol):
  for x, y in zip(actual, wanted, strict=True):
    np.testing.assert_allclose(x, y, atol=rtol * np.abs(y).max())


# Tokens of the levels at 1280x704 and 1280x720 by factors that keep what is odd
# about them, 13x7, and lengths below, at and above a block of 128 lanes.
LENGTHS = [1, 91, 127, 128, 129, 220, 880, 900, 920]


@pytest.fixture
def small_blocks(monkeypatch):
  monkeypatch.setattr(attention, "MIN_FLASH_PAIRS", 0)
  sizes = {"QUERIES": 256, "STEP": 384}
  sizes |= {"SPLASH_QUERIES": 256, "SPLASH_KEYS": 256, "SPLASH_STEP": 128}
  for name, size in sizes.items():
    monkeypatch.setattr(flash_attention, name, size)


@pytest.fixture(params=["flash", "splash"])
def either_kernel(request, monkeypatch):
  """The kernel that holds all keys of a head, and that for more keys."""
  if request.param == "splash":
    monkeypatch.setattr(flash_attention, "MAX_KEY_BYTES", 0)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("heads", [1, 2])
def test_flash_attention_at_odd_lengths(
  tpu_kernels, small_blocks, either_kernel, length, heads
):
  q, k, v = (draw(2, length, heads * 64, seed=i) for i in range(3))
  y = jax.jit(dot_product_attention, static_argnums=3)(q, k, v, heads)
  np.testing.assert_allclose(y, expected(q, k, v, heads), atol=2e-5)


@pytest.mark.parametrize("tokens", [(200, 77), (130, 145), (91, 400)])
def test_flash_attention_gradients(tpu_kernels, small_blocks, tokens):
  n, m = tokens
  args = (draw(1, n, 64), draw(1, m, 64, seed=1), draw(1, m, 64, seed=2))
  found = gradients(lambda *args: dot_product_attention(*args, 1), *args)

  def plain(*args):
    args = [x[:, :, None] for x in args]
    return jax.nn.dot_product_attention(*args)[:, :, 0]

  assert_near(found, gradients(plain, *args), 1e-4)


def test_flash_attention_of_frames_that_share_their_keys(
  tpu_kernels, small_blocks
):
  q = draw(2, 3, 91, 128)
  k, v = draw(2, 145, 128, seed=1), draw(2, 145, 128, seed=2)
  y = dot_product_attention(q, k, v, 2)
  for frame in range(3):
    np.testing.assert_allclose(
      y[:, frame], expected(q[:, frame], k, v, 2), atol=2e-5
    )


def test_flash_attention_of_a_wide_head(
  tpu_kernels, small_blocks, either_kernel
):
  """One head of 512 channels, as in the autoencoder."""
  q, k, v = (draw(1, 300, 512, seed=i) for i in range(3))
  y = dot_product_attention(q, k, v, 1)
  np.testing.assert_allclose(y, expected(q, k, v, 1), atol=2e-5)


def test_flash_attention_of_large_and_small_scores(tpu_kernels, small_blocks):
  """All scores of the first keys are far below those of the last."""
  q, k, v = (draw(1, 500, 64, seed=i) for i in range(3))
  q = np.abs(q)
  k = np.abs(k) * np.linspace(-30, 30, 500)[:, None].astype(np.float32)
  for keys in (k, -k):
    y = dot_product_attention(q, keys, v, 1)
    np.testing.assert_allclose(y, expected(q, keys, v, 1), atol=1e-4)


@pytest.mark.parametrize("unit", [128, 256])
@pytest.mark.parametrize("most", [512, 2048])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_block_pads_little(length, most, unit):
  block = flash_attention.block_of(length, most, unit)
  assert block % unit == 0
  assert block <= most
  padded = -(-length // block) * block
  assert padded - length < max(unit, 0.2 * length)


@pytest.mark.parametrize(
  ("length", "block"),
  [(14080, 2816), (14400, 2560), (3520, 1792), (1792, 1792), (880, 1024)],
)
def test_blocks_of_keys_at_real_lengths(length, block):
  """At most 7 % of the keys are padding at the levels that cost most."""
  assert flash_attention.splash_blocks(length, length, 64)[1] == block


@pytest.mark.parametrize("length", [1, 2, 91, 220])
def test_blocks_of_queries(monkeypatch, length):
  """As on a CPU, where the scores of all queries would not fit."""
  q, k, v = (draw(2, 3, length, 16, seed=i) for i in range(3))
  args = (lambda *args: dot_product_attention(*args, 2), q, k, v)
  whole = args[0](q, k, v), gradients(*args)
  np.testing.assert_allclose(whole[0], expected(q, k, v, 2), atol=1e-5)
  monkeypatch.setattr(attention, "MAX_SCORES", 7 * length)
  assert "scan" in str(jax.make_jaxpr(lambda: args[0](q, k, v))())
  np.testing.assert_allclose(args[0](q, k, v), whole[0], atol=1e-5)
  assert_near(gradients(*args), whole[1], 1e-5)


def test_sequences_in_blocks_stay_on_their_device(monkeypatch):
  """One block after another of all devices' sequences would be gathered."""
  monkeypatch.setattr(attention, "MAX_SCORES", 1000)
  mesh = sharding.make_mesh(data=2, frames=2, devices=jax.devices()[:4])
  q = draw(4, 6, 30, 16)
  k, v = (draw(4, 11, 16, seed=i) for i in (1, 2))

  def loss(*args):
    return (dot_product_attention(*args, 2) ** 2).sum()

  wanted = jax.grad(loss)(q, k, v)
  splits = [
    sharding.frames_sharding(mesh, 6),
    *[sharding.rows_sharding(mesh)] * 2,
  ]
  args = [*map(jax.device_put, (q, k, v), splits)]
  with jax.set_mesh(mesh):
    program = jax.jit(jax.grad(loss)).lower(*args).compile()
  assert "while" in program.as_text()
  assert not re.search(r" (all-gather|all-to-all)\(", program.as_text())
  assert_near([program(*args)], [wanted], 1e-5)


def test_blocks_of_queries_hold_few_scores():
  """At the first level of the released U-Net at 1280x704: 120 GB otherwise."""
  shape = jax.ShapeDtypeStruct((2, 16, 14080, 320), jnp.float32)
  fn = jax.jit(lambda x: dot_product_attention(x, x, x, 5))
  memory = fn.lower(shape).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 8 * 2**30


@pytest.mark.parametrize("tokens", [(6, 4), (6, 5), (7, 4), (91, 145)])
def test_attention_padded_to_even_lengths(tokens):
  # cuDNN needs a GPU; this is the plain implementation with the same padding.
  n, m = tokens
  args = [draw(2, 3, c, 8, seed=i) for i, c in enumerate((n, m, m))]

  def padded(*args):
    return attention._of_even_lengths(*args, implementation="xla")

  plain = attention._plain
  np.testing.assert_allclose(padded(*args), plain(*args), atol=1e-6)
  assert_near(gradients(padded, *args), gradients(plain, *args), 1e-5)


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 16, 17, 32])
def test_frame_attention(tpu_kernels, frames):
  q, k, v = (draw(2, frames, 13 * 7, 16, seed=i) for i in range(3))
  y = jax.jit(frame_attention, static_argnums=3)(q, k, v, 2)
  swapped = [x.swapaxes(1, 2) for x in (q, k, v)]
  np.testing.assert_allclose(y, expected(*swapped, 2).swapaxes(1, 2), atol=1e-5)


def test_frame_attention_gradients(tpu_kernels, monkeypatch):
  args = [draw(1, 5, 12, 16, seed=i) for i in range(3)]
  found = gradients(lambda *args: frame_attention(*args, 2), *args)

  def plain(*args):
    args = [x[0].swapaxes(0, 1).reshape(12, 5, 2, 8) for x in args]
    y = jax.nn.dot_product_attention(*args)
    return y.reshape(12, 5, 16).swapaxes(0, 1)[None]

  assert_near(found, gradients(plain, *args), 1e-5)


def test_causal_attention():
  q, k, v = (draw(2, 77, 16, seed=i) for i in range(3))
  y = dot_product_attention(q, k, v, 2, causal=True)
  np.testing.assert_allclose(y, expected(q, k, v, 2, causal=True), atol=1e-5)
