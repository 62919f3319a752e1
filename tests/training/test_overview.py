"""Sizes of a training state, whole and on each device."""

import jax
import optax
from training_standins import make_denoising, place

from i2vgen_jax import sharding
from i2vgen_jax.training import overview
from i2vgen_jax.training.state import abstract_state


def test_sizes_are_those_of_the_arrays_on_a_device(tmp_path, monkeypatch):
  # The stand-in's kernels are small; split all that can be split.
  monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 1)
  mesh = sharding.make_mesh(fsdp=8)
  task = make_denoising(mesh)
  state = abstract_state(task.init_params, optax.adam(1.0), mesh)
  frozen = place(task.frozen, mesh)
  count, held = overview.write(tmp_path, state, frozen)

  leaves = jax.tree.leaves(state.params)
  elements = sum(x.size for x in leaves)
  assert f"{elements:,} parameters in {len(leaves)} arrays" in count
  text = (tmp_path / overview.NAME).read_text()
  rows = {line[:28].strip(): line[28:].split() for line in text.splitlines()}
  # Two moments of each, and the count of updates.
  assert rows["optimizer"][:2] == [
    str(2 * len(leaves) + 1),
    f"{2 * elements + 1:,}",
  ]
  assert {*state.params, *(f"frozen {name}" for name in frozen)} <= rows.keys()
  on_first = [
    x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(frozen)
  ]
  expected = sum(on_first) / 2**20
  assert rows["frozen networks"][3] == f"{expected:,.1f}"
  assert f"frozen networks {expected:,.1f}" in held
  assert "'fsdp'" in text
