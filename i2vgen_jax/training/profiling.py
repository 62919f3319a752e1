"""Profiles of a run that is going on, asked for by a file in its workdir."""

import contextlib
from pathlib import Path
from typing import Any

import jax

from i2vgen_jax.errors import writing
from i2vgen_jax.processes import is_first
from i2vgen_jax.training.metrics import say

REQUEST = "profile"
# Number of steps of a profile; each can take tens of megabytes.
STEPS = 5


class Profiler(contextlib.AbstractContextManager):
  """Writes workdir/profile_STEP after someone has made workdir/profile.

  The profile is of the next `STEPS` steps on the devices of the first process,
  in the format of XProf and TensorBoard.
  """

  def __init__(self, workdir: Path):
    self._request = workdir / REQUEST
    self._last: int | None = None

  def after_step(self, done: int, look: bool) -> None:
    """Starts or ends a profile.

    Args:
      done: number of steps done.
      look: whether to look for the file, which can be slow on a bucket.

    Raises:
      InputError: the profile cannot be written.
    """
    if self._last is not None and done >= self._last:
      self._stop()
    if look and is_first() and self._last is None and self._request.exists():
      folder = self._request.with_name(f"{REQUEST}_{done:08d}")
      with writing(self._request, "remove it by hand"):
        self._request.unlink()
      jax.profiler.start_trace(folder)
      self._last = done + STEPS
      say(f"writes a profile of the next {STEPS} steps to {folder}")

  def _stop(self) -> None:
    self._last = None
    with writing(self._request.parent, "free the disk"):
      jax.profiler.stop_trace()

  def __exit__(self, *_: Any) -> None:
    if self._last is not None:
      self._stop()
