"""Layouts against torch's own operations; strictness of the mapping."""

import jax
import numpy as np
import pytest
import torch
import weight_helpers
from torch.nn import functional
from weight_helpers import arrays_of, leaves_of, tensors_of, unreadable

from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.keys import kinds
from i2vgen_jax.interop.keys.kinds import LINEAR, PLAIN, conv2d, linear, norm
from i2vgen_jax.interop.keys.table import Row, Table
from i2vgen_jax.interop.mapping import compare, materialise, to_flax, to_torch


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shifted_sum(x, kernel):
  """Frames x [f p i], kernel [3 i o]: neighbours by time, zeros outside."""
  zero = np.zeros_like(x[:1])
  past, future = np.concatenate([zero, x[:-1]]), np.concatenate([x[1:], zero])
  return past @ kernel[0] + x @ kernel[1] + future @ kernel[2]


def test_linear_layout():
  w, x = draw(5, 3), draw(2, 3, seed=1)
  expected = functional.linear(torch.tensor(x), torch.tensor(w))
  np.testing.assert_allclose(x @ LINEAR.to_flax(w), expected, atol=1e-5)


def test_conv2d_layout():
  w, x = draw(5, 3, 2, 4), draw(2, 3, 6, 7, seed=1)
  expected = functional.conv2d(torch.tensor(x), torch.tensor(w))
  ours = jax.lax.conv_general_dilated(
    x.transpose(0, 2, 3, 1),
    kinds.CONV2D.to_flax(w),
    (1, 1),
    "VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  np.testing.assert_allclose(
    ours, expected.numpy().transpose(0, 2, 3, 1), atol=1e-5
  )


def test_temporal_conv_layout():
  w, x = draw(5, 3, 3, 1, 1), draw(1, 3, 4, 2, 1, seed=1)
  expected = functional.conv3d(
    torch.tensor(x), torch.tensor(w), padding=(1, 0, 0)
  )
  kernel = kinds.TEMPORAL_CONV.to_flax(w)
  ours = shifted_sum(x[0, ..., 0].transpose(1, 2, 0), kernel)
  np.testing.assert_allclose(
    ours, expected[0, ..., 0].numpy().transpose(1, 2, 0), atol=1e-5
  )


def test_convolutions_of_width_one_are_linear_layouts():
  w, x = draw(5, 3), draw(3, 4, seed=1)
  line = functional.conv1d(torch.tensor(x[None]), torch.tensor(w[..., None]))
  plane = functional.conv2d(
    torch.tensor(x[None, ..., None]), torch.tensor(w[..., None, None])
  )
  np.testing.assert_allclose(
    x.T @ kinds.CONV1D.to_flax(w[..., None]), line[0].T, atol=1e-5
  )
  np.testing.assert_allclose(
    x.T @ kinds.CONV1X1.to_flax(w[..., None, None]),
    plane[0, ..., 0].T,
    atol=1e-5,
  )


@pytest.mark.parametrize(
  ("layout", "shape"),
  [
    (kinds.PLAIN, (5,)),
    (kinds.PLAIN, (5, 3)),
    (kinds.LINEAR, (5, 3)),
    (kinds.CONV2D, (5, 3, 2, 4)),
    (kinds.TEMPORAL_CONV, (5, 3, 3, 1, 1)),
    (kinds.CONV1D, (5, 3, 1)),
    (kinds.CONV1X1, (5, 3, 1, 1)),
  ],
)
def test_layouts_are_exact_inverses(layout, shape):
  x = draw(*shape)
  back = layout.to_torch(layout.to_flax(x))
  np.testing.assert_array_equal(back, x)


TABLE = Table(
  (
    *linear("mlp/in", ("net.0", "net.proj")),
    *conv2d("conv", ("conv",), bias=False),
    *norm("norm", ("norm",)),
    *(
      Row(f"attn/{name}", ("qkv.weight",), LINEAR, part=(i, 3))
      for i, name in enumerate("qkv")
    ),
    Row("place", ("place",), PLAIN),
  ),
  ignored=frozenset({"place_ids"}),
)


def load(arrays, abstract):
  return weight_helpers.load(arrays, TABLE, abstract)


def save(params, table=TABLE):
  return arrays_of(to_torch(leaves_of(params), table))


@pytest.fixture
def tensors():
  shapes = {
    "net.0.weight": (5, 3),
    "net.0.bias": (5,),
    "conv.weight": (4, 3, 1, 2),
    "norm.weight": (4,),
    "norm.bias": (4,),
    "qkv.weight": (6, 3),
    "place": (7, 3),
  }
  return {
    key: draw(*shape, seed=i) for i, (key, shape) in enumerate(shapes.items())
  }


@pytest.fixture
def abstract():
  def leaf(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)

  return {
    "mlp": {"in": {"kernel": leaf(3, 5), "bias": leaf(5)}},
    "conv": {"kernel": leaf(1, 2, 3, 4)},
    "norm": {"scale": leaf(4), "bias": leaf(4)},
    "attn": {name: leaf(3, 2) for name in "qkv"},
    "place": leaf(7, 3),
  }


def test_there_and_back(tensors, abstract):
  params = load(tensors, abstract)
  assert jax.tree.structure(params) == jax.tree.structure(abstract)
  jax.tree.map(
    lambda a, b: np.testing.assert_equal(a.shape, b.shape), params, abstract
  )
  back = save(params)
  assert back.keys() == tensors.keys()
  for key, value in tensors.items():
    np.testing.assert_array_equal(back[key], value)


def test_stacked_rows_are_split_in_order(tensors, abstract):
  attn = load(tensors, abstract)["attn"]
  x = draw(2, 3, seed=9)
  stacked = functional.linear(
    torch.tensor(x), torch.tensor(tensors["qkv.weight"])
  )
  for name, expected in zip("qkv", stacked.chunk(3, dim=1), strict=True):
    np.testing.assert_allclose(x @ attn[name], expected, atol=1e-5)


def test_values_keep_their_dtype_unless_cast(tensors, abstract):
  halves = {key: value.astype(np.float16) for key, value in tensors.items()}
  leaves = to_flax(tensors_of(halves), TABLE, abstract)
  for dtype, result in (
    (np.float16, leaves),
    (np.float32, leaves.checked(np.dtype("float32"))),
  ):
    params = materialise(result)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(dtype)}
    np.testing.assert_array_equal(params["place"], halves["place"])


def test_other_spellings_are_read_and_the_first_is_written(tensors, abstract):
  renamed = {
    key.replace("net.0", "net.proj"): value for key, value in tensors.items()
  }
  params = load(renamed, abstract)
  assert save(params).keys() == tensors.keys()


def test_two_spellings_of_one_key_are_refused(tensors, abstract):
  tensors["net.proj.bias"] = tensors["net.0.bias"]
  with pytest.raises(InputError, match=r"1 unexpected: net\.proj\.bias"):
    load(tensors, abstract)


def test_known_constants_are_ignored(tensors, abstract):
  tensors["place_ids"] = np.arange(7)
  load(tensors, abstract)


def test_one_error_lists_all_problems(tensors, abstract):
  del tensors["norm.bias"]
  tensors["extra.weight"] = draw(1)
  tensors["conv.weight"] = draw(4, 3, 2, 1)
  tensors["qkv.weight"] = draw(7, 3)
  with pytest.raises(InputError) as caught:
    load(tensors, abstract)
  text = str(caught.value)
  assert "\n" not in text
  for part in (
    "1 missing: norm.bias",
    "1 unexpected: extra.weight",
    "2 wrong shapes: conv.weight is (4, 3, 2, 1) and should be (4, 3, 1, 2)",
    "qkv.weight is (7, 3) and should be (6, 3)",
  ):
    assert part in text


def test_empty_file_names_a_few_keys_and_counts_the_rest(abstract):
  with pytest.raises(InputError, match=r"7 missing: .* and 3 more"):
    load({}, abstract)


def test_table_of_another_network_is_refused(tensors, abstract):
  params = load(tensors, abstract)
  del params["norm"], abstract["norm"]
  with pytest.raises(ValueError, match="norm/bias, norm/scale"):
    save(params)
  with pytest.raises(ValueError, match="not of one network"):
    load(tensors, abstract)
  doubled = Table((*TABLE.rows, TABLE.rows[0]))
  with pytest.raises(ValueError, match="mlp/in/kernel"):
    save(params, doubled)


def test_report_lists_every_key(tensors, abstract):
  del tensors["norm.bias"]
  tensors["extra.weight"] = draw(1)
  tensors["place_ids"] = np.arange(7)
  tensors["conv.weight"] = draw(4, 3, 2, 1)
  report = compare(tensors_of(tensors), TABLE, abstract)
  lines = list(report.lines())
  assert "mapped      qkv.weight -> attn/q, attn/k, attn/v" in lines
  assert lines[-5:] == [
    "mapped      qkv.weight -> attn/q, attn/k, attn/v",
    "ignored     place_ids",
    "wrong shape conv.weight: (4, 3, 2, 1), expected (4, 3, 1, 2)",
    "missing     norm.bias",
    "unexpected  extra.weight",
  ]
  # Every key of the file, and the one that it lacks.
  assert len(lines) == len(tensors) + 1


def test_nothing_is_read_unless_everything_fits(tensors, abstract):
  del tensors["norm.bias"]
  shapes = {key: x.shape for key, x in tensors.items()}
  with pytest.raises(InputError, match="1 missing"):
    load(unreadable(shapes), abstract)


def test_arrays_are_put_on_the_requested_device(tensors, abstract):
  device = jax.devices()[3]
  params = materialise(
    to_flax(tensors_of(tensors), TABLE, abstract),
    put=lambda path, array: jax.device_put(array, device),
  )
  assert {leaf.device for leaf in jax.tree.leaves(params)} == {device}
  np.testing.assert_array_equal(params["place"], tensors["place"])
