"""Our reader and writer of torch files compared with torch's own."""

import os
import pickle
import sys
import tracemalloc
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from weight_helpers import assert_refused, numbered, tensors_of

from i2vgen_jax.interop.formats import safetensors_files, torch_files
from i2vgen_jax.interop.formats.tensors import Tensors

TYPES = [
  getattr(torch, dtype.name) for dtype in safetensors_files.DTYPES.values()
]


def state():
  """One of each dtype, views of one storage, odd ones."""
  torch.manual_seed(0)
  x = torch.arange(24.0).reshape(4, 6)
  wide = torch.arange(60).bfloat16().reshape(3, 4, 5)
  return {
    **{str(t): (100 * torch.randn(3, 5)).to(t) for t in TYPES},
    "x": x,
    "cut": x[1:3, 2:],
    "turned": x.t(),
    "stepped": x[:, 1::2],
    "spread": x[1].expand(3, 6),
    "shared": x.view(2, 12),
    "other": wide.permute(2, 0, 1)[1:, :, ::3],
    "parameter": torch.nn.Parameter(torch.randn(2, 3)),
    "scalar": torch.tensor(3.0),
    "element": x[2, 3],
    "empty": torch.zeros(2, 0, 3),
  }


def assert_same(tensors, oracle):
  """Every value of these tests is exact in float64."""
  assert tensors.shapes == {key: tuple(x.shape) for key, x in oracle.items()}
  for key, tensor in oracle.items():
    got = tensors.read(key)
    assert f"torch.{got.dtype.name}" == str(tensor.dtype)
    assert tensors.dtypes[key] == got.dtype
    assert got.shape == tuple(tensor.shape)
    np.testing.assert_array_equal(
      got.astype(np.float64), tensor.detach().double().numpy()
    )


def save(path, content, new=True):
  torch.save(content, path, _use_new_zipfile_serialization=new)
  return path


both_forms = pytest.mark.parametrize("new", [True, False])


@both_forms
@pytest.mark.parametrize("name", ["a.pth", "a.bin", "a.ckpt", "a.safetensors"])
def test_files_of_torch_are_read(tmp_path, new, name):
  path = save(tmp_path / name, state(), new)
  tensors = torch_files.read(path)
  assert_same(tensors, state())
  assert all(tensors.read(key).flags.c_contiguous for key in state())


@both_forms
@pytest.mark.parametrize(
  "extra", [{}, {"step": 3}, {"epoch": 1, "optimizer_states": [{"lr": [0.1]}]}]
)
def test_state_dict_is_found(tmp_path, new, extra):
  path = save(tmp_path / "a", {"state_dict": state(), **extra}, new)
  assert_same(torch_files.read(path), state())


def test_ordered_dict_of_a_module(tmp_path):
  module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
  path = save(tmp_path / "a", module.state_dict())
  assert_same(torch_files.read(path), module.state_dict())


def test_zips_of_older_torch(tmp_path):
  """They lack the records from which newer versions compute offsets."""
  path = save(tmp_path / "new", state())
  with (
    zipfile.ZipFile(path) as new,
    zipfile.ZipFile(tmp_path / "old", "w") as old,
  ):
    for entry in reversed(new.infolist()):
      if not entry.filename.endswith((".format_version", "_alignment")):
        old.writestr(entry.filename, new.read(entry))
  assert_same(torch_files.read(tmp_path / "old"), state())


def test_zips_whose_records_are_not_aligned(tmp_path):
  path = save(tmp_path / "new", state())
  with (
    zipfile.ZipFile(path) as new,
    zipfile.ZipFile(tmp_path / "again", "w") as again,
  ):
    for entry in reversed(new.infolist()):
      again.writestr(entry.filename, new.read(entry))
  assert_same(torch_files.read(tmp_path / "again"), state())


@both_forms
def test_every_read_copies(tmp_path, new):
  tensors = torch_files.read(save(tmp_path / "a", state(), new))
  tensors.read("x")[:] = 7
  assert_same(tensors, state())


def test_one_tensor_costs_its_own_size(tmp_path):
  path = save(
    tmp_path / "a", {str(i): torch.full((2**18,), 1.0 * i) for i in range(16)}
  )
  tensors = torch_files.read(path)
  tracemalloc.start()
  got = tensors.read("7")
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert got.nbytes <= peak < 1.2 * got.nbytes
  assert (got == 7).all()


def resident_bytes():
  pages = Path("/proc/self/statm").read_text().split()[1]
  return int(pages) * os.sysconf("SC_PAGE_SIZE")


def test_opening_reads_no_values(tmp_path, monkeypatch):
  path = save(tmp_path / "a", {"x": torch.zeros(2**24)})
  torch_files.read(path)  # Imports what torch loads on first use.
  seen = []
  load = torch.load

  def spy(*args, **kwargs):
    seen.append(kwargs)
    return load(*args, **kwargs)

  monkeypatch.setattr(torch, "load", spy)
  before = resident_bytes()
  tensors = torch_files.read(path)
  assert resident_bytes() - before < 2**22
  assert [(x["mmap"], x["weights_only"]) for x in seen] == [(True, True)]
  assert tensors.read("x").nbytes == 2**26


class Hostile:
  """Creates a marker when it is unpickled."""

  def __init__(self, marker):
    self.marker = marker

  def __reduce__(self):
    return os.mkdir, (str(self.marker),)


@both_forms
@pytest.mark.parametrize("beside", [True, False])
def test_programs_are_refused_and_not_run(tmp_path, new, beside):
  hostile = Hostile(tmp_path / "marker")
  content = {"state_dict": state(), "step": hostile} if beside else hostile
  path = save(tmp_path / "a", content, new)
  assert_refused(
    lambda: torch_files.read(path), r"holds posix\.mkdir .*nothing was run"
  )
  assert not (tmp_path / "marker").exists()
  torch.load(path, weights_only=False)
  assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_are_refused_and_not_run(tmp_path, protocol):
  path = tmp_path / "a.pth"
  path.write_bytes(pickle.dumps(Hostile(tmp_path / "marker"), protocol))
  assert_refused(
    lambda: torch_files.read(path), r"posix\.mkdir|not a torch file"
  )
  assert not (tmp_path / "marker").exists()
  pickle.loads(path.read_bytes())
  assert (tmp_path / "marker").exists()


@both_forms
def test_whole_modules_are_refused(tmp_path, new):
  path = save(tmp_path / "a", torch.nn.Linear(2, 2), new)
  assert_refused(lambda: torch_files.read(path), r"holds torch\.nn\.\S+Linear")


@both_forms
@pytest.mark.parametrize(
  ("content", "match"),
  [
    ({"a": torch.zeros(2), "step": 3}, "'step' is a int"),
    ({"state_dict": {"a": torch.zeros(2), "b": None}}, "'b' is a NoneType"),
    ({"model": {"a": torch.zeros(2)}}, "'model' is a dict"),
    ({3: torch.zeros(2)}, "3 is a Tensor and not a named tensor"),
    ({"a\nb": "text"}, r"'a\\nb' is a str"),
    ([torch.zeros(2)], "holds a list, not a dict"),
    (torch.zeros(2), "holds a Tensor, not a dict"),
    ({"state_dict": [1]}, "holds a list, not a dict"),
    ({"a": torch.zeros(2, dtype=torch.complex64)}, "'a' is .* of complex64"),
    ({"a": torch.ones(2, dtype=torch.cfloat).conj().imag}, "'a' is a negated"),
    ({"a": torch.eye(2).to_sparse()}, "'a' is a torch.sparse_coo tensor"),
  ],
)
def test_other_contents(tmp_path, new, content, match):
  path = save(tmp_path / "a", content, new)
  assert_refused(lambda: torch_files.read(path), match)


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"Entry not found",
    b"<!DOCTYPE html><html></html>",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    b"PK\x03\x04 and no more",
    b"\x80\x02",
    b"\x80\x02}.",
    b"\x80\x02" + bytes(range(256)),
  ],
)
def test_other_kinds_of_files(tmp_path, data):
  path = tmp_path / "a.pth"
  path.write_bytes(data)
  assert_refused(
    lambda: torch_files.read(path), "not a torch file|holds no torch weights"
  )


@pytest.mark.parametrize("name", ["absent.pth", "."])
def test_no_file(tmp_path, name):
  assert_refused(lambda: torch_files.read(tmp_path / name), "cannot read")


@both_forms
def test_truncated_anywhere(tmp_path, new):
  path = save(tmp_path / "a", {"a": torch.ones(64), "b": torch.ones(3)}, new)
  whole = path.read_bytes()
  for size in range(0, len(whole), 61):
    path.write_bytes(whole[:size])
    assert_refused(
      lambda: torch_files.read(path), "download it again|nothing was run"
    )


def repack(path, **kwargs):
  """The same records, written by another zip tool."""
  with zipfile.ZipFile(path) as old:
    records = {entry.filename: old.read(entry) for entry in old.infolist()}
  with zipfile.ZipFile(path, "w", **kwargs) as new:
    for name, data in records.items():
      new.writestr(name, data)
  return path


def test_other_zips(tmp_path):
  path = repack(save(tmp_path / "a", state()), compression=zipfile.ZIP_DEFLATED)
  assert_refused(lambda: torch_files.read(path), "compressed zip")
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("paper/readme.txt", "hello")
  assert_refused(lambda: torch_files.read(path), "torch cannot load it")


def test_torchscript_is_refused(tmp_path):
  path = tmp_path / "a.pt"
  torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
  assert_refused(lambda: torch_files.read(path), "holds no torch weights")


@pytest.mark.parametrize(
  ("old", "new"),
  [
    # In the pickle: the tensor's size, its stride, and its storage's size.
    (b"K\x07\x85", b"K\x63\x85"),
    (b"K\x01\x85", b"K\x02\x85"),
    (b"K\x07t", b"K\x63t"),
  ],
)
def test_tensor_larger_than_its_bytes(tmp_path, old, new):
  path = save(tmp_path / "a", {"a": torch.arange(7.0)})
  with zipfile.ZipFile(path) as file:
    program = file.read("a/data.pkl")
  assert program.count(old) == 1
  path.write_bytes(
    path.read_bytes().replace(program, program.replace(old, new))
  )
  assert_refused(
    lambda: torch_files.read(path), "torch cannot load it|'a' are not in the"
  )


@both_forms
def test_without_torch(tmp_path, monkeypatch, new):
  path = save(tmp_path / "a", state(), new)
  monkeypatch.setitem(sys.modules, "torch", None)
  match = r"torch is not installed.*pip install 'i2vgen-jax\[interop\]'"
  assert_refused(lambda: torch_files.read(path), match)
  tensors = tensors_of({"a": np.zeros(1)})
  assert_refused(lambda: torch_files.write(tmp_path / "b", tensors), match)


def numpy_arrays():
  some = {
    dtype.name: np.arange(15).reshape(3, 5).astype(dtype)
    for dtype in safetensors_files.DTYPES.values()
  }
  return some | {
    "turned": np.arange(6.0).reshape(2, 3).T,
    "jax": np.asarray(jnp.arange(3, dtype=jnp.bfloat16)),
    "scalar": np.array(3, np.float32),
    "empty": np.zeros((2, 0), np.float32),
  }


@pytest.mark.parametrize("step", [None, 0, 7])
def test_torch_reads_our_files(tmp_path, step, recwarn):
  path = tmp_path / "a.pth"
  torch_files.write(path, tensors_of(numpy_arrays()), step)
  content = torch.load(path, weights_only=True)
  assert content.pop("step", None) == step
  assert list(content) == ["state_dict"]
  assert_same(tensors_of(numpy_arrays()), content["state_dict"])
  assert all(x.is_contiguous() for x in content["state_dict"].values())
  assert_same(torch_files.read(path), content["state_dict"])
  assert os.listdir(tmp_path) == [path.name]
  assert not recwarn.list


def test_slice_of_an_array_is_written_alone(tmp_path):
  wide = np.zeros(2**18)
  torch_files.write(tmp_path / "a", tensors_of({"a": wide[5:9]}))
  assert (tmp_path / "a").stat().st_size < 4000


def test_source_can_be_overwritten(tmp_path):
  path = save(tmp_path / "a", state())
  torch_files.write(path, torch_files.read(path))
  assert_same(torch_files.read(path), state())


def test_arrays_that_differ_from_their_listing_are_not_written(tmp_path):
  tensors = Tensors(
    "memory", {"x": (4,)}, {"x": np.dtype("f4")}, lambda _: np.zeros(3, "f4")
  )
  with pytest.raises(ValueError, match="x is"):
    torch_files.write(tmp_path / "a", tensors)
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("sizes", [(200_000,), (70_000, 70_000), (1,) * 9000])
def test_full_disk_keeps_the_old_file(tmp_path, small_disk, old, sizes):
  path = tmp_path / "a.pth"
  if old:
    path.write_bytes(old)
  tensors = tensors_of({str(i): np.zeros(n) for i, n in enumerate(sizes)})
  assert_refused(
    lambda: torch_files.write(path, tensors),
    f"cannot write {path}: File too large",
  )
  assert os.listdir(tmp_path) == ([path.name] if old else [])
  assert not old or path.read_bytes() == old


def test_writing_holds_one_copy(tmp_path):
  tensors = numbered(16, 2**18)
  torch_files.write(tmp_path / "warm", tensors_of({}))
  tracemalloc.start()
  torch_files.write(tmp_path / "a", tensors)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 1.1 * 16 * 2**20
  assert torch_files.read(tmp_path / "a").read("9")[5] == 9
