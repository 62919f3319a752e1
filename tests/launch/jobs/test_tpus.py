"""The table of TPU types."""

import os
import subprocess
import sys

import pytest

from launch.jobs import tpus
from launch.planning.chips import CHIPS


@pytest.mark.parametrize(
  ("name", "topology", "chips", "hosts"),
  [
    # https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
    ("v5e-64", "8x8", 64, 16),
    ("v5p-8", "2x2x1", 4, 1),
    ("v5p-128", "4x4x4", 64, 16),
    ("v6e-256", "16x16", 256, 64),
    ("tpu7x-32", "2x2x4", 16, 4),
  ],
)
def test_a_type_is_of_the_published_size(name, topology, chips, hosts):
  found = tpus.find(name)
  assert (found.topology, found.chips, found.hosts) == (topology, chips, hosts)


def test_plan_knows_every_generation():
  assert {g.name for g in tpus.GENERATIONS} <= set(CHIPS)


def test_libtpu_knows_every_flag():
  pytest.importorskip("libtpu")
  flags = {f.partition("=")[0]: f for g in tpus.GENERATIONS for f in g.flags}
  code = "from launch.planning import chips; print(chips.devices('v5e:2x2'))"

  def start(flags):
    return subprocess.run(
      [sys.executable, "-c", code],
      env={**os.environ, "LIBTPU_INIT_ARGS": " ".join(flags)},
      capture_output=True,
      text=True,
    )

  assert start(flags.values()).returncode == 0
  assert "no_such_flag" in start(["--xla_tpu_no_such_flag=true"]).stderr
