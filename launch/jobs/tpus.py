"""TPU types, and the compiler flags of each generation.

Sources:
  topologies, machine types and labels of GKE: "Plan TPUs in GKE",
    https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus, and
    system_characteristics.py of https://github.com/AI-Hypercomputer/xpk
  accelerator types: https://cloud.google.com/tpu/docs/v5e, v5p and v6e
  software versions: https://cloud.google.com/tpu/docs/runtimes
  generations in Compute Engine:
    https://cloud.google.com/compute/docs/tpus/tpu-machines

docs/launch.md names the source of the flags of each generation.
"""

import dataclasses
import difflib
import math

from i2vgen_jax.errors import InputError

_RECIPES = "https://github.com/AI-Hypercomputer/tpu-recipes/tree/main/"


@dataclasses.dataclass(frozen=True)
class Generation:
  """What all slices of one generation have in common.

  Attributes:
    name: first part of the names of its types and, in `i2vgen plan`, of its
      topologies.
    cores: what a chip counts for in the number of a type.
    topologies: chips along each side, from small to large.
    machine: Compute Engine's type of a host with four chips.
    gke: value of the node label cloud.google.com/gke-tpu-accelerator.
    cloud_tpu: first part of its types in the Cloud TPU API; None where that
      API does not have it.
    runtime: TPU software version in the Cloud TPU API.
    image_family: of Compute Engine, in `IMAGE_PROJECT`; None where managed
      instance groups do not have it.
    flags: compiler options for LIBTPU_INIT_ARGS.
    flags_from: where the flags were published, for a diffusion model.
  """

  name: str
  cores: int
  topologies: tuple[str, ...]
  machine: str
  gke: str
  flags: tuple[str, ...]
  flags_from: str
  cloud_tpu: str | None = None
  runtime: str | None = None
  image_family: str | None = None


@dataclasses.dataclass(frozen=True)
class Slice:
  """One TPU type: chips that are connected with each other.

  Attributes:
    name: such as v5e-64.
    generation: of its chips.
    topology: chips along each side, such as 8x8.
  """

  name: str
  generation: Generation
  topology: str

  @property
  def chips(self) -> int:
    return math.prod(map(int, self.topology.split("x")))

  @property
  def hosts(self) -> int:
    """Number of machines, with four chips each."""
    return self.chips // CHIPS_PER_HOST


CHIPS_PER_HOST = 4
IMAGE_PROJECT = "ubuntu-os-accelerator-images"
_IMAGE_FAMILY = "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"
_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = (
  *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4"),
  *("4x4x8", "4x8x8", "8x8x8", "8x8x16"),
)

GENERATIONS = (
  Generation(
    "v5e",
    cores=1,
    topologies=_FLAT,
    machine="ct5lp-hightpu-4t",
    gke="tpu-v5-lite-podslice",
    cloud_tpu="v5litepod",
    runtime="v2-alpha-tpuv5-lite",
    flags=(
      "--xla_tpu_rwb_fusion=false",
      "--xla_tpu_dot_dot_fusion_duplicated=true",
      "--xla_tpu_scoped_vmem_limit_kib=65536",
    ),
    flags_from=_RECIPES + "inference/v5e/MaxDiffusion/SDXL",
  ),
  Generation(
    "v5p",
    cores=2,
    topologies=_DEEP,
    machine="ct5p-hightpu-4t",
    gke="tpu-v5p-slice",
    cloud_tpu="v5p",
    runtime="v2-alpha-tpuv5",
    image_family=_IMAGE_FAMILY,
    flags=(
      "--xla_tpu_scoped_vmem_limit_kib=65472",
      "--xla_enable_async_all_gather=true",
      "--xla_enable_async_all_reduce=true",
      "--xla_tpu_enable_async_collective_fusion=true",
      "--xla_tpu_enable_async_all_to_all=true",
      "--xla_max_concurrent_async_all_gathers=4",
      "--xla_latency_hiding_scheduler_rerun=5",
      "--xla_enable_transpose_trace=false",
    ),
    flags_from=_RECIPES + "training/v5p/wan2.1-14b/bf16-v5p-16",
  ),
  Generation(
    "v6e",
    cores=1,
    topologies=_FLAT,
    machine="ct6e-standard-4t",
    gke="tpu-v6e-slice",
    cloud_tpu="v6e",
    runtime="v2-alpha-tpuv6e",
    image_family=_IMAGE_FAMILY,
    flags=(
      "--xla_tpu_rwb_fusion=false",
      "--xla_tpu_dot_dot_fusion_duplicated=true",
      "--xla_tpu_scoped_vmem_limit_kib=131072",
    ),
    flags_from=_RECIPES + "inference/trillium/MaxDiffusion/StableDiffusion",
  ),
  Generation(
    "tpu7x",
    cores=2,
    topologies=_DEEP,
    machine="tpu7x-standard-4t",
    gke="tpu7x",
    image_family="ubuntu-accel-2404-amd64-tpu-tpu7x",
    flags=(
      "--xla_enable_async_all_gather=true",
      "--xla_tpu_enable_async_collective_fusion=true",
      "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
      "--xla_enable_async_all_reduce=true",
      "--xla_tpu_enable_sparse_core_collective_offload_all_reduce=true",
      "--xla_max_concurrent_async_all_gathers=4",
      "--xla_tpu_enable_async_all_to_all=true",
      "--xla_latency_hiding_scheduler_rerun=5",
      "--xla_tpu_rwb_fusion=false",
      "--xla_tpu_enable_sublane_major_scaling_bitcast_fusion=false",
      "--xla_tpu_impure_enable_packed_bf16_math_ops=false",
      "--xla_tpu_enable_sparse_core_reduce_scatter_v2=true",
      "--xla_tpu_enable_sparse_core_collective_offload_all_gather=true",
      "--xla_tpu_enable_sparse_core_collective_offload_2d_all_gather=true",
      "--xla_tpu_enable_all_gather_offload_tracing=true",
      "--xla_tpu_use_tc_device_shape_on_sc=true",
      "--xla_tpu_prefer_async_allgather_to_allreduce=true",
      "--xla_tpu_enable_sparse_core_collective_offload_reduce_scatter=true",
      "--xla_tpu_scoped_vmem_limit_kib=65536",
      "--xla_tpu_enable_tpu_custom_call_scoped_vmem_adjustments=true",
      "--xla_enable_transpose_trace=false",
    ),
    flags_from=_RECIPES + "training/ironwood/wan2.1-14b/bf16-tpu7x-4x4x4",
  ),
)


def _slices(generation: Generation) -> dict[str, Slice]:
  unnamed = [Slice("", generation, t) for t in generation.topologies]
  named = (
    dataclasses.replace(
      s, name=f"{generation.name}-{s.chips * generation.cores}"
    )
    for s in unnamed
  )
  return {s.name: s for s in named}


SLICES = {name: s for g in GENERATIONS for name, s in _slices(g).items()}


def find(name: str) -> Slice:
  """The slice of a TPU type.

  Raises:
    InputError: there is no such type.
  """
  if name not in SLICES:
    near = difflib.get_close_matches(name, SLICES, 1)
    hint = f"did you mean {near[0]}?" if near else f"use {', '.join(SLICES)}"
    raise InputError(f"unknown TPU type {name!r}; {hint}")
  return SLICES[name]
