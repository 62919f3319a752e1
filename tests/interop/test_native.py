"""Weights of our own form: damage is found before Orbax opens anything."""

import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from i2vgen_jax.cascade import BUNDLED
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import read_json
from i2vgen_jax.interop import load_text_encoder, open_weights
from i2vgen_jax.interop.formats import native


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def truncate(path):
  path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {"flip": flip, "truncate": truncate, "remove": lambda p: p.unlink()}


@pytest.fixture(params=["one store", "a file for each array"])
def saved(request, weights, tmp_path, monkeypatch):
  """A text tower, and its folder in both layouts."""
  network = open_weights(weights / "text_encoder").one("text_encoder")
  params = network.load().params
  if request.param != "one store":
    monkeypatch.setattr(native, "_MAX_SHARED_BYTES", 0)
  native.save(tmp_path / "text_encoder", network.config, params)
  return tmp_path / "text_encoder", params


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_any_file_is_one_line_that_names_it(saved, damage):
  folder, _ = saved
  files = list(read_json(folder / "params" / "checksums.json"))
  # The arrays of the second layout are alike.
  for name in [*files[:12], files[-1]]:
    path = folder / "params" / name
    intact = path.read_bytes()
    DAMAGE[damage](path)
    with pytest.raises(InputError, match=r"^[^\n]*copy the folder again$") as e:
      load_text_encoder(folder)
    assert f"cannot read {path}: " in str(e.value)
    path.write_bytes(intact)
  load_text_encoder(folder)


def test_weights_without_checksums_are_read(saved):
  folder, params = saved
  (folder / "params" / "checksums.json").unlink()
  _, loaded = load_text_encoder(folder)
  jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize("text", ["", "[]", '{"_METADATA": 1}'])
def test_damaged_checksums_are_reported(saved, text):
  folder, _ = saved
  (folder / "params" / "checksums.json").write_text(text)
  with pytest.raises(InputError, match=r"checksums\.json"):
    load_text_encoder(folder)


def test_all_files_have_checksums(saved):
  for folder in (saved[0], *(path.parent for path in BUNDLED.glob("*/params"))):
    params = folder / "params"
    stored = {path for path in params.rglob("*") if path.is_file()}
    sums = params / "checksums.json"
    assert {params / name for name in read_json(sums)} == stored - {sums}


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_damage_prints_one_error_and_nothing_of_orbax(tmp_path, damage):
  folder = shutil.copytree(BUNDLED, tmp_path / "copy")
  stored = (folder / "base" / "params").rglob("d/*")
  largest = max(stored, key=lambda path: path.stat().st_size)
  DAMAGE[damage](largest)
  code = f"import i2vgen_jax; i2vgen_jax.load({str(folder)!r})"
  ended = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True
  )
  lines = ended.stderr.splitlines()
  assert ended.returncode == 1 and str(largest) in lines[-1]
  # The traceback.
  assert len(lines) < 80 and "Event loop" not in ended.stderr
