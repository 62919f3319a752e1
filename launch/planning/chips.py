"""TPU generations, and their devices without a TPU."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterable, Iterator

import jax
from jax.experimental import topologies

from i2vgen_jax.errors import InputError

_GB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """What is published of a chip, for each device that JAX sees.

  Peak, memory and bandwidth are those of Google Cloud's system architecture
  pages; rates of links are those of "How to Scale Your Model" (Austin et al.
  2025); clocks are the ones that reproduce published kernel timings.

  Attributes:
    name: prefix of the names of its topologies.
    kind: `jax.Device.device_kind` of its devices.
    peak: operations a second in bfloat16.
    memory: bytes of HBM.
    bandwidth: bytes of HBM a second.
    clock: cycles a second.
    cores: cores that share the work of a kernel.
    matrix_unit: rows and columns of its matrix units.
    link: bytes a second over one link in one direction.
    smallest: its smallest topology.
  """

  name: str
  kind: str
  peak: float
  memory: int
  bandwidth: float
  clock: float
  cores: int
  matrix_unit: int
  link: float
  smallest: str


CHIPS = {
  chip.name: chip
  for chip in (
    # A chip of v4 is two devices, as is one of v7x.
    Chip(
      "v4", "TPU v4", 137.5e12, 16 * _GB, 614e9, 1.05e9, 1, 128, 45e9, "2x2x1"
    ),
    Chip(
      "v5e", "TPU v5 lite", 197e12, 16 * _GB, 819e9, 1.5e9, 1, 128, 45e9, "2x2"
    ),
    Chip(
      "v5p", "TPU v5", 459e12, 95 * _GB, 2765e9, 1.75e9, 2, 128, 90e9, "2x2x1"
    ),
    Chip(
      "v6e",
      "TPU v6 lite",
      918e12,
      32 * _GB,
      1640e9,
      1.75e9,
      1,
      256,
      90e9,
      "2x2",
    ),
    Chip(
      "tpu7x", "TPU7x", 1153e12, 96 * _GB, 3690e9, 2.0e9, 1, 256, 90e9, "2x2x1"
    ),
  )
}
# Without these, libtpu asks the metadata server of a cloud machine.
_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_NAME = re.compile(r"(\w+):(\d+(?:x\d+){1,2})")


def chip_of(topology: str) -> Chip:
  """The chip of a topology such as v5e:4x4.

  Raises:
    InputError: the name is of no known chip.
  """
  match = _NAME.fullmatch(topology)
  if not match or match[1] not in CHIPS:
    known = ", ".join(f"{c.name}:{c.smallest}" for c in CHIPS.values())
    raise InputError(
      f"no topology {topology!r}; the smallest of each chip are {known}"
    )
  return CHIPS[match[1]]


def devices(topology: str) -> list[jax.Device]:
  """The devices of a topology, to compile for.

  Raises:
    InputError: there is no such topology, or libtpu is missing.
  """
  chip = chip_of(topology)
  with _environment():
    try:
      found = topologies.get_topology_desc(
        platform="tpu", topology_name=topology
      )
    except (NotImplementedError, RuntimeError, ValueError) as e:
      if "TPU support not installed" in str(e):
        raise InputError(
          "plan needs libtpu; install the extra: pip install 'i2vgen-jax[plan]'"
        ) from e
      raise InputError(
        f"libtpu has no topology {topology!r}; the smallest of this chip is "
        f"{chip.name}:{chip.smallest}, and larger ones double its sides"
      ) from e
  return list(found.devices)


def peak_of(devices: Iterable[jax.Device]) -> float | None:
  """Operations a second of devices together; None if a chip is not known."""
  peaks = {chip.kind: chip.peak for chip in CHIPS.values()}
  found = [peaks.get(device.device_kind) for device in devices]
  return None if None in found else sum(found)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
  before = dict(os.environ)
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  try:
    yield
  finally:
    os.environ.clear()
    os.environ.update(before)
