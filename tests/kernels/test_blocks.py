"""Networks with the kernels of TPUs against the same networks without."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_testing import draw, equations

from i2vgen_jax import remat, sharding
from i2vgen_jax.kernels import blocks
from i2vgen_jax.kernels.blocks import on_blocks
from i2vgen_jax.kernels.group_norm import group_norm_factors
from i2vgen_jax.models.resnet import TemporalConvBlock
from i2vgen_jax.models.unet import SpaceTimeBlock
from i2vgen_jax.models.vae import AutoencoderKL

BLOCK = SpaceTimeBlock(16, head_dim=8, norm_groups=4, dropout=0.0)


def feed(frames, height, width, batch=2):
  clips = draw(batch, frames, height, width, 16)
  return clips, draw(batch, 12, seed=1), draw(batch, 7, 20, seed=2)


def forward(params, x, *rest):
  return BLOCK.apply({"params": params}, x, *rest, True)


def gradients(params, x, *rest):
  def loss(params, x):
    y = forward(params, x, *rest)
    return (y * draw(*y.shape, seed=9)).sum()

  return jax.grad(loss, argnums=(0, 1))(params, x)


def assert_same(actual, wanted, rtol=2e-5):
  leaves = jax.tree.leaves_with_path(wanted)
  for (path, y), x in zip(leaves, jax.tree.leaves(actual), strict=True):
    np.testing.assert_allclose(
      x, y, atol=rtol * max(np.abs(y).max(), 1), err_msg=str(path)
    )


@pytest.fixture
def check(random_params, request):
  """Compares a function of params and inputs with and without kernels."""

  def run(fn, *args):
    params = random_params(BLOCK, *args, deterministic=True)
    wanted = jax.jit(fn)(params, *args)
    request.getfixturevalue("tpu_kernels")
    found = jax.jit(fn)(params, *args)
    assert "on_blocks" in str(jax.make_jaxpr(fn)(params, *args))
    assert_same(found, wanted)

  return run


# Frames, height and width.
SHAPES = [
  *[(frames, 3, 5) for frames in (1, 2, 3, 5, 16, 17, 32)],
  *[(2, *size) for size in ((13, 7), (22, 40), (8, 8))],
  # Level 0 at 1280x704 and 1280x720.
  *[(1, *size) for size in ((88, 160), (90, 160))],
]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_block_of_the_unet(check, shape):
  check(forward, *feed(*shape))


def test_gradients_of_a_block_of_the_unet(check):
  check(gradients, *feed(5, 3, 5))


@pytest.mark.parametrize("size", [(4, 6), (3, 5)])
@pytest.mark.parametrize("layout", [(2, 1, 4), (1, 2, 2)])
def test_a_block_of_the_unet_on_a_mesh(check, layout, size):
  devices = jax.devices()[: np.prod(layout)]
  mesh = sharding.make_mesh(*layout, devices=devices)
  clips, *rest = feed(4, *size, batch=4)
  clips = jax.device_put(clips, sharding.frames_sharding(mesh, 4))
  with jax.set_mesh(mesh):
    check(forward, clips, *rest)


@pytest.mark.parametrize("layout", [(2, 1, 2), (1, 2, 2), (1, 1, 4)])
def test_gradients_of_a_block_of_the_unet_on_a_mesh(
  random_params, request, layout
):
  clips, *rest = feed(4, 3, 5, batch=4)
  params = random_params(BLOCK, clips, *rest, deterministic=True)
  wanted = jax.jit(gradients)(params, clips, *rest)
  devices = jax.devices()[: np.prod(layout)]
  mesh = sharding.make_mesh(*layout, devices=devices)
  clips = jax.device_put(clips, sharding.frames_sharding(mesh, 4))
  with jax.set_mesh(mesh):
    assert_same(jax.jit(gradients)(params, clips, *rest), wanted)
    request.getfixturevalue("tpu_kernels")
    assert_same(jax.jit(gradients)(params, clips, *rest), wanted)


def test_large_weights_are_differentiated_by_the_compiler(
  tpu_kernels, monkeypatch
):
  def multiply(params, x):
    return blocks.matrix_product(x, params["w"])

  def loss(params, x):
    return on_blocks(multiply, params, (x,), mixes_frames=False).sum()

  def count():
    args = {"w": draw(8, 8)}, draw(1, 2, 16, 8)
    found = equations(jax.make_jaxpr(jax.grad(loss, (0, 1)))(*args).jaxpr)
    return sum(e.primitive.name == "pallas_call" for e in found)

  # One forward and one backward.
  assert count() == 2
  monkeypatch.setattr(blocks, "MAX_BACKWARD_BYTES", 0)
  assert count() == 0
  with remat.of_layers("layers"):
    # The backward pass computes the layer again.
    assert count() == 1


@pytest.mark.parametrize("most", ["MAX_BACKWARD_BYTES", "MAX_WEIGHT_BYTES"])
def test_wide_layers_that_are_computed_again_have_the_same_gradients(
  tpu_kernels, monkeypatch, most
):
  monkeypatch.setattr(blocks, most, 0)

  def layer(params, x):
    return jnp.tanh(blocks.matrix_product(x, params["w"]))

  def gradients():
    def loss(params, x):
      return (on_blocks(layer, params, (x,), mixes_frames=False) ** 2).sum()

    return jax.grad(loss, (0, 1))({"w": draw(8, 8)}, draw(1, 2, 16, 8))

  kept = gradients()
  with remat.of_layers("layers"):
    again = gradients()
  for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(kept), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4)


def test_devices_exchange_parts_of_the_frames(random_params):
  """Layers over time get all frames of some pixels, and gather no clips."""
  block = TemporalConvBlock(norm_groups=4, dropout=0.0)
  mesh = sharding.make_mesh(frames=4, devices=jax.devices()[:4])
  clips = draw(1, 8, 3, 5, 16)
  params = random_params(block, clips, deterministic=True)
  clips = jax.device_put(clips, sharding.frames_sharding(mesh, 8))

  def fn(params, x):
    y = block.apply({"params": params}, x, deterministic=True)
    return sharding.split_clips(y)

  with jax.set_mesh(mesh):
    program = jax.jit(fn).lower(params, clips).compile().as_text()
  assert program.count(" all-to-all(") == 2
  # Moments [b f c] are gathered.
  gathered = re.findall(r"\[([\d,]+)\]\S* all-gather\(", program)
  assert all(shape.count(",") == 2 for shape in gathered)


def test_the_autoencoder(random_params, request):
  vae = AutoencoderKL(
    block_channels=(16, 32), layers_per_block=1, norm_groups=8
  )
  frames = draw(3, 18, 22, 3)
  params = random_params(vae, frames)

  def apply():
    return jax.jit(lambda x: vae.apply({"params": params}, x))(frames)

  wanted = apply()
  request.getfixturevalue("tpu_kernels")
  assert_same(apply(), wanted, 1e-4)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("per_frame", [True, False])
def test_moments(request, per_frame, frames):
  x = 3 + draw(2, frames, 91, 24)
  scale, bias = draw(24, seed=1), draw(24, seed=2)

  def factors():
    return group_norm_factors(
      x, scale, bias, num_groups=3, epsilon=1e-5, per_frame=per_frame
    )

  wanted = factors()
  request.getfixturevalue("tpu_kernels")
  np.testing.assert_allclose(factors(), wanted, atol=1e-5)


def test_only_the_weights_that_are_used_travel(tpu_kernels):
  params = {"used": draw(8, 8), "unused": draw(8, 1000)}
  x = draw(1, 2, 16, 8)
  jaxpr = jax.make_jaxpr(
    lambda params, x: on_blocks(
      lambda p, x: x @ p["used"], params, (x,), mixes_frames=False
    )
  )(params, x)
  calls = [
    equation
    for equation in equations(jaxpr.jaxpr)
    if equation.primitive.name == "pallas_call"
  ]
  assert [v.aval.shape for v in calls[0].invars] == [(8, 8), x.shape]


def test_large_weights_are_left_to_the_compiler(tpu_kernels, monkeypatch):
  x, kernel = draw(1, 2, 16, 8), draw(8, 8)

  def text():
    def fn(kernel, x):
      params = {"kernel": kernel}
      return on_blocks(
        lambda p, x: x @ p["kernel"], params, (x,), mixes_frames=False
      )

    return str(jax.make_jaxpr(fn)(kernel, x))

  assert "pallas_call" in text()
  monkeypatch.setattr(blocks, "MAX_WEIGHT_BYTES", 8 * 8 * 4 - 1)
  assert "pallas_call" not in text()


def test_bfloat16_weights_travel_in_bfloat16(random_params, tpu_kernels):
  module = SpaceTimeBlock(16, 8, 4, 0.0, dtype=jnp.bfloat16)
  args = feed(2, 4, 4)
  params = random_params(module, *args, deterministic=True)
  jaxpr = jax.make_jaxpr(
    lambda params: module.apply({"params": params}, *args, True)
  )(params)
  dtypes = {
    v.aval.dtype.name
    for equation in equations(jaxpr.jaxpr)
    if equation.primitive.name == "pallas_call"
    for v in equation.invars
    if v.aval.ndim == 2 and v.aval.shape[0] > 1
  }
  assert dtypes == {"bfloat16"}


@pytest.mark.parametrize(
  ("length", "most", "block"),
  [
    ((14080), 32, (32, 14080)),
    (14400, 32, (32, 14400)),
    (880, 32, (16, 880)),
    (220, 32, (32, 224)),
    (91, 64, (48, 96)),
    (1, 64, (8, 8)),
    (64, 3, (8, 64)),
  ],
)
def test_blocks_divide_the_pixels_or_pad_them(length, most, block):
  assert blocks.split(length, most) == block
