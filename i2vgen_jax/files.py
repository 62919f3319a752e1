"""Files and folders that appear whole or not at all, and JSON in them.

A writer works under a temporary name of its own in the same folder, which is
flushed to disk and renamed at the end. A process that is killed leaves
`NAME.*.tmp` behind; `remove_temporary` deletes such leftovers.
"""

import contextlib
import fcntl
import json
import os
import shutil
import stat
import uuid
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from i2vgen_jax.errors import InputError, reading, writing

LOCK = ".lock"
CHECKSUMS = "checksums.json"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
  """Yields a temporary path to write; at the end it is renamed to `path`.

  Raises:
    InputError: the file cannot be written; what was at `path` is unchanged.
  """
  temporary = _temporary(path)
  try:
    with writing(path):
      yield temporary
      _sync(temporary)
      os.replace(temporary, path)
      _sync(path.parent)
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
  """Yields a temporary folder to fill; at the end it is renamed to `path`.

  If another process has created `path` in the meantime, its folder stays and
  this one is removed: a folder never mixes the files of two writers.

  Raises:
    InputError: the folder cannot be written, or its parent does not exist.
  """
  temporary = _temporary(path)
  try:
    with writing(path):
      temporary.mkdir()
      yield temporary
      for part in temporary.rglob("*"):
        _sync(part)
      _sync(temporary)
      try:
        os.rename(temporary, path)
      except OSError:
        if not path.exists():
          raise
      _sync(path.parent)
  except InputError as e:
    # A writer of one file in it names the temporary folder.
    said = str(e).replace(str(temporary), str(path))
    raise InputError(said, e.reason) from e
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
  """Keeps other processes of this machine out of a folder.

  The lock ends with the process, however it ends, and with all child processes
  that are given the file descriptor which this yields.

  Raises:
    InputError: another process holds the lock, or the folder cannot be written.
  """
  with writing(folder):
    file = (folder / LOCK).open("a")
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise InputError(
        f"{folder} is in use by another process; wait for it, or choose "
        "another folder"
      ) from None
    yield file.fileno()


def write_checksums(folder: Path, left_out: Collection[str] = ()) -> None:
  """Writes the CRC-32 of every file below a folder into a file beside them.

  Args:
    folder: with the files.
    left_out: names of files that may change later.

  Raises:
    InputError: a file cannot be read, or the folder cannot be written.
  """
  names = sorted(
    path.relative_to(folder).as_posix()
    for path in folder.rglob("*")
    if path.is_file() and path.name not in (CHECKSUMS, *left_out)
  )
  with reading(folder, "check the disk"), ThreadPoolExecutor() as pool:
    sums = pool.map(_crc32, [folder / name for name in names])
    write_json(folder / CHECKSUMS, dict(zip(names, sums, strict=True)))


def check_checksums(
  folder: Path, chosen: Callable[[str], bool] = lambda name: True
) -> None:
  """Compares files with the checksums beside them, if there are any.

  Args:
    folder: of `write_checksums`.
    chosen: path of a file in the folder -> whether to check it.

  Raises:
    InputError: a file is missing or damaged.
  """
  if not (folder / CHECKSUMS).exists():
    return
  sums = read_json(folder / CHECKSUMS)

  def check(name: str) -> None:
    with reading(folder / name, "copy the folder again"):
      if _crc32(folder / name) != sums[name]:
        raise ValueError(f"damaged, its CRC-32 is not that in {CHECKSUMS}")

  with ThreadPoolExecutor() as pool:
    list(pool.map(check, filter(chosen, sums)))


def _crc32(path: Path) -> str:
  crc = 0
  with path.open("rb") as file:
    while block := file.read(2**20):
      crc = zlib.crc32(block, crc)
  return f"{crc:08x}"


def check_absent(path: Path) -> None:
  """Raises InputError if something exists at `path`."""
  if path.exists():
    raise InputError(f"{path} exists already; remove it or choose another path")


def check_writable(path: Path) -> None:
  """Raises InputError unless a file can be created at `path`."""
  temporary = _temporary(path)
  with writing(path):
    temporary.touch()
    temporary.unlink()


def remove_temporary(folder: Path) -> None:
  """Deletes the files that killed writers left in a folder."""
  for path in folder.glob("*.tmp"):
    path.unlink(missing_ok=True)


def check_file(path: str | Path, name: str) -> None:
  """Raises InputError unless `path` is a readable file with content.

  A pipe would block for ever when opened, and a device may never end.

  Args:
    path: links are followed.
    name: how messages refer to it, for example "video a.mp4".
  """
  try:
    status = os.stat(path)
    if stat.S_ISREG(status.st_mode):
      with open(path, "rb"):
        pass
  # ValueError: the name has a zero byte or cannot be encoded.
  except (OSError, ValueError) as e:
    said = getattr(e, "strerror", None) or e
    raise InputError(
      f"cannot read {name}: {said}; check the path", "missing"
    ) from e
  if not stat.S_ISREG(status.st_mode):
    kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe or device"
    raise InputError(f"{name} is {kind}; give a file", "no-file")
  if not status.st_size:
    raise InputError(f"{name} is empty (0 bytes); give another file", "empty")


def read_json(
  path: Path, kind: type = dict, advice: str = "copy the file again"
) -> Any:
  """The value in a JSON file.

  Raises:
    InputError: the file cannot be read, is not JSON, or holds another type
      than `kind`.
  """
  with reading(path, advice):
    value = json.loads(path.read_text("utf-8"))
    if not isinstance(value, kind):
      names = {dict: "object", list: "array"}
      raise ValueError(f"not a JSON {names.get(kind, kind.__name__)}")
  return value


def write_json(path: Path, value: Any) -> None:
  """Writes a value as indented JSON."""
  with replacing(path) as temporary:
    temporary.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
  """Writes one JSON value per line."""
  with replacing(path) as temporary, temporary.open("w") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)


def _temporary(path: Path) -> Path:
  return path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def _sync(path: Path) -> None:
  """Flushes a file or folder to disk, where the file system supports it."""
  with contextlib.suppress(OSError):
    descriptor = os.open(path, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)
