"""One of several processes of a run; started by test_two_processes.py.

python two_processes.py ADDRESS PROCESSES ID WORKDIR STEPS DATA FSDP FRAMES
"""

import itertools
import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parent))


def run(workdir, layout, num_steps):
  """A short run of the stand-in denoiser on all devices of all processes."""
  from training_standins import make_batch, make_config, make_denoising

  from i2vgen_jax import sharding
  from i2vgen_jax.training.loop import train

  # The stand-in's kernels are small; split all that can be split.
  sharding.MIN_SHARDED_SIZE = 1
  mesh = sharding.make_mesh(*layout)
  rows = sharding.process_rows(mesh, 8)

  def batches(start):
    for step in itertools.count(start):
      batch = make_batch(8 * step, num_frames=8)
      yield step, jax.tree.map(lambda x: x[rows], batch)

  return train(
    make_denoising(mesh),
    batches,
    make_config(num_steps=num_steps, log_every=1),
    workdir,
    mesh,
    to_show=make_batch(0, num_frames=8),
  )


def main(address, processes, process, workdir, num_steps, *layout):
  # The first process writes metrics. Imported late, TensorFlow would keep it
  # from the first collective for longer than the others wait on a busy host.
  import clu.metric_writers  # noqa: F401

  jax.config.update("jax_num_cpu_devices", 8 // int(processes))
  jax.distributed.initialize(address, int(processes), int(process))
  run(Path(workdir), tuple(map(int, layout)), int(num_steps))


if __name__ == "__main__":
  main(*sys.argv[1:])
