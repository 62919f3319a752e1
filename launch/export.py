"""`i2vgen export`: weights of a training run as a cascade has them."""

import dataclasses
from pathlib import Path

import tyro
from ml_collections import ConfigDict

from i2vgen_jax import sharding
from i2vgen_jax.files import read_json
from i2vgen_jax.training import record
from launch import arguments, train
from launch.arguments import Count
from launch.progress import note


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
  """Writes the averaged weights of a checkpoint to WORKDIR/export.

      i2vgen export runs/released

  A finished run has done this already. A run that was stopped, or that is still
  going on, is left as it is. The data of the run must still be there.

  Attributes:
    workdir: Folder of the run.
    step: Number of training steps of the checkpoint; the newest by default.
  """

  workdir: tyro.conf.Positional[Path]
  step: Count | None = None


def main(argv: list[str]) -> None:
  """Exports a checkpoint.

  Raises:
    InputError: the folder has no such checkpoint, or its data or frozen
      networks are missing.
  """
  args = arguments.parse(Arguments, argv, "i2vgen export")
  config = ConfigDict(read_json(args.workdir / record.CONFIG))
  task = train.make_task(config, sharding.make_mesh())
  data = config.data
  reader = train.make_reader(config, task, data.video_dirs, data.image_dirs)
  batch = train.shown_batch(reader)
  folder = train.export(config, args.workdir, task, batch, args.step)
  names = sorted(path.name for path in folder.iterdir())
  note(f"wrote {', '.join(names)} to {folder}")
