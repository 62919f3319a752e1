"""Workdirs of training runs in the place of weights."""

import shutil

import jax
import numpy as np
import pytest
from cascade_standin import write_cascade

from i2vgen_jax import lora
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import write_json, write_json_lines
from i2vgen_jax.interop import lora_files, open_weights
from i2vgen_jax.interop.stored import table_of
from launch import weights as run_weights


@pytest.fixture
def workdir(weights, tmp_path):
  """A run that has trained a base stage for the cascade `weights`."""
  folder = tmp_path / "run"
  folder.mkdir()
  write_json(folder / "config.json", {"frozen": str(weights)})
  write_json_lines(folder / "metrics.jsonl", [{"step": 1}])
  other = write_cascade(tmp_path / "other", seed=1)
  shutil.copytree(other / "base", folder / "export" / "base")
  return folder


def leaf(found, name):
  return np.asarray(jax.tree.leaves(found.networks[name].load().params)[0])


def test_the_exported_network_takes_the_place_of_the_frozen_one(
  workdir, weights
):
  found = run_weights.open_weights(str(workdir))
  before, trained = open_weights(weights), open_weights(workdir / "export")
  assert found.networks.keys() == before.networks.keys()
  assert found.tokenizer == before.tokenizer
  np.testing.assert_array_equal(leaf(found, "base"), leaf(trained, "base"))
  assert (leaf(found, "base") != leaf(before, "base")).any()
  np.testing.assert_array_equal(leaf(found, "refine"), leaf(before, "refine"))


def test_a_lora_is_added_to_what_it_was_trained_on(workdir, weights):
  base = open_weights(weights).networks["base"]
  tree = lora.init(jax.random.key(0), base.abstract_params, 2)
  # Both parts, so that it changes something.
  tree = jax.tree.map(lambda x: np.ones_like(x), tree)
  table = table_of(base.module, "diffusers")
  shutil.rmtree(workdir / "export")
  lora_files.save(
    workdir / "export" / "lora", tree, 1.0, table, {"stage": "base"}
  )
  told = {"frozen": str(weights), "init_from": str(weights)}
  told |= {"component": "base", "sampling": {"size": [64, 32]}}
  write_json(workdir / "config.json", told)
  changed = run_weights.open_weights(str(workdir)).networks["base"]
  pairs = zip(
    jax.tree.leaves(changed.load().params),
    jax.tree.leaves(base.load().params),
    strict=True,
  )
  assert any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)
  # What the run made pictures with takes the place of the same settings.
  sampling = base.config["sampling"] | told["sampling"]
  assert changed.config == base.config | {"sampling": sampling}


def test_other_paths_are_as_ever(weights):
  found = run_weights.open_weights(str(weights))
  assert found.folder == weights
  assert "refine" in run_weights.open_weights(None).networks


def test_runs_without_a_cascade_are_refused(workdir):
  shutil.move(workdir / "export", workdir / "away")
  with pytest.raises(InputError, match="i2vgen export"):
    run_weights.open_weights(str(workdir))
  shutil.move(workdir / "away", workdir / "export")
  write_json(workdir / "config.json", {"frozen": None})
  with pytest.raises(InputError, match="without a cascade"):
    run_weights.open_weights(str(workdir))
