"""The processes of a job on several hosts."""

import itertools

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint.multihost import get_barrier_sync_fn
from orbax.checkpoint.options import MultiprocessingOptions

from i2vgen_jax.errors import InputError

_counter = itertools.count()
# The same in all processes.
_waits = itertools.count()
# How long processes wait for work of one of them. That of a process which has
# ended is noticed earlier, by its missing heartbeats.
_PATIENCE_MS = 60 * 60 * 1000


def join(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Connects this process with the others of its job, if there are any.

  On Cloud TPU pods, GKE, Slurm and under Open MPI all arguments are known from
  the environment. Elsewhere a process is alone unless they are given.

  Args:
    coordinator: HOST:PORT of the first process, which all others can reach.
    num_processes: number of processes.
    process_id: number of this one, from 0.

  Raises:
    InputError: only some arguments are given, or the others do not answer.
  """
  given = {
    "coordinator": coordinator,
    "num-processes": num_processes,
    "process-id": process_id,
  }
  missing = [f"--{name}" for name, value in given.items() if value is None]
  if 0 < len(missing) < len(given):
    raise InputError(
      f"{' and '.join(missing)} missing; give --coordinator=HOST:PORT, "
      "--num-processes=N and --process-id=I together"
    )
  if not missing and not 0 <= process_id < num_processes:
    raise InputError(
      f"--process-id={process_id} of {num_processes} processes; they are "
      f"numbered from 0 to {num_processes - 1}"
    )
  try:
    jax.distributed.initialize(coordinator, num_processes, process_id)
  except ValueError as e:
    # So JAX says that it found no job.
    if missing and "coordinator_address" in str(e):
      return
    raise InputError(f"cannot join the other processes: {e}") from e
  except RuntimeError as e:
    line = str(e).strip().splitlines()[0]
    raise InputError(
      f"cannot join the other processes: {line}; check that all were started "
      "with the same --coordinator and --num-processes"
    ) from e


def is_first() -> bool:
  """Whether this process writes what one process of a job writes."""
  return jax.process_index() == 0


def wait_for_all(name: str) -> None:
  """Returns once all processes of the job have called it.

  They wait for JAX's coordination service. A collective would give up after 30
  seconds on CPUs, where one process may compile or export for longer.

  Args:
    name: what they wait for, in messages.
  """
  key = f"{name} {next(_waits)}"
  get_barrier_sync_fn()(key=key, timeout_ms=_PATIENCE_MS)


def from_first(flag: bool) -> bool:
  """What the first process says, in all processes of the job."""
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.broadcast_one_to_all(np.asarray(flag)))


def alone() -> MultiprocessingOptions:
  """Makes Orbax read and write without waiting for other processes."""
  mine = jax.process_index()
  return MultiprocessingOptions(
    primary_host=mine,
    active_processes={mine},
    barrier_sync_key_prefix=f"alone-{mine}-{next(_counter)}",
  )
