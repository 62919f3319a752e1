"""What a list names is a file with something in it, before it is opened."""

import os
import stat
from pathlib import Path

from i2vgen_jax.errors import InputError


def check_file(path: str | Path, called: str) -> None:
  """Makes sure that opening and reading a file comes to an end.

  Args:
    path: of the file; links are followed.
    called: what messages call it, such as "video a.mp4".

  Raises:
    InputError: missing, of no use to this user, empty, or no file at all but a
      folder, pipe or device: a pipe would never be opened, and a device never
      end.
  """
  try:
    status = os.stat(path)
    if stat.S_ISREG(status.st_mode):
      with open(path, "rb"):
        pass
  # Names with a zero byte, or that the file system cannot spell, are
  # ValueErrors.
  except (OSError, ValueError) as error:
    said = getattr(error, "strerror", None) or error
    raise InputError(
      f"cannot read {called}: {said}; check the path", "missing"
    ) from error
  if not stat.S_ISREG(status.st_mode):
    kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe or device"
    raise InputError(f"{called} is {kind}; give a file", "no-file")
  if not status.st_size:
    raise InputError(f"{called} is empty (0 bytes); give another file", "empty")
