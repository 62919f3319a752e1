"""Weights are found by content in files and by name in folders."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.files import finite, open_tensors
from i2vgen_jax.interop.tensors import Tensors


def assert_refused(call, match):
  with pytest.raises(InputError, match=match) as caught:
    call()
  assert "\n" not in str(caught.value)


def put(path, value=0.0):
  """A file of one number, in the form that its name tells."""
  if path.suffix == ".safetensors":
    save_file({"x": np.array([value])}, path)
  elif path.suffix == ".json":
    shard = path.with_name(f"{path.name}-1-of-1.safetensors")
    save_file({"x": np.array([value])}, shard)
    path.write_text(json.dumps({"weight_map": {"x": shard.name}}, indent=2))
  else:
    torch.save({"x": torch.tensor([value]).double()}, path)
  return path


@pytest.mark.parametrize("form", ["a.safetensors", "a.json", "a.pth"])
@pytest.mark.parametrize("name", ["a.bin", "a.safetensors", "a.json", "a"])
def test_content_decides_and_not_the_name(tmp_path, form, name):
  path = put(tmp_path / form, 3.0).rename(tmp_path / name)
  tensors = open_tensors(path)
  assert tensors.shapes == {"x": (1,)}
  assert tensors.read("x") == [3.0]


def test_old_torch_files(tmp_path):
  path = tmp_path / "a.safetensors.bin"
  torch.save({"x": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
  assert open_tensors(path).read("x") == [1.0]


FULL = [
  "diffusion_pytorch_model.safetensors",
  "diffusion_pytorch_model.safetensors.index.json",
  "diffusion_pytorch_model.fp16.safetensors",
  "diffusion_pytorch_model.safetensors.index.fp16.json",
  "model.safetensors",
  "model.safetensors.index.json",
  "model.fp16.safetensors",
  "model.safetensors.index.fp16.json",
  "diffusion_pytorch_model.bin",
  "pytorch_model.bin",
]
HALF = [
  "diffusion_pytorch_model.fp16.safetensors",
  "diffusion_pytorch_model.safetensors.index.fp16.json",
  "model.fp16.safetensors",
  "model.safetensors.index.fp16.json",
  "diffusion_pytorch_model.fp16.bin",
  "pytorch_model.fp16.bin",
]


@pytest.mark.parametrize(("variant", "names"), [(None, FULL), ("fp16", HALF)])
def test_the_best_name_of_a_folder(tmp_path, variant, names):
  """Takes them away, one after another."""
  for i, name in enumerate(names):
    put(tmp_path / name, i)
  for i, name in enumerate(names):
    assert open_tensors(tmp_path, variant).read("x") == [i]
    (tmp_path / name).unlink()
  assert_refused(
    lambda: open_tensors(tmp_path, variant),
    f"no weights in {tmp_path}; looked for {', '.join(names)};",
  )


def test_a_variant_is_never_replaced_by_another(tmp_path):
  put(tmp_path / "model.safetensors")
  put(tmp_path / "model.ema.safetensors", 1.0)
  assert open_tensors(tmp_path, "ema").read("x") == [1.0]
  assert_refused(lambda: open_tensors(tmp_path, "fp16"), "no weights in")


@pytest.mark.parametrize(
  ("data", "match"),
  [
    (b"", "it is empty"),
    (b"Entry not found", "it starts with b'Entry not found'"),
    (b"\n<!DOCTYPE html><html></html>", "it is a web page"),
    (b"<html></html>", "it is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\nsize 1\n", "git lfs pull"),
    (b"\x89HDF\r\n\x1a\n\0\0", r"starts with b'\\x89HDF"),
    (b"\x80\x04\x95", r"starts with b'\\x80\\x04"),
    (b'{"error": "no"}', "no `weight_map`"),
    (b"PK\x03\x04", "zip is damaged"),
    (b"\x80\x02", "torch cannot load"),
    (b"\x10\0\0\0\0\0\0\0{}", "truncated"),
  ],
)
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_files_of_something_else(tmp_path, name, data, match):
  path = tmp_path / name
  path.write_bytes(data)
  assert_refused(lambda: open_tensors(path), match)


@pytest.mark.parametrize("name", ["absent", "a.txt/b", "n" * 300])
def test_nothing_there(tmp_path, name):
  (tmp_path / "a.txt").write_text("")
  assert_refused(lambda: open_tensors(tmp_path / name), "cannot read")


@pytest.mark.parametrize("dtype", [np.float64, np.float16, jnp.bfloat16])
def test_nan_and_infinity_are_refused(dtype):
  x = np.zeros((2, 3), dtype)
  tensors = finite(Tensors.of({"good": x.copy(), "bad": x}, "a.pth"))
  x[0, 1], x[1, 1], x[1, 2] = np.nan, np.inf, -np.inf
  np.testing.assert_array_equal(tensors.read("good"), np.zeros((2, 3), dtype))
  assert_refused(
    lambda: tensors.read("bad"), r"3 of 6 values of 'bad' .* in a\.pth"
  )


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_whole_numbers_and_nothing_are_finite(dtype):
  arrays = {"x": np.ones(3, dtype), "empty": np.zeros((0, 2), np.float32)}
  tensors = finite(Tensors.of(arrays))
  assert tensors.shapes == {"x": (3,), "empty": (0, 2)}
  assert tensors.read("x").all()
  assert tensors.read("empty").shape == (0, 2)
