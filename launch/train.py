"""`i2vgen train`: from a config, its data and its frozen networks to weights.

    i2vgen train --config=configs/i2vgen_xl.py:tiny --workdir=DIR \\
        [--config.train.num_steps=100 ...]

The run resumes from whatever DIR holds. At its end the averaged weights lie
in DIR/export/NETWORK, as a cascade folder holds them.
"""

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from data_pipelines.loading.augmentation import Augmentation
from data_pipelines.loading.reader import Reader
from data_pipelines.shards import latents
from data_pipelines.shards.dataset import kind_of
from i2vgen_jax import interop, sharding
from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.formats import native
from i2vgen_jax.models import build
from i2vgen_jax.tokenizer import Tokenizer
from i2vgen_jax.training import tasks
from i2vgen_jax.training.checkpoint import load_params
from i2vgen_jax.training.loop import train
from i2vgen_jax.training.metrics import say
from i2vgen_jax.types import Batch, Params

CONFIG = config_flags.DEFINE_config_file("config", help_string=__doc__)
# Whose loss is told; few enough to cost little beside the steps between.
_UNSEEN_BATCHES = 8
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")


def main(argv: list[str]) -> None:
  """Parses the flags and trains."""
  rest = flags.FLAGS(["i2vgen train", *argv])[1:]
  if rest:
    raise InputError(f"train takes no argument {rest[0]!r}; see --help")
  if CONFIG.value is None or WORKDIR.value is None:
    raise InputError("train needs --config=FILE:ARG and --workdir=DIR")
  run(CONFIG.value, Path(WORKDIR.value))


def run(config: ConfigDict, workdir: Path) -> None:
  """Trains what the config says and exports it.

  Raises:
    InputError: config, data, frozen networks or workdir are unusable.
  """
  if config.frozen is None:
    raise InputError(
      "config.frozen is not set; name the cascade folder with the tokenizer "
      "and the networks that stay frozen: --config.frozen=DIR"
    )
  augmentation = Augmentation(**config.data.augmentation)
  if config.data.keep_latents and augmentation != Augmentation():
    raise InputError(
      "config.data.keep_latents would keep every view that is drawn of a clip;"
      " turn it off, or leave config.data.augmentation at 1.0 and 0.0"
    )
  mesh = sharding.make_mesh(**config.mesh)
  tokenizer = Tokenizer.load(
    Path(config.frozen) / "tokenizer", max_length=tasks.text_length(config)
  )
  task = tasks.make_task(config, mesh, tokenizer)
  reader = _reader(config, tokenizer, augmentation)
  for line in reader.report:
    say(line)
  _check_latents(config, task)
  to_show = _moving_batch(reader)
  state = train(
    init_params_fn=task.init_params,
    objective=task.objective,
    frozen=task.frozen,
    batches=lambda start: _batches(reader, start, mesh, config, task),
    config=config,
    workdir=workdir,
    mesh=mesh,
    sample_fn=task.picture
    and (lambda params, _: task.picture(params, to_show)),
    unseen=_unseen(config, mesh, tokenizer),
    initial_params=_initial_params(config),
  )
  _say_cut(reader, config)
  if int(state.step) == config.train.num_steps and jax.process_index() == 0:
    # From the files: no process holds the whole of a sharded state.
    params = jax.tree.map(
      lambda x: x.astype(config.export_dtype), load_params(workdir)
    )
    shutil.rmtree(workdir / "export", ignore_errors=True)
    task.export(workdir / "export", params, to_show)


def _check_latents(config: ConfigDict, task: tasks.Task) -> None:
  """Latents of other networks than the frozen ones would train on noise.

  Raises:
    InputError: a dataset of latents was encoded by others.
  """
  digest = functools.cache(lambda name: native.digest(task.frozen[name]))
  for given in (*config.data.video_dirs, *config.data.image_dirs):
    directory = Path(given if isinstance(given, str) else given[0])
    if not kind_of(directory).startswith("latent"):
      continue
    told = latents.identity_of(directory)
    for name in sorted(told.keys() & task.frozen.keys()):
      if told[name] != digest(name):
        raise InputError(
          f"{directory} was encoded by another {name} than that in "
          f"{config.frozen}; encode it again with --weights={config.frozen}"
        )


def _initial_params(config: ConfigDict) -> Params | None:
  """Of `config.init_from`, float32: any weights for a U-Net, our own VAE."""
  if config.init_from is None:
    return None
  if config.objective == "autoencoder":
    vae = build.make_module("vae", config.vae.to_dict(), Path("config.vae"))
    abstract = build.abstract_params(vae)
    return native.load_params(Path(config.init_from), abstract, jnp.float32)
  if config.objective != "diffusion":
    raise InputError(
      f"config.init_from is no use to the objective {config.objective}; "
      "leave it out"
    )
  fields = config.unet.to_dict()
  unet = build.make_module(config.component, fields, Path("config.unet"))
  rng = jax.random.key(config.train.seed)
  return interop.initial_params(config.init_from, unet, rng)


def _batches(
  reader: Reader,
  start: int,
  mesh: Mesh,
  config: ConfigDict,
  task: tasks.Task,
) -> Iterator[tuple[int, Batch]]:
  rows = sharding.process_rows(mesh, config.train.batch_size)
  batches = reader.iterate(start, rows)
  if config.data.keep_latents and task.encode:
    batches = map(tasks.LatentsMemory(task.encode), batches)
  for step, batch in enumerate(batches, start):
    yield step, batch
    if (step + 1) % config.train.log_every == 0:
      _say_cut(reader, config)


def _reader(
  config: ConfigDict,
  tokenizer: Tokenizer,
  augmentation: Augmentation,
  unseen: bool = False,
) -> Reader:
  """Of the clips and pictures to train on, or of the clips kept apart."""
  data = config.data
  return Reader(
    data.unseen_dirs if unseen else data.video_dirs,
    () if unseen else data.image_dirs,
    batch_size=config.train.batch_size,
    size=tuple(data.size),
    buckets=data.buckets,
    clip_size=tasks.clip_image_size(config),
    tokenizer=tokenizer,
    seed=config.train.seed,
    augmentation=augmentation,
  )


def _unseen(
  config: ConfigDict, mesh: Mesh, tokenizer: Tokenizer
) -> Callable[[], Iterator[Batch]] | None:
  """The first batches of the datasets that are kept apart, if any are."""
  if not config.data.unseen_dirs:
    return None
  apart = _reader(config, tokenizer, Augmentation(), unseen=True)
  rows = sharding.process_rows(mesh, config.train.batch_size)
  return lambda: (apart.batch(n, rows) for n in range(_UNSEEN_BATCHES))


def _say_cut(reader: Reader, config: ConfigDict) -> None:
  # Begin and end alone remain of a caption that no network reads.
  if reader.captions_cut and tasks.text_length(config) > 2:
    say(
      f"{reader.captions_cut} of {reader.captions_read} captions read so far"
      " are longer than the text tower; their ends were cut"
    )


def _moving_batch(reader: Reader) -> Batch:
  """The first batch of the run that shows clips rather than stills, if any."""
  steps = range(100)
  moving = (s for s in steps if reader.bucket(s).num_frames > 1)
  return reader.batch(next(moving, 0))
