"""Files of a run: all of them or none."""

import os
from collections.abc import Mapping
from pathlib import Path

from i2vgen_jax.errors import InputError

_SUFFIXES = (".mp4", ".png", ".json")


def beside(video: Path) -> tuple[Path, Path, Path]:
  """The video, its contact sheet and its settings."""
  mp4, png, json = (video.with_suffix(suffix) for suffix in _SUFFIXES)
  return mp4, png, json


def check(video: Path, source: Path) -> None:
  """Raises InputError unless all three files can be written.

  Args:
    video: as asked for.
    source: the file that is read, which nothing may overwrite.
  """
  if video.suffix != ".mp4":
    raise InputError(f"output {video} is no .mp4 file; name one")
  folder = video.parent
  if not folder.is_dir():
    raise InputError(f"no folder {folder} for the output; make it first")
  for path in beside(video):
    try:
      _check_file(path, source)
    except OSError as e:
      raise _unwritable(path, e) from e


def _check_file(path: Path, source: Path) -> None:
  if path.is_dir():
    raise InputError(f"output {path} is a folder; name a file")
  if path.exists() and source.exists() and path.samefile(source):
    raise InputError(
      f"output {path} would overwrite the input; name another file"
    )
  _partial(path).touch()
  _partial(path).unlink()


def make_folder(folder: Path) -> None:
  """Raises InputError unless the folder is there, or can be made."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise _unwritable(folder, e) from e


def write(files: Mapping[Path, bytes]) -> None:
  """Writes all files under temporary names, then renames them.

  Raises:
    InputError: no room, or a folder that is not writable any more.
  """
  try:
    for path, data in files.items():
      _partial(path).write_bytes(data)
    for path in files:
      os.replace(_partial(path), path)
  except OSError as e:
    raise _unwritable(path, e) from e
  finally:
    for path in files:
      _partial(path).unlink(missing_ok=True)


def _partial(path: Path) -> Path:
  return path.with_name(f".{path.name}.partial")


def _unwritable(path: Path, error: OSError) -> InputError:
  return InputError(
    f"cannot write {path}: {error.strerror}; choose another place"
  )
