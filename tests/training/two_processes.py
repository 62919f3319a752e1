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
  from training_standins import (
    VAE,
    ImageTower,
    TextTower,
    UNet,
    init_unet,
    make_batch,
    make_config,
    make_frozen,
  )

  from i2vgen_jax import sharding
  from i2vgen_jax.diffusion.schedules import make_schedule
  from i2vgen_jax.training.loop import train
  from i2vgen_jax.training.objectives import diffusion_objective

  # The stand-in's kernels are small: split all that divide.
  sharding.MIN_SHARDED_SIZE = 1
  mesh = sharding.make_mesh(*layout)
  rows = sharding.process_rows(mesh, 8)

  def batches(start):
    for step in itertools.count(start):
      batch = make_batch(8 * step, num_frames=8)
      yield step, jax.tree.map(lambda x: x[rows], batch)

  objective = diffusion_objective(
    unet=UNet(),
    vae=VAE(),
    text_encoder=TextTower(),
    image_encoder=ImageTower(),
    schedule=make_schedule("cosine", True),
    mesh=mesh,
    scaling_factor=0.5,
    encode_chunk=4,
    text_dropout=0.3,
    image_dropout=0.3,
    prediction_type="v",
    noise_offset=0.1,
    max_timestep=None,
    timestep_shift=1.0,
  )
  return train(
    init_params_fn=init_unet(UNet()),
    objective=objective,
    frozen=make_frozen(),
    batches=batches,
    config=make_config(num_steps=num_steps, log_every=1),
    workdir=workdir,
    mesh=mesh,
    sample_fn=lambda params, step: jax.device_get(
      jax.numpy.full((2, 2, 3), step, "uint8")
    ),
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
