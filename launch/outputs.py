"""Files of a run: all of them or none."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from i2vgen_jax.errors import InputError, writing
from i2vgen_jax.files import check_writable, replacing


def beside(video: Path) -> tuple[Path, Path, Path]:
  """The video, its contact sheet and its settings."""
  return video, video.with_suffix(".png"), video.with_suffix(".json")


def check(video: Path, source: Path) -> None:
  """Raises InputError unless all three files can be written.

  Args:
    video: as given on the command line.
    source: the input file, which no output may overwrite.
  """
  if video.suffix != ".mp4":
    raise InputError(f"output {video} is not an .mp4 file; name one")
  if not video.parent.is_dir():
    raise InputError(
      f"no folder {video.parent} for the output; create it first"
    )
  for path in beside(video):
    with writing(path):
      if path.is_dir():
        raise InputError(f"output {path} is a folder; name a file")
      if path.exists() and source.exists() and path.samefile(source):
        raise InputError(
          f"output {path} would overwrite the input; name another file"
        )
    check_writable(path)


def make_folder(folder: Path) -> None:
  """Creates the folder, or raises InputError."""
  with writing(folder):
    folder.mkdir(parents=True, exist_ok=True)


def write(files: Mapping[Path, bytes]) -> None:
  """Writes all files, then renames them to their places.

  Raises:
    InputError: one of them cannot be written; none of them is then changed.
  """
  with contextlib.ExitStack() as stack:
    for path, data in files.items():
      stack.enter_context(replacing(path)).write_bytes(data)
