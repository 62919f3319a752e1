"""The U-Net as a whole: its members, their conditions, sizes and types."""

import functools
from typing import get_args

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from model_testing import draw, equations, operand_dtypes

from i2vgen_jax.errors import InputError
from i2vgen_jax.models import build
from i2vgen_jax.models.unet import I2VGenUNet
from i2vgen_jax.remat import Policy

# One level has every kind of block; parity is where all four are.
SMALL = {
  "block_channels": (8,),
  "layers_per_block": 1,
  "head_dim": 4,
  "input_heads": 3,
  "context_dim": 6,
  "norm_groups": 4,
  "image_grid": 2,
}
# What each member of the family adds to or takes from the released one, and
# what it is fed.
MEMBERS = {
  "base": {"use_text": False, "local_image": "content"},
  "refine": {
    "use_image_embeds": False,
    "use_fps": False,
    "local_image": "none",
    "height_padding": 2,
  },
  "released": {},
  "image_to_video": {"use_text": False, "local_image": "none"},
}
CONDITIONS = {
  "base": {"fps", "image_latents", "image_embeds"},
  "refine": {"text_context"},
  "released": {"fps", "image_latents", "image_embeds", "text_context"},
  "image_to_video": {"fps", "image_embeds"},
}
# LLVM's later passes take most of the time and change nothing here.
jit = functools.partial(
  jax.jit,
  compiler_options={
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
  },
)


FOUR_LEVELS = (8, 8, 12, 12)


def unet(member, **fields):
  return I2VGenUNet(**{**SMALL, **MEMBERS[member], **fields})


def inputs(names, batch=2, frames=3, height=6, width=4):
  """Noisy latents, timesteps, and the named conditions."""
  conditions = {
    "fps": np.linspace(8, 16, batch, dtype=np.float32),
    "image_latents": draw(batch, height, width, 4, seed=1),
    "image_embeds": draw(batch, 6, seed=2),
    "text_context": draw(batch, 5, 6, seed=3),
  }
  return {
    "latents": draw(batch, frames, height, width, 4),
    "timesteps": np.linspace(981, 20.5, batch, dtype=np.float32),
    **{name: conditions[name] for name in sorted(names)},
  }


@functools.partial(jit, static_argnums=0)
def run(model, params, feed):
  return model.apply({"params": params}, **feed)


@functools.partial(jit, static_argnums=(0, 1))
def output_of(name, model, params, feed):
  """What one sub-module puts out; the rest is not even compiled."""
  _, state = model.apply(
    {"params": params},
    **feed,
    capture_intermediates=lambda module, _: module.name == name,
    mutable="intermediates",
  )
  return state["intermediates"][name]["__call__"][0]


@pytest.fixture(scope="module", params=MEMBERS)
def member(request):
  return request.param


@pytest.fixture(scope="module")
def released(random_params):
  feed = inputs(CONDITIONS["released"])
  params = random_params(unet("released"), **feed)
  return params, feed, run(unet("released"), params, feed)


@pytest.fixture(scope="module")
def base(random_params):
  feed = inputs(CONDITIONS["base"])
  return random_params(unet("base"), **feed), feed


def with_leaf(params, path, change):
  """The parameters with one array changed."""
  flat = traverse_util.flatten_dict(params, sep="/")
  return traverse_util.unflatten_dict(
    {**flat, path: change(np.array(flat[path]))}, sep="/"
  )


# ---- Conditions and sizes ----


def shape_of(model, feed):
  key = jax.random.key(0)
  return jax.eval_shape(lambda: model.init_with_output(key, **feed)[0]).shape


def test_each_member_accepts_exactly_its_conditions(member):
  model, names = unet(member), CONDITIONS[member]
  feed = inputs(names)
  assert shape_of(model, feed) == feed["latents"].shape
  for name in names:
    with pytest.raises(InputError, match=f"needs {name}; pass it"):
      shape_of(model, inputs(names - {name}))
  for name in CONDITIONS["released"] - names:
    with pytest.raises(InputError, match=f"no input for {name}; leave it out"):
      shape_of(model, inputs(names | {name}))


def test_refine_heights_at_full_size():
  """720 pixels: 90 rows; two of padding at each halving, cut on the way up."""
  model = unet("refine", block_channels=FOUR_LEVELS)
  feed = inputs({"text_context"}, 1, 2, 90, 160)

  def intermediates():
    _, state = model.init_with_output(
      jax.random.key(0), **feed, capture_intermediates=True, mutable=True
    )
    return state["intermediates"]

  seen = jax.eval_shape(intermediates)
  blocks = ["down_0_0", "down_1_0", "down_2_0", "down_3_0", "mid_1"]
  blocks += ["up_3_1", "up_2_1", "up_1_1", "up_0_1", "conv_out"]
  sizes = [seen[name]["__call__"][0].shape[2:4] for name in blocks]
  down = [(90, 160), (46, 80), (24, 40), (13, 20)]
  assert sizes == [*down, down[-1], *down[::-1], down[0]]


def takes(model, width, height):
  try:
    model.check_size(width, height)
  except InputError:
    return False
  return True


@pytest.mark.parametrize("levels", [2, 4])
def test_refine_error_names_the_nearest_valid_size(levels):
  model = unet("refine", block_channels=(8,) * levels)
  factor = 2 ** (levels - 1)
  widths = [n for n in range(1, 60) if takes(model, n, 2)]
  heights = [n for n in range(1, 60) if takes(model, factor, n)]
  assert widths == list(range(factor, 60, factor))
  assert heights == list(range(2, 60, factor))
  for n in range(1, 50):
    for size in ((n, n), (factor, n), (n, 2)):
      if takes(model, *size):
        continue
      with pytest.raises(InputError, match=r"\d+x\d+$") as caught:
        model.check_size(*size)
      named = map(int, str(caught.value).split()[-1].split("x"))
      for good, near, wanted in zip(
        (widths, heights), named, size, strict=True
      ):
        assert near in good
        assert abs(near - wanted) == min(abs(m - wanted) for m in good)


def test_refine_refuses_704_pixels():
  model = unet("refine", block_channels=FOUR_LEVELS)
  with pytest.raises(InputError, match=r"160x88 .* nearest is 160x90"):
    shape_of(model, inputs({"text_context"}, 1, 1, 88, 160))


# ---- How the conditions act ----


def test_rows_of_a_batch_are_independent(released):
  params, feed, out = released
  other = {name: np.array(value) for name, value in feed.items()}
  for value in other.values():
    value[1] = value[1] * 0.5 + 1
  changed = np.abs(run(unet("released"), params, other) - out)
  np.testing.assert_array_equal(changed[0], 0)
  assert changed[1].max() > 0.1


@pytest.mark.parametrize("name", sorted(CONDITIONS["released"]))
def test_released_output_depends_on_every_condition(released, name):
  params, feed, out = released
  other = run(unet("released"), params, {**feed, name: feed[name] * 0.5 + 1})
  assert np.abs(other - out).max() > 1e-3


def test_concat_gain_scales_the_extra_channels(released):
  params, feed, _ = released

  def double(kernel):
    kernel[:, :, 4:] *= 2
    return kernel

  doubled = with_leaf(params, "conv_in/kernel", double)
  np.testing.assert_allclose(
    run(unet("released", concat_gain=2.0), params, feed),
    run(unet("released"), doubled, feed),
    atol=1e-5,
  )


def test_variant_a_equals_variant_c_without_local_image(random_params):
  """Silence the extra channels and make all context tokens the same one.

  Attention over copies of a token is attention over one of them, so that
  four more copies, from the picture's latents, change nothing.
  """
  token = draw(6, seed=7)
  feed = inputs(CONDITIONS["base"])
  c = unet("released", use_text=False)
  c_params = random_params(c, **feed)
  for path, value in {
    "image_tokens/conv_3/kernel": 0.0,
    "image_tokens/conv_3/bias": token,
    "embeds_tokens/mlp/linear_2/kernel": 0.0,
    "embeds_tokens/mlp/linear_2/bias": np.tile(token, 4),
  }.items():
    c_params = with_leaf(
      c_params, path, lambda leaf, value=value: np.full_like(leaf, value)
    )
  c_params["conv_in"]["kernel"][:, :, 4:] = 0
  own = {"image_tokens", "local_image"}
  a_params = {name: p for name, p in c_params.items() if name not in own}
  a_params = with_leaf(a_params, "conv_in/kernel", lambda k: k[:, :, :4])
  expected = run(c, c_params, feed)
  del feed["image_latents"]
  result = run(unet("image_to_video"), a_params, feed)
  np.testing.assert_allclose(result, expected, atol=1e-5)
  assert np.abs(result).max() > 0.1


def test_content_details_are_added_to_frame_0_only(base):
  params, feed = base
  path = "content_encoder/detail_encoder/conv_3/bias"
  moved = with_leaf(params, path, lambda bias: bias + 1)
  change = np.abs(
    output_of("conv_in", unet("base"), moved, feed)
    - output_of("conv_in", unet("base"), params, feed)
  )
  assert (change[:, 0].max(axis=-1) > 0).all()
  np.testing.assert_array_equal(change[:, 1:], 0)


def test_content_feature_is_added_to_the_image_embedding(base):
  params, feed = base
  step = draw(6, seed=8)
  path = "content_encoder/global_encoder/conv_3/bias"
  moved = with_leaf(params, path, lambda bias: bias - step)
  plain = output_of("embeds_tokens", unet("base"), params, feed)
  tokens = functools.partial(output_of, "embeds_tokens", unet("base"), moved)
  opposite = {**feed, "image_embeds": feed["image_embeds"] + step}
  np.testing.assert_allclose(tokens(opposite), plain, atol=1e-5)
  assert np.abs(tokens(feed) - plain).max() > 1e-2
  # A row without a CLIP vector has none of the content either.
  embeds = feed["image_embeds"] * np.array([[0.0], [1.0]], np.float32)
  dropped = tokens({**feed, "image_embeds": embeds})
  alone = params["embeds_tokens"]["mlp"]
  bias = jax.nn.silu(alone["linear_1"]["bias"])
  null = bias @ alone["linear_2"]["kernel"] + alone["linear_2"]["bias"]
  np.testing.assert_allclose(dropped[0].ravel(), null, atol=1e-5)
  np.testing.assert_allclose(dropped[1], tokens(feed)[1], atol=1e-5)


@pytest.fixture(scope="module")
def content_gradients(base):
  """Output and gradients of the content path, below all blocks."""
  params, feed = base

  def gradients(**changes):
    def loss(content):
      variables = {"params": {**params, "content_encoder": content}}
      out = unet("base", **changes).apply(variables, **feed)
      return (out**2).mean(), out

    content = params["content_encoder"]
    (_, out), grads = jit(jax.value_and_grad(loss, has_aux=True))(content)
    return out, traverse_util.flatten_dict(grads, sep="/")

  policies = [{"remat_policy": name} for name in get_args(Policy)]
  return [gradients(), *(gradients(remat=True, **p) for p in policies)]


def test_gradients_reach_the_content_path(content_gradients):
  _, grads = content_gradients[0]
  parts = {path.split("/")[0] for path in grads}
  assert parts == {"detail_encoder", "global_encoder"}
  assert not [path for path, g in grads.items() if np.abs(g).max() < 1e-6]


@pytest.mark.parametrize("number", range(len(get_args(Policy))))
def test_remat_gives_the_same_gradients(content_gradients, number):
  (out, grads), *others = content_gradients
  again, recomputed = others[number]
  np.testing.assert_allclose(again, out, atol=1e-5)
  for path, g in grads.items():
    atol = 1e-4 * np.abs(g).max()
    np.testing.assert_allclose(recomputed[path], g, atol=atol, err_msg=path)


def test_remat_applies_to_every_block_or_layer(base):
  params, feed = base

  def recomputed(remat, policy="nothing"):
    model = unet("base", remat=remat, remat_policy=policy)
    jaxpr = jax.make_jaxpr(lambda p: model.apply({"params": p}, **feed))(params)
    names = [e.primitive.name for e in equations(jaxpr.jaxpr)]
    return sum(name.startswith(("remat", "checkpoint")) for name in names)

  # One on the way down, two in the middle, two on the way up.
  assert (recomputed(False), recomputed(True)) == (0, 5)
  assert recomputed(True, "layers") > 5 * 4


# ---- Initial values ----


def test_zero_initialised_weights():
  """Residual branches, the FPS embedding and the head; nothing else."""

  @jit
  def init():
    # A generator that compiles faster than the default.
    key = jax.random.key(0, impl="unsafe_rbg")
    return build.init_params(unet("released"), key)

  flat = traverse_util.flatten_dict(init(), sep="/")
  kernels = {path: x for path, x in flat.items() if path.endswith("kernel")}
  zero = {path for path, x in kernels.items() if not np.any(x)}
  ends = (
    "resnet/conv_2/kernel",
    "temporal_conv/conv_4/kernel",
    "spatial/proj_out/kernel",
    "temporal/proj_out/kernel",
  )
  single = {
    "temporal_in/proj_out/kernel",
    "fps_embedding/linear_2/kernel",
    "conv_out/kernel",
  }
  assert zero == {p for p in kernels if p.endswith(ends) or p in single}
  assert all(not np.any(x) for p, x in flat.items() if p.endswith("bias"))


def test_fps_has_no_effect_before_training(released):
  params, feed, _ = released
  still = with_leaf(params, "fps_embedding/linear_2/kernel", np.zeros_like)
  other = {**feed, "fps": feed["fps"] + 3}
  model = unet("released")
  np.testing.assert_array_equal(
    run(model, still, other), run(model, still, feed)
  )


# ---- Reuse of inner features ----


def test_features_of_the_same_input_give_the_same_output(released):
  params, feed, exact = released
  model = unet("released")
  apply = jit(model.apply, static_argnames="with_features")
  output, features = apply({"params": params}, **feed, with_features=True)
  np.testing.assert_allclose(output, exact, rtol=1e-5, atol=1e-6)
  again = apply({"params": params}, **feed, features=features)
  np.testing.assert_allclose(again, exact, rtol=1e-5, atol=1e-6)
  other = apply({"params": params}, **feed, features=features + 0.1)
  assert np.abs(other - exact).max() > 1e-4


def test_given_features_replace_the_inner_layers(released):
  params, feed, _ = released
  features = draw(*feed["latents"].shape[:-1], 8)
  model = unet("released")
  grads = jax.grad(
    lambda p: (model.apply({"params": p}, **feed, features=features) ** 2).sum()
  )(params)
  used = {k for k, v in grads.items() if any(map(np.any, jax.tree.leaves(v)))}
  assert not any(name.startswith(("down", "mid")) for name in used)
  assert {"conv_in", "temporal_in", "up_0_1", "conv_out"} <= used


# ---- Types and randomness ----


def test_bfloat16_leaves_sums_and_softmax_in_float32(released):
  params, feed, exact = released
  model = unet("released", dtype=jnp.bfloat16)
  found = operand_dtypes(lambda p: model.apply({"params": p}, **feed), params)
  assert found["conv_general_dilated"] == {"bfloat16"}
  assert found["reduce_sum"] == found["exp"] == found["rsqrt"] == {"float32"}
  rough = np.asarray(run(model, params, feed), np.float32)
  assert 0 < np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()


def test_dropout_reaches_the_blocks(base):
  params, feed = base

  def apply(deterministic, **rngs):
    variables = {"params": params}
    return jax.eval_shape(
      lambda: unet("base").apply(
        variables, **feed, deterministic=deterministic, rngs=rngs
      )
    )

  apply(True)
  apply(False, dropout=jax.random.key(0))
  with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
    apply(False)


def test_an_unknown_choice_is_refused():
  with pytest.raises(
    InputError, match=r"unknown remat_policy 'all', in here; use one of nothing"
  ):
    build.make_module("base", {"remat_policy": "all"}, "here")
