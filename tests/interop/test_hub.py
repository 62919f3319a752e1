"""Paths and ids of repositories, offline, with the Hub's cache."""

import fnmatch
import os
import subprocess
import sys

import huggingface_hub.constants as hub_constants
import pytest

from i2vgen_jax.errors import InputError
from i2vgen_jax.interop import hub
from i2vgen_jax.interop.formats import weight_files

ID = "some-lab/i2vgen.small_1"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """An empty cache, offline."""
  monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
  monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
  # A folder of this name in the working directory would be used.
  (tmp_path / "here").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  return tmp_path / "hub"


def write_snapshot(cache):
  """A repository as the Hub's client stores it."""
  root = cache / f"models--{ID.replace('/', '--')}"
  folder = root / "snapshots" / COMMIT
  (folder / "unet").mkdir(parents=True)
  (folder / "model_index.json").write_text("{}")
  (folder / "unet" / "config.json").write_text("{}")
  (root / "refs").mkdir()
  (root / "refs" / "main").write_text(COMMIT)
  return folder


@pytest.mark.parametrize("half", [False, True])
def test_id_in_the_cache(cache, half):
  folder = write_snapshot(cache)
  assert hub.resolve(ID, half) == folder


def test_path_takes_precedence_over_an_id(cache, tmp_path):
  write_snapshot(cache)
  (tmp_path / "here" / ID).mkdir(parents=True)
  found = hub.resolve(ID)
  assert found.samefile(tmp_path / "here" / ID)
  assert not found.samefile(cache)


def test_path_of_a_file(cache, tmp_path):
  file = tmp_path / "unet.pth"
  file.write_bytes(b"")
  assert hub.resolve(file) == file
  assert hub.resolve(str(file)) == file


def test_home_is_expanded(cache, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "weights").mkdir()
  assert hub.resolve("~/weights") == tmp_path / "weights"


def test_absent_id(cache):
  with pytest.raises(InputError) as raised:
    hub.resolve(ID)
  assert str(raised.value) == (
    f"{ID} is neither a path nor in the Hub's cache, and the Hub cannot be "
    "reached; connect, or give a folder"
  )


@pytest.mark.parametrize(
  "name", ["weights", "./some/weights", "/no/such/path", "a/b/c", "a b/c", ""]
)
def test_path_that_does_not_exist(cache, name, monkeypatch):
  def asked(*args, **kwargs):
    raise AssertionError("the Hub was asked")

  monkeypatch.setattr("huggingface_hub.snapshot_download", asked)
  if not name:  # The folder itself.
    assert hub.resolve(name).is_dir()
    return
  with pytest.raises(InputError) as raised:
    hub.resolve(name)
  assert str(raised.value) == f"no weights at {name}; check the path"


@pytest.mark.parametrize("name", ["../weights", "-a/b", "a--b/c", "a/b..c"])
def test_path_that_looks_like_an_id(cache, name):
  """One line, whatever the Hub's client reports."""
  with pytest.raises(InputError) as raised:
    hub.resolve(name)
  assert "\n" not in str(raised.value)
  assert name in str(raised.value)


def test_only_needed_files_are_requested(cache, monkeypatch, tmp_path):
  """The same repository holds the original files, which double its size."""
  asked = {}

  def download(name, allow_patterns):
    asked[name] = allow_patterns
    return tmp_path

  monkeypatch.setattr("huggingface_hub.snapshot_download", download)

  def taken(files, half):
    hub.resolve(ID, half)
    return [f for f in files if any(fnmatch.fnmatch(f, p) for p in asked[ID])]

  both = ["model_index.json", "unet/config.json", "tokenizer/merges.txt"]
  both += ["scheduler/scheduler_config.json"]
  exact = [
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "image_encoder/model-00001-of-00002.safetensors",
  ]
  halves = [
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "text_encoder/model.fp16.safetensors",
    "image_encoder/model.fp16-00001-of-00002.safetensors",
  ]
  never = [
    "models/i2vgen_xl_00854500.pth",
    "models/v2-1_512-ema-pruned.ckpt",
    "unet/diffusion_pytorch_model.bin",
    "README.md",
  ]
  files = both + exact + halves + never
  assert taken(files, half=False) == both + exact
  assert taken(files, half=True) == both + halves


@pytest.mark.parametrize(
  ("there", "half", "taken"),
  [
    ("model.safetensors", True, "model.safetensors"),
    ("model.fp16.safetensors", False, "model.fp16.safetensors"),
    ("pytorch_model.bin", True, "pytorch_model.bin"),
  ],
)
def test_other_files_if_the_preferred_ones_are_missing(
  cache, monkeypatch, tmp_path, there, half, taken
):
  """Other files are requested until every part has weights."""
  part = tmp_path / "text_encoder"
  part.mkdir()
  (part / "config.json").write_text("{}")

  def download(name, allow_patterns):
    if any(fnmatch.fnmatch(f"text_encoder/{there}", p) for p in allow_patterns):
      (part / there).touch()
    return tmp_path

  monkeypatch.setattr("huggingface_hub.snapshot_download", download)
  hub.resolve(ID, half)
  assert weight_files.weights_in(part) == part / taken


def test_environment_variables(tmp_path):
  """As a user sets them, before anything is imported."""
  folder = write_snapshot(tmp_path / "hub")
  script = f"from i2vgen_jax.interop import hub; print(hub.resolve({ID!r}))"
  environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
  done = subprocess.run(
    [sys.executable, "-c", script],
    env=os.environ | environment,
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert done.stdout.strip() == str(folder), done.stderr
