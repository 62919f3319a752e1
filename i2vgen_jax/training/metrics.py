"""What a run logs: TensorBoard files, and one console line per report.

And, if a project is named, a run of Weights & Biases.
"""

import collections
import contextlib
import datetime
import math
import statistics
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from i2vgen_jax.errors import InputError, writing
from i2vgen_jax.files import replacing
from i2vgen_jax.processes import is_first

# A loss above this multiple of its median is a sign of divergence.
MAX_RISE = 10
# Number of losses that have a median to compare with.
_FEW_LOSSES = 20


def _summary_writer(workdir: Path) -> Any:
  # clu.metric_writers imports TensorFlow: sampling must run without it.
  try:
    from clu import metric_writers
  except ImportError as e:
    raise InputError(
      f"training needs clu, tensorflow and tensorboard, and {e.name} is "
      "missing; install the package with its extra `data`"
    ) from e
  return metric_writers.SummaryWriter(str(workdir))


class _WandbWriter:
  """The part of `clu.metric_writers.MetricWriter` that a run uses."""

  def __init__(self, workdir: Path, project: str):
    try:
      import wandb
    except ImportError as e:
      raise InputError(
        "train.wandb is set, but wandb is not installed; run pip install "
        "wandb, or leave train.wandb out"
      ) from e
    # A resumed run goes on with the same curves.
    path = workdir / "wandb.id"
    if not path.exists():
      with replacing(path) as temporary:
        temporary.write_text(uuid.uuid4().hex)
    self._image = wandb.Image
    try:
      self._run = wandb.init(
        project=project,
        name=workdir.name,
        id=path.read_text(),
        resume="allow",
        dir=workdir,
      )
    except wandb.Error as e:
      raise InputError(
        f"cannot log to Weights & Biases: {e}; run wandb login, or leave "
        "train.wandb out"
      ) from e

  def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log(dict(values), step=step)

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    pictures = {k: [self._image(x) for x in v] for k, v in images.items()}
    self._run.log(pictures, step=step)

  def flush(self) -> None:
    """wandb sends by itself."""

  def close(self) -> None:
    self._run.finish()


class MetricWriter(contextlib.AbstractContextManager):
  """Scalars and pictures of a run; only the first process writes them."""

  def __init__(self, workdir: Path, project: str | None = None):
    """
    Args:
      workdir: folder of the run, with its TensorBoard files.
      project: of Weights & Biases, to log there as well.

    Raises:
      InputError: a package is missing, or wandb is not logged in.
    """
    self._writers = []
    self._samples = workdir / "samples"
    if is_first():
      self._writers.append(_summary_writer(workdir))
      if project:
        self._writers.append(_WandbWriter(workdir, project))

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """Values after `step` steps."""
    for writer in self._writers:
      writer.write_scalars(step, values)
      writer.flush()

  def picture(self, step: int, picture: UInt8[np.ndarray, "h w 3"]) -> None:
    """A sample picture, also to samples/step_NNNNNNNN.png."""
    if not self._writers:
      return
    for writer in self._writers:
      writer.write_images(step, {"sample": picture[None]})
      writer.flush()
    with writing(self._samples):
      self._samples.mkdir(exist_ok=True)
    with replacing(self._samples / f"step_{step:08d}.png") as temporary:
      Image.fromarray(picture).save(temporary, format="PNG")

  def __exit__(self, *_: Any) -> None:
    for writer in self._writers:
      writer.close()


class Work(NamedTuple):
  """What a step, or several, work on, all devices together.

  Attributes:
    examples: number of rows of the batch.
    frames: number of frames of all rows.
    flops: operations that are needed; see `flops.needed_flops`.
  """

  examples: int = 0
  frames: int = 0
  flops: int = 0


class Window:
  """Means of the metrics since the last report, and the speed of its steps.

  Attributes:
    bad_in_a_row: number of steps up to the last one whose gradient was not
      finite, or whose loss was above `MAX_RISE` times its median.
    sound: number of steps after which the weights are known to be good, since
      the loss of the step that follows is.
  """

  def __init__(self, start: int = 0):
    """A run that has done `start` steps."""
    self.bad_in_a_row = 0
    self.sound = self._step = start
    self._losses = collections.deque[float](maxlen=100)
    # The clock starts after the first step of a run, which compiles.
    self._clock: float | None = None
    self._start()

  def _start(self) -> None:
    self._sums: dict[str, float] = {}
    self._timed = self._applied = self._skipped = 0
    self._work = Work()

  def add(self, metrics: dict[str, Any], work: Work) -> None:
    """Adds the metrics of the next step; a skipped one is only counted."""
    if self._clock is None:
      self._clock = time.monotonic()
    else:
      self._timed += 1
      self._work = Work(*map(sum, zip(self._work, work, strict=True)))
    loss, skipped = float(metrics["loss"]), bool(metrics["skipped"])
    if skipped or loss > MAX_RISE * self.usual_loss:
      self.bad_in_a_row += 1
    else:
      self.bad_in_a_row = 0
      self.sound = self._step
      self._losses.append(loss)
    self._step += 1
    if skipped:
      self._skipped += 1
      return
    self._applied += 1
    for name, value in metrics.items():
      self._sums[name] = self._sums.get(name, 0.0) + float(value)

  @property
  def usual_loss(self) -> float:
    """Median of the last losses that were not bad; infinite for few."""
    if len(self._losses) < _FEW_LOSSES:
      return math.inf
    return statistics.median(self._losses)

  def report(self, peak: float | None = None) -> dict[str, float]:
    """Means since the last report; starts the next window.

    Args:
      peak: operations a second of all devices, of which the run's own are given
        as `mfu` (model FLOPs utilisation, Chowdhery et al. 2022).
    """
    values = {k: v / self._applied for k, v in self._sums.items()}
    values["skipped"] = float(self._skipped)
    now = time.monotonic()
    if self._timed:
      seconds = max(now - self._clock, 1e-9)
      values |= {
        "steps_per_second": self._timed / seconds,
        "examples_per_second": self._work.examples / seconds,
        "frames_per_second": self._work.frames / seconds,
        "tflops_per_second": self._work.flops / seconds / 1e12,
      }
      if peak:
        values["mfu"] = self._work.flops / seconds / peak
    self._clock = now
    self._start()
    return values


def progress_line(step: int, num_steps: int, values: dict[str, float]) -> str:
  """For example `step 200/1000  loss 0.1234  3.20 steps/s  ETA 0:04:10`."""
  parts = [f"step {step}/{num_steps}"]
  if "loss" in values:
    parts.append(f"loss {values['loss']:.4f}")
  if values["skipped"]:
    parts.append(f"skipped {values['skipped']:.0f}")
  if rate := values.get("steps_per_second"):
    left = datetime.timedelta(seconds=round((num_steps - step) / rate))
    parts += [f"{rate:.2f} steps/s", f"ETA {left}"]
  return "  ".join(parts)


def say(line: str) -> None:
  """Prints one line of progress on the first process."""
  if is_first():
    print(line, file=sys.stderr, flush=True)
