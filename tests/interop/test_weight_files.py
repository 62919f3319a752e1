"""Weights are recognised by content in files and by name in folders."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from weight_helpers import assert_refused, tensors_of

from i2vgen_jax.interop.formats.weight_files import open_tensors


def put(path, value=0.0):
  """A file of one number, in the form that its name suggests."""
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
def test_content_decides_not_the_name(tmp_path, form, name):
  path = put(tmp_path / form, 3.0).rename(tmp_path / name)
  tensors = open_tensors(path)
  assert tensors.shapes == {"x": (1,)}
  assert tensors.read("x") == [3.0]


def test_legacy_torch_files(tmp_path):
  path = tmp_path / "a.safetensors.bin"
  torch.save({"x": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
  assert open_tensors(path).read("x") == [1.0]


NAMES = [
  "diffusion_pytorch_model.safetensors",
  "diffusion_pytorch_model.safetensors.index.json",
  "diffusion_pytorch_model.fp16.safetensors",
  "diffusion_pytorch_model.safetensors.index.fp16.json",
  "model.safetensors",
  "model.safetensors.index.json",
  "model.fp16.safetensors",
  "model.safetensors.index.fp16.json",
  "diffusion_pytorch_model.bin",
  "diffusion_pytorch_model.bin.index.json",
  "diffusion_pytorch_model.fp16.bin",
  "diffusion_pytorch_model.bin.index.fp16.json",
  "pytorch_model.bin",
  "pytorch_model.bin.index.json",
  "pytorch_model.fp16.bin",
  "pytorch_model.bin.index.fp16.json",
]


def test_order_of_preference_in_a_folder(tmp_path):
  """Deletes the files one after another."""
  for i, name in enumerate(NAMES):
    put(tmp_path / name, i)
  for i, name in enumerate(NAMES):
    assert open_tensors(tmp_path).read("x") == [i]
    (tmp_path / name).unlink()
  assert_refused(
    lambda: open_tensors(tmp_path),
    f"no weights in {tmp_path}; looked for {', '.join(NAMES)};",
  )


def test_index_without_its_shards_is_the_last_choice(tmp_path):
  """As the Hub's cache has it after a download of fp16 files."""
  index = put(tmp_path / "model.safetensors.index.json")
  for shard in tmp_path.glob("*.safetensors"):
    shard.unlink()
  assert_refused(lambda: open_tensors(tmp_path), f"which {index} names")
  put(tmp_path / "model.fp16.safetensors", 2.0)
  assert open_tensors(tmp_path).read("x") == [2.0]


def test_torch_shards(tmp_path):
  for i, name in enumerate("xy"):
    torch.save({name: torch.full((1,), float(i))}, tmp_path / f"{name}.bin")
  index = tmp_path / "pytorch_model.bin.index.json"
  index.write_text('{"weight_map": {"x": "x.bin", "y": "y.bin"}}')
  tensors = open_tensors(tmp_path)
  assert [tensors.read(name)[0] for name in "xy"] == [0.0, 1.0]
  index.write_text(f'{{"weight_map": {{"x": "{index.name}"}}}}')
  assert_refused(lambda: open_tensors(tmp_path), "holds no weights")


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
    (b"PK\x03\x04", "holds no torch weights"),
    (b"\x80\x02", "torch cannot load"),
    (b"\x10\0\0\0\0\0\0\0{}", "truncated"),
  ],
)
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_other_kinds_of_files(tmp_path, name, data, match):
  path = tmp_path / name
  path.write_bytes(data)
  assert_refused(lambda: open_tensors(path), match)


@pytest.mark.parametrize("name", ["absent", "a.txt/b", "n" * 300])
def test_missing_file(tmp_path, name):
  (tmp_path / "a.txt").write_text("")
  assert_refused(lambda: open_tensors(tmp_path / name), "cannot read")


@pytest.mark.parametrize("dtype", [np.float64, np.float16, jnp.bfloat16])
def test_nan_and_infinity_are_refused(dtype):
  x = np.zeros((2, 3), dtype)
  tensors = tensors_of({"good": x.copy(), "bad": x}, "a.pth").checked()
  x[0, 1], x[1, 1], x[1, 2] = np.nan, np.inf, -np.inf
  np.testing.assert_array_equal(tensors.read("good"), np.zeros((2, 3), dtype))
  assert_refused(
    lambda: tensors.read("bad"), r"3 of 6 values of 'bad' .* in a\.pth"
  )


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.bool_])
def test_integers_are_refused(dtype):
  tensors = tensors_of({"x": np.ones(3, dtype)}, "a.pth").checked()
  assert_refused(lambda: tensors.read("x"), r"'x' is .* in a\.pth; use weights")


def test_empty_tensor():
  tensors = tensors_of({"empty": np.zeros((0, 2), np.float32)}).checked()
  assert tensors.read("empty").shape == (0, 2)


def test_overflow_of_a_smaller_dtype_is_refused():
  tensors = tensors_of({"x": np.full(2, 1e6, "f")}, "a.pth")
  half = tensors.checked(np.dtype(np.float16))
  assert_refused(lambda: half.read("x"), "2 of 2 values of 'x' .* as float16")
