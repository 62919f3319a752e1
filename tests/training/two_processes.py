"""One of several processes of three runs; started by test_two_processes.py.

python two_processes.py ADDRESS PROCESSES ID FOLDER
"""

import itertools
import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parent))


# In the first the processes read different rows; in the second the frames of
# each clip span both, so that both read all rows.
LAYOUTS = ((2, 2, 2), (1, 1, 8))
# Printed before the last run, which goes on until SIGTERM.
ENDLESS = "endless run"


class SilentWriter:
  """Writes nothing to TensorBoard, whose import takes seconds."""

  def __init__(self, workdir):
    self.write_scalars = self.write_images = lambda *_: None
    self.flush = self.close = lambda: None


def run(workdir, layout, num_steps, sampling=False):
  """A short run of the stand-in denoiser on all devices of all processes."""
  from training_standins import make_batch, make_config, make_denoising

  from i2vgen_jax import sharding
  from i2vgen_jax.training import metrics
  from i2vgen_jax.training.loop import train

  # The stand-in's kernels are small; split all that can be split.
  sharding.MIN_SHARDED_SIZE = 1
  metrics._summary_writer = SilentWriter
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
    to_show=make_batch(0, num_frames=8) if sampling else None,
  )


def main(address, processes, process, folder):
  jax.config.update("jax_num_cpu_devices", 8 // int(processes))
  jax.distributed.initialize(address, int(processes), int(process))
  for layout in LAYOUTS:
    run(Path(folder, str(layout)), layout, num_steps=2, sampling=True)
  print(ENDLESS, flush=True)
  run(Path(folder, "endless"), LAYOUTS[0], num_steps=10**6)


if __name__ == "__main__":
  main(*sys.argv[1:])
