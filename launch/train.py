"""Trains one network.

    i2vgen train --config=FILE:NAME --workdir=DIR [--config.KEY=VALUE ...]

The run resumes from what is in DIR. At its end the averaged weights are in
DIR/export/NETWORK, as a cascade folder has them.

A run that was stopped before its last step ends with status 75.

Example, on the frozen networks of the bundled cascade:

    i2vgen data build procedural --output data --num-clips 200
    i2vgen train --config=configs/i2vgen_xl.py:tiny --workdir=runs/tiny \\
        --config.frozen=i2vgen_jax/assets/tiny --config.train.num_steps=100

--config.KEY=VALUE sets any key; strings need no quotes, tuples are written as
in Python: --config.data.size="(64, 64)".

On Cloud TPU pods, on GKE and under Slurm, the same command on every host makes
one job. Elsewhere the processes of a job are named:

    i2vgen train ... --coordinator=HOST:PORT --num-processes=N --process-id=I

A resumed run must have the data, batch size and seed that it began with, as
they decide which examples it has seen. --allow=KEY,... permits a difference,
such as --allow=data.video_dirs.
"""

import contextlib
import difflib
import functools
import itertools
import os
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import jax
from absl import flags
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from data_pipelines.loading.augmentation import Augmentation
from data_pipelines.loading.mixing import Directories
from data_pipelines.loading.reader import Reader
from data_pipelines.shards import latents
from data_pipelines.shards.dataset import kind_of
from i2vgen_jax import processes, sharding
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import locked
from i2vgen_jax.interop.formats import native
from i2vgen_jax.training import record
from i2vgen_jax.training.autoencoder import Autoencoder
from i2vgen_jax.training.checkpoint import load_params
from i2vgen_jax.training.contrastive import Contrastive
from i2vgen_jax.training.denoising import Denoising, LatentsMemory
from i2vgen_jax.training.loop import make_workdir, train
from i2vgen_jax.training.lora import LoraDenoising
from i2vgen_jax.training.metrics import say
from i2vgen_jax.training.supervision import ending_with_others
from i2vgen_jax.training.task import Task
from i2vgen_jax.types import Batch
from launch import arguments
from launch.planning import chips

# The kinds of training, by the name in `config.objective`.
TASKS = {
  "diffusion": Denoising,
  "lora": LoraDenoising,
  "autoencoder": Autoencoder,
  "contrastive": Contrastive,
}
# Number of held-out batches whose loss is logged; they cost little beside the
# training steps between two evaluations.
_HELD_OUT_BATCHES = 8

# Number of examples that sample pictures and the export look at.
SHOWN_ROWS = 8

CONFIGS = Path(__file__).parents[1] / "configs" / "i2vgen_xl.py"
CONFIG = config_flags.DEFINE_config_file("config")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of the first process of the job."
)
NUM_PROCESSES = flags.DEFINE_integer(
  "num-processes", None, "Number of processes of the job."
)
PROCESS_ID = flags.DEFINE_integer(
  "process-id", None, "Number of this process, from 0."
)
ALLOW = flags.DEFINE_list(
  "allow", [], "Keys of the config that may differ from those of the workdir."
)

_MISTAKES = (flags.Error, AttributeError, LookupError, TypeError, ValueError)


def main(argv: list[str]) -> None:
  """Runs the trainer on a command line.

  Raises:
    InputError: an unknown or unusable flag or config key.
  """
  for arg in argv:
    # The value of a flag may be a tuple of paths.
    for word in re.split(r"['\"(), ]+", arg.partition("=")[2] or arg):
      arguments.check_path(word or arg)
  path = _config_path(argv)
  if {"-h", "--help"} & set(argv):
    print(_help(path), end="")
    return
  if path is not None:
    _check_keys(argv, load_config(path))
  # ml_collections looks there for the config keys that are set.
  sys.argv = ["i2vgen train", *argv]
  try:
    rest = flags.FLAGS(sys.argv)[1:]
  except _MISTAKES as e:
    raise InputError(f"{_last_line(e)}; see i2vgen train --help") from e
  if rest:
    raise InputError(f"train takes no argument {rest[0]!r}; see --help")
  if CONFIG.value is None or WORKDIR.value is None:
    raise InputError("train needs --config=FILE:NAME and --workdir=DIR")
  processes.join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
  done = run(CONFIG.value, Path(WORKDIR.value), allowed=ALLOW.value)
  if done < CONFIG.value.train.num_steps:
    say(f"resume with: i2vgen train {shlex.join(argv)}")
    # Schedulers start a job again by its status.
    raise SystemExit(os.EX_TEMPFAIL)


# ---- The command line ----


def _config_path(argv: list[str]) -> str | None:
  for arg, following in itertools.pairwise([*argv, None]):
    flag, equals, value = arg.partition("=")
    if flag == "--config":
      return value if equals else following
  return None


def _help(path: str | None) -> str:
  """The usage, the configs of a file, and the keys with their defaults."""
  if path is None and not CONFIGS.is_file():
    return __doc__
  config = (
    load_config(path) if path else runpy.run_path(str(CONFIGS))["common"]()
  )
  file = path.partition(":")[0] if path else str(CONFIGS)
  leaves = flatten_dict(config.to_dict(), sep=".")
  keys = [f"    --config.{key}={value}" for key, value in leaves.items()]
  title = f"Keys of {path or 'every config'}, with their defaults:"
  about = runpy.run_path(file)["__doc__"] or ""
  return "\n".join([__doc__, about, title, "", *keys, ""])


def load_config(path: str) -> ConfigDict:
  """The config before any key of it is set."""
  file, *argument = path.split(":", 1)
  if not Path(file).is_file():
    raise InputError(f"no config file {file}; check --config")
  get_config = runpy.run_path(file).get("get_config", lambda *_: None)
  try:
    config = get_config(*argument)
  except (TypeError, ValueError) as e:
    raise InputError(f"{_last_line(e)}, in --config={path}") from e
  if not isinstance(config, ConfigDict):
    raise InputError(
      f"no get_config in {file} that returns a ConfigDict; name a config file"
    )
  return config


def _check_keys(argv: list[str], config: ConfigDict) -> None:
  leaves = flatten_dict(config.to_dict(), sep=".")
  for arg in argv:
    key = arg.partition("=")[0].removeprefix("--config.").partition("[")[0]
    is_known = any(f"{leaf}.".startswith(f"{key}.") for leaf in leaves)
    if arg.startswith("--config.") and not is_known:
      near = difflib.get_close_matches(key, leaves, 1)
      hint = f"did you mean {near[0]}?" if near else "see the config file"
      raise InputError(f"unknown config key {key!r}; {hint}")


def _last_line(error: Exception) -> str:
  """The message alone; the lines before it are a traceback."""
  line = str(error).strip().splitlines()[-1]
  return line.removeprefix("ValueError: ").removeprefix("TypeError: ")


# ---- The training ----


def run(
  config: ConfigDict, workdir: Path, allowed: Collection[str] = ()
) -> int:
  """Trains what the config describes and exports it.

  The run resumes from what is in workdir. At its end the averaged weights are
  in workdir/export/NETWORK, as a cascade folder has them.

  Args:
    config: what to train.
    workdir: folder of the run.
    allowed: keys of the config that may differ from those of a run that is
      resumed.

  Returns:
    Number of training steps done; less than asked for if the run was stopped.

  Raises:
    InputError: config, data, frozen networks or workdir are unusable, or
      another training uses the workdir.
  """
  data = config.data
  augment = Augmentation(**data.augmentation)
  if data.keep_latents and augment != Augmentation():
    raise InputError(
      "config.data.keep_latents would keep every augmented view of a clip; "
      "turn it off, or leave config.data.augmentation at 1.0 and 0.0"
    )
  mesh = sharding.make_mesh(**config.mesh)
  sharding.check_parts(mesh, config.train.batch_size, config.train.accumulate)
  rows = sharding.process_rows(mesh, config.train.batch_size)
  if config.objective == "contrastive" and config.train.accumulate > 1:
    raise InputError(
      "the contrastive loss compares all rows of a batch; set "
      "config.train.accumulate=1"
    )
  task = make_task(config, mesh)
  reader = make_reader(
    config, task, data.video_dirs, data.image_dirs, augmentation=augment
  )
  for line in reader.report:
    say(line)
  _check_latents(config, task)
  to_show = shown_batch(reader)
  initial_params, scale = None, config.train.spatial_grad_scale
  if config.init_from is not None:
    rng = jax.random.key(config.train.seed)
    initial_params = functools.partial(task.load_params, config.init_from, rng)
  elif scale != 1:
    say(
      "without config.init_from, the layers that an image model would give "
      f"are random, and are trained at {scale:g} of the rate; give weights, or "
      "set config.train.spatial_grad_scale=1"
    )
  held_out = None
  if data.unseen_dirs:
    unseen = make_reader(config, task, data.unseen_dirs)
    held_out = functools.partial(_held_out, unseen, rows)
  make_workdir(workdir)
  lock = locked(workdir) if processes.is_first() else contextlib.nullcontext()
  with ending_with_others(), lock:
    record.check_same(workdir, config.to_dict(), allowed)
    state = train(
      task,
      lambda start: _batches(reader, start, rows, config, task),
      config,
      workdir,
      mesh,
      initial_params=initial_params,
      held_out=held_out,
      to_show=to_show,
      examples=[*_transformed(reader.examples(), config, task)],
      peak=chips.peak_of(mesh.devices.flat),
    )
    _report(reader)
    done = int(state.step)
    if done == config.train.num_steps and processes.is_first():
      export(config, workdir, task, to_show)
    processes.wait_for_all("the export")
  return done


def make_reader(
  config: ConfigDict,
  task: Task,
  video_dirs: Directories,
  image_dirs: Directories = (),
  augmentation: Augmentation | None = None,
) -> Reader:
  """Batches of a run from given datasets; see `Reader`."""
  return Reader(
    video_dirs,
    image_dirs,
    batch_size=config.train.batch_size,
    equal_work=config.data.equal_work,
    size=tuple(config.data.size),
    buckets=config.data.buckets,
    clip_size=task.clip_size,
    tokenizer=task.tokenizer,
    seed=config.train.seed,
    augmentation=augmentation,
    max_damaged=config.data.max_damaged,
  )


def make_task(config: ConfigDict, mesh: Mesh) -> Task:
  """The task that `config.objective` names.

  Raises:
    InputError: an unknown objective, or frozen networks that are missing.
  """
  if config.objective not in TASKS:
    raise InputError(
      f"unknown objective {config.objective!r}; use one of {', '.join(TASKS)}"
    )
  if config.frozen is None and config.objective != "autoencoder":
    raise InputError(
      "config.frozen is not set; name the cascade folder with the tokenizer "
      "and the frozen networks: --config.frozen=DIR"
    )
  return TASKS[config.objective].from_config(config, mesh)


def _check_latents(config: ConfigDict, task: Task) -> None:
  """Refuses latents of other networks: the U-Net would learn noise from them.

  Raises:
    InputError: a dataset of latents was encoded by other networks.
  """
  digest = functools.cache(lambda name: native.digest(task.frozen[name]))
  for given in (*config.data.video_dirs, *config.data.image_dirs):
    directory = Path(given if isinstance(given, str) else given[0])
    if not kind_of(directory).startswith("latent"):
      continue
    identity = latents.identity_of(directory)
    for name in sorted(identity.keys() & task.frozen.keys()):
      if identity[name] != digest(name):
        raise InputError(
          f"{directory} was encoded by another {name} than that in "
          f"{config.frozen}; encode it again with --weights={config.frozen}"
        )


def _batches(
  reader: Reader, start: int, rows: list[int], config: ConfigDict, task: Task
) -> Iterator[tuple[int, Batch]]:
  batches = _transformed(reader.iterate(start, rows), config, task)
  known = 0
  for step, batch in enumerate(batches, start):
    yield step, batch
    if (step + 1) % config.train.log_every == 0:
      _report(reader, known)
      known = len(reader.damaged)


def _transformed(
  batches: Iterable[Batch], config: ConfigDict, task: Task
) -> Iterable[Batch]:
  """Latents in place of frames, if the config keeps them."""
  if config.data.keep_latents and isinstance(task, Denoising):
    return map(LatentsMemory(task), batches)
  return batches


def _held_out(reader: Reader, rows: list[int]) -> Iterator[tuple[str, Batch]]:
  """The same batches each time, each with the name of its bucket."""
  for step in range(_HELD_OUT_BATCHES):
    yield str(reader.bucket(step)), reader.batch(step, rows)


def _report(reader: Reader, known: int = 0) -> None:
  """Says which captions were cut, and which records are damaged."""
  for problem in [*reader.damaged.values()][known:]:
    say(f"another example is read in place of a damaged one: {problem}")
  if reader.damaged:
    say(f"damaged records that were read so far: {len(reader.damaged)}")
  if reader.captions_cut:
    say(
      f"{reader.captions_cut} of {reader.captions_read} captions read so far"
      " are longer than the text encoder's input and were cut"
    )


def shown_batch(reader: Reader) -> Batch:
  """Rows of the first batch of clips, or of still images without clips."""
  moving = (n for n in range(100) if reader.bucket(n).num_frames > 1)
  rows = range(min(reader.batch_size, SHOWN_ROWS))
  return reader.batch(next(moving, 0), rows)


def export(
  config: ConfigDict,
  workdir: Path,
  task: Task,
  batch: Batch,
  step: int | None = None,
) -> Path:
  """Writes the averaged weights of a checkpoint to workdir/export.

  Args:
    config: of the run.
    workdir: folder of the run.
    task: what it trains.
    batch: of its data, on which scales are measured.
    step: number of steps done; None is the newest checkpoint.

  Returns:
    The folder, which has a folder for each network, as a cascade has, or
    `lora` alone.

  Raises:
    InputError: there is no such checkpoint, or it is damaged.
  """
  # From the files, as no process has the whole of a sharded state.
  params = load_params(workdir, step)
  params = jax.tree.map(lambda x: x.astype(config.export_dtype), params)
  folder = workdir / "export"
  shutil.rmtree(folder, ignore_errors=True)
  task.export(folder, params, batch)
  return folder
