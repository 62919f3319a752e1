"""Files of a manifest on the local file system."""

import contextlib
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.running.guard import guarded
from i2vgen_jax.errors import InputError


@contextlib.contextmanager
def local_file(location: str, *, seconds: float | int) -> Iterator[Path]:
  """Yields the path of a file, or of a temporary copy of what a URI names.

  Args:
    location: absolute path or URI.
    seconds: time limit for copying.

  Raises:
    InputError: the file cannot be copied.
  """
  if "://" not in location:
    yield Path(location)
    return
  with tempfile.TemporaryDirectory() as folder:
    copy = Path(folder) / f"file{Path(location).suffix}"
    guarded(_copy, location, copy, seconds=seconds)
    yield copy


def _copy(location: str, copy: Path) -> None:
  try:
    if location.lower().startswith(("http://", "https://")):
      with urllib.request.urlopen(location) as source, copy.open("wb") as file:
        shutil.copyfileobj(source, file)
    else:
      import fsspec

      files, path = fsspec.url_to_fs(location)
      files.get_file(path, str(copy))
  except Exception as e:  # Libraries of object stores raise their own.
    said = " ".join(str(e).split()) or type(e).__name__
    raise InputError(
      f"cannot fetch {location}: {said}; supported are paths, file://, http://,"
      " https://, and the schemes of fsspec whose package is installed, such as"
      " s3:// with s3fs and gs:// with gcsfs",
      "missing",
    ) from e
