"""Files and folders that appear whole or not at all.

Each writer has a name of its own until the rename, so that two processes that
do the same work do not write into each other's file. One that is killed leaves
`*.tmp` behind, which `sweep` removes.
"""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
  """A name to write a file to; at the end it is renamed to `path`."""
  unfinished = _unfinished(path)
  try:
    yield unfinished
    os.replace(unfinished, path)
  except BaseException:
    unfinished.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def appearing_folder(path: Path) -> Iterator[Path]:
  """A folder to fill, at the end renamed to `path`; the first to end wins.

  The other one's files are then removed: never is a folder put together from
  what two processes wrote.
  """
  unfinished = _unfinished(path)
  unfinished.mkdir()
  try:
    yield unfinished
    try:
      os.rename(unfinished, path)
    except OSError:
      if not path.exists():
        raise
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)


def sweep(folder: Path) -> None:
  """Removes what killed writers left in a folder."""
  for path in folder.glob("*.tmp"):
    path.unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
  return path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.tmp")
