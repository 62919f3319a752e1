"""Safetensors files: hostile input, memory, and the library reads ours."""

import json
import os
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch
from weight_helpers import assert_refused, numbered, tensors_of

from i2vgen_jax.interop.formats import safetensors_files, weight_files
from i2vgen_jax.interop.formats.tensors import Tensors

BF16 = np.dtype(jnp.bfloat16)


def arrays():
  """One of each dtype, an empty one, a scalar; of odd sizes."""
  rng = np.random.default_rng(0)
  some = {
    f"x.{dtype.name}": (100 * rng.normal(size=(3, i + 1))).astype(dtype)
    for i, dtype in enumerate(safetensors_files.DTYPES.values())
  }
  return some | {
    "empty": np.zeros((2, 0, 3), np.float32),
    "scalar": np.array(3, np.int64),
  }


def assert_same(tensors, expected):
  assert tensors.shapes == {k: x.shape for k, x in expected.items()}
  assert tensors.dtypes == {k: x.dtype for k, x in expected.items()}
  for key, value in expected.items():
    got = tensors.read(key)
    assert (got.dtype, got.shape) == (value.dtype, value.shape)
    np.testing.assert_array_equal(got, value)


def raw(path, header, data=b""):
  """A file with any header, a text or what JSON makes of it."""
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + data)
  return path


def entry(shape=(2,), place=(0, 8), dtype="F32"):
  return {"dtype": dtype, "shape": shape, "data_offsets": place}


def test_files_of_the_library_are_read(tmp_path):
  path = tmp_path / "a.safetensors"
  save_file(arrays(), path, metadata={"format": "pt"})
  assert_same(safetensors_files.read(path), arrays())


def test_reads_bfloat16_of_torch(tmp_path):
  x = torch.randn(3, 5).bfloat16()
  save_torch({"x": x}, tmp_path / "a")
  got = safetensors_files.read(tmp_path / "a").read("x")
  assert got.dtype == BF16
  np.testing.assert_array_equal(got.astype(np.float32), x.float().numpy())


def test_the_library_reads_our_files(tmp_path):
  path = tmp_path / "a.safetensors"
  tensors = tensors_of(arrays())
  safetensors_files.write(path, tensors, {"made": "ünder \n test"})
  with safetensors.safe_open(path, "np") as file:
    assert file.metadata() == {"made": "ünder \n test"}
  assert_same(tensors_of(load_file(path)), arrays())
  assert_same(safetensors_files.read(path), arrays())
  assert os.listdir(tmp_path) == [path.name]


def test_no_metadata_and_no_tensors(tmp_path):
  safetensors_files.write(tmp_path / "a", tensors_of({}))
  assert load_file(tmp_path / "a") == {}


def test_every_tensor_is_aligned(tmp_path):
  path = tmp_path / "a"
  safetensors_files.write(path, tensors_of(arrays()))
  data = path.read_bytes()
  length = int.from_bytes(data[:8], "little")
  assert length % 8 == 0
  header = json.loads(data[8 : 8 + length])
  for key, field in header.items():
    width = arrays()[key].itemsize
    assert (8 + length + field["data_offsets"][0]) % width == 0, key


def test_views_are_written_in_c_order(tmp_path):
  x = np.arange(24, dtype=np.float32).reshape(4, 6)
  views = {
    "turned": x.T,
    "cut": x[1:3, ::2],
    "fortran": np.asfortranarray(x),
    "backwards": x[::-1],
    "spread": np.broadcast_to(x[0], (3, 6)),
    "bf16": x.astype(BF16).T,
  }
  safetensors_files.write(tmp_path / "a", tensors_of(views))
  assert_same(tensors_of(load_file(tmp_path / "a")), views)


def test_the_file_is_flushed_before_it_is_renamed(tmp_path, monkeypatch):
  path, seen = tmp_path / "a", []
  sync = os.fsync

  def spy(descriptor):
    seen.append((os.fstat(descriptor).st_size, path.exists()))
    sync(descriptor)

  monkeypatch.setattr(os, "fsync", spy)
  safetensors_files.write(path, tensors_of(arrays()))
  # First the file, then, after it was renamed, its folder.
  assert seen[0] == (path.stat().st_size, False)
  assert [exists for _, exists in seen] == [False, True]


def test_source_can_be_overwritten(tmp_path):
  path = tmp_path / "a"
  save_file(arrays(), path)
  safetensors_files.write(path, safetensors_files.read(path))
  assert_same(tensors_of(load_file(path)), arrays())


def one(array, **listed):
  tensors = tensors_of({"x": array})
  return Tensors(
    "memory",
    {"x": listed.get("shape", array.shape)},
    {"x": listed.get("dtype", array.dtype)},
    tensors.read,
  )


@pytest.mark.parametrize(
  "tensors",
  [
    one(np.zeros(3, np.float32), shape=(4,)),
    one(np.zeros(3, np.float32), dtype=np.dtype(np.float16)),
    one(np.zeros(3, np.complex64)),
    one(np.zeros(3, ">f4")),
  ],
)
def test_arrays_that_differ_from_their_listing_are_not_written(
  tmp_path, tensors
):
  with pytest.raises(ValueError, match=r"x is|no dtype"):
    safetensors_files.write(tmp_path / "a", tensors)
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("old", [None, b"old"])
def test_full_disk_keeps_the_old_file(tmp_path, small_disk, old):
  path = tmp_path / "a.safetensors"
  if old:
    path.write_bytes(old)
  tensors = tensors_of({key: np.zeros(100_000) for key in "ab"})
  assert_refused(
    lambda: safetensors_files.write(path, tensors), f"cannot write {path}: F"
  )
  assert os.listdir(tmp_path) == ([path.name] if old else [])
  assert not old or path.read_bytes() == old


@pytest.mark.parametrize("name", ["absent/a", "folder", "file/a", "n" * 300])
def test_unwritable_places(tmp_path, name):
  (tmp_path / "folder" / "full").mkdir(parents=True)
  (tmp_path / "file").write_text("")
  tensors = tensors_of(arrays())
  assert_refused(
    lambda: safetensors_files.write(tmp_path / name, tensors), "cannot write"
  )
  assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_one_tensor_costs_its_own_size(tmp_path):
  path = tmp_path / "a"
  save_file({str(i): np.full(2**18, i, np.float32) for i in range(16)}, path)
  tracemalloc.start()
  got = safetensors_files.read(path).read("7")
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert got.nbytes <= peak < 1.2 * got.nbytes
  assert (got == 7).all()


def test_writing_holds_one_tensor_at_a_time(tmp_path):
  tensors = numbered(16, 2**18)
  tracemalloc.start()
  safetensors_files.write(tmp_path / "a", tensors)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 2.2 * 2**20
  assert load_file(tmp_path / "a")["9"][5] == 9


F32 = b"\0" * 8


@pytest.mark.parametrize(
  ("header", "data", "match"),
  [
    (b"", b"", "invalid JSON in header: EOF"),
    (b"no json", F32, "invalid JSON in header"),
    (b"\xff\xfe{}", F32, "invalid UTF-8 in header"),
    (b"[" * 100_000, F32, "invalid JSON in header"),
    (b'{"a": ' + b"1" * 5000 + b"}", F32, "number out of range"),
    ([], F32, "invalid JSON in header: invalid type: sequence"),
    ({"a": 3}, F32, "invalid type: integer `3`, expected struct"),
    ({"a": {"dtype": "F32"}}, F32, "missing field `shape`"),
    ({"a": entry(dtype=[])}, F32, "invalid type: sequence, expected string"),
    ({"a": entry(shape=2)}, F32, "integer `2`, expected a sequence"),
    ({"a": entry(place=(0, 4, 8))}, F32, "invalid length 3"),
    ({"a": entry((8,), dtype="F8_E4M3")}, F32, "dtype 'F8_E4M3'.* F32"),
    ({"a": entry(dtype="F9")}, F32, "unknown variant `F9`"),
    ({"a": entry(shape=(-2, -1))}, F32, "integer `-2`, expected usize"),
    ({"a": entry(shape=(2.0,))}, F32, "floating point `2.0`, expected usize"),
    ({"a": entry(shape=(2, True))}, F32, "boolean `true`, expected usize"),
    ({"a": entry(place=(-8, 0))}, F32, "integer `-8`, expected usize"),
    ({"a": entry(shape=(3,))}, F32, "invalid shape, data type, or offset"),
    ({"a": entry(shape=(2**40, 2**40))}, F32, "overflow"),
    ({"a\nb": entry(shape=(3,))}, F32, "invalid shape, data type, or offset"),
    ({"a": entry()}, F32[:-1], "file not fully covered"),
    ({"a": entry()}, F32 + b"\0", "file not fully covered"),
    ({"a": entry(place=(4, 12))}, F32 * 2, "invalid offset for tensor `a`"),
    ({"a": entry(), "b": entry()}, F32, "invalid offset for tensor `[ab]`"),
    (
      {"a": entry(), "b": entry(place=(12, 20))},
      F32 * 3,
      "invalid offset for tensor `b`",
    ),
  ],
)
def test_broken_files(tmp_path, header, data, match):
  path = raw(tmp_path / "a", header, data)
  assert_refused(lambda: safetensors_files.read(path), match)


def test_an_empty_tensor_named_after_one_that_starts_there(tmp_path):
  header = {"b": entry(), "a": entry(shape=(0,), place=(0, 0))}
  tensors = safetensors_files.read(raw(tmp_path / "a", header, F32))
  assert tensors.read("a").shape == (0,)


def test_the_smallest_file_of_these_tests_is_whole(tmp_path):
  path = raw(tmp_path / "a", {"a": entry()}, F32)
  assert_same(safetensors_files.read(path), {"a": np.zeros(2, np.float32)})


@pytest.mark.parametrize("size", [0, 5, 8, 40])
def test_truncated_in_the_header(tmp_path, size):
  path = raw(tmp_path / "a", {"a": entry()}, F32)
  path.write_bytes(path.read_bytes()[:size])
  assert_refused(lambda: safetensors_files.read(path), "truncated.*header")


def test_header_longer_than_the_library_allows(tmp_path):
  path = tmp_path / "a"
  path.write_bytes((100_000_001).to_bytes(8, "little"))
  os.truncate(path, 100_000_100)
  assert_refused(lambda: safetensors_files.read(path), "header too large")


@pytest.mark.parametrize("name", ["absent", "."])
def test_no_file(tmp_path, name):
  assert_refused(lambda: safetensors_files.read(tmp_path / name), "cannot read")


def test_file_that_shrinks_while_open(tmp_path):
  path = raw(tmp_path / "a", {"a": entry()}, F32)
  tensors = safetensors_files.read(path)
  os.truncate(path, path.stat().st_size - 1)
  assert_refused(lambda: tensors.read("a"), "failed to fill whole buffer")
  path.unlink()
  assert_refused(lambda: tensors.read("a"), "cannot read")


@pytest.fixture
def index(tmp_path):
  """Writes an index over two shards that hold `arrays`."""
  names = {}
  for i in range(2):
    part = dict(list(arrays().items())[i::2])
    save_file(part, tmp_path / f"{i}.safetensors")
    names |= dict.fromkeys(part, f"{i}.safetensors")

  def write(**changes):
    path = tmp_path / "m.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {**names, **changes}}))
    return path

  return write


def test_shards(index):
  assert_same(weight_files.read_index(index()), arrays())


def test_shards_behind_links(index, tmp_path):
  """The Hub's cache keeps files elsewhere and links to them."""
  path = index()
  (tmp_path / "cache").mkdir()
  for name in ("0.safetensors", path.name):
    (tmp_path / name).rename(tmp_path / "cache" / name)
    (tmp_path / name).symlink_to(tmp_path / "cache" / name)
  assert_same(weight_files.read_index(path), arrays())


@pytest.mark.parametrize(
  ("name", "match"),
  [
    ("2.safetensors", "no shard '2.safetensors'"),
    ("", "no shard ''"),
    (
      "0.safetensors",
      "'extra' is in the index and not in shard 0.safetensors",
    ),
    ("../x/0.safetensors", "outside of the folder"),
    ("a/../../0.safetensors", "outside of the folder"),
    ("/etc/passwd", "outside of the folder"),
    ("a\0b", "no shard"),
    ("n" * 300, "no shard"),
    (3, "no `weight_map`"),
  ],
)
def test_broken_shards(index, name, match):
  path = index(extra=name)
  assert_refused(lambda: weight_files.read_index(path), match)


def test_tensor_that_the_index_lacks(index, tmp_path):
  path = index()
  save_file(
    {**load_file(tmp_path / "0.safetensors"), "more": np.zeros(1)},
    tmp_path / "0.safetensors",
  )
  assert_refused(
    lambda: weight_files.read_index(path),
    "'more' is in shard 0.safetensors and not in the index",
  )


@pytest.mark.parametrize(
  ("text", "match"),
  [
    ("", "cannot read .*Expecting value"),
    ("[]", "not a JSON object"),
    ('{"error": "Entry not found"}', "no `weight_map`"),
    ('{"weight_map": []}', "no `weight_map`"),
  ],
)
def test_broken_index(tmp_path, text, match):
  path = tmp_path / "index.json"
  path.write_text(text)
  assert_refused(lambda: weight_files.read_index(path), match)
  path.unlink()
  assert_refused(lambda: weight_files.read_index(path), "cannot read")
