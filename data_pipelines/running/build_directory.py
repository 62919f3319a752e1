"""The directory of a build, which can be resumed and is finished once.

Intermediate files stay in `.build` until everything is done, so that a build
that was killed resumes where it stopped. A finished build does nothing.
"""

import collections
import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from data_pipelines.footage.quarantine import Drop, read_drops, write_drops
from data_pipelines.shards.dataset import Kind, describe
from i2vgen_jax.errors import InputError, reading, writing
from i2vgen_jax.files import (
  check_absent,
  read_json,
  remove_temporary,
  write_json,
)

_ADVICE = "remove it or choose another name"


class Built(NamedTuple):
  """Result of a build.

  Attributes:
    num_videos: number of clips written.
    num_images: number of pictures written.
    dropped: number of files, rows or shots left out, by reason.
  """

  num_videos: int
  num_images: int
  dropped: dict[str, int]


class BuildDirectory:
  """Output directory of one build.

  Attributes:
    path: data_dir of the datasets.
    work: folder for intermediate files, removed when the build is finished.
    identity: everything that decides the bytes of the build, as JSON.
  """

  def __init__(self, path: str | Path, identity: dict):
    self.path = Path(path)
    self.work = self.path / ".build"
    self.identity = json.loads(json.dumps(identity))
    self._started = self.work / "identity.json"
    self._finished = self.path / "build.json"

  def begin(self) -> Built | None:
    """Creates the directory, or recognises one of the same build.

    Returns:
      The result of a finished build; None if there is work to do.

    Raises:
      InputError: the directory belongs to another build, or cannot be created.
    """
    if self._finished.exists():
      known = self._same_build(self._finished)
      self._remove_work()
      with reading(self._finished, _ADVICE):
        return Built(*(known[name] for name in Built._fields))
    if self._started.exists():
      self._same_build(self._started)
      return None
    # A build that was killed at its start leaves its work folder only.
    if not (self.path.is_dir() and {*self.path.iterdir()} <= {self.work}):
      check_absent(self.path)
    with writing(self.path, "choose a writable directory"):
      # Its files may come from another manifest.
      shutil.rmtree(self.work, ignore_errors=True)
      self.work.mkdir(parents=True)
    write_json(self._started, {"identity": self.identity})
    return None

  def _same_build(self, path: Path) -> dict:
    known = read_json(path, advice=_ADVICE)
    if known.get("identity") != self.identity:
      raise InputError(
        f"{self.path} holds a build of another list or other settings;"
        f" {_ADVICE}"
      )
    return known

  @contextlib.contextmanager
  def lock(self) -> Iterator[None]:
    """Excludes a second build of the same directory on this machine.

    Raises:
      InputError: another process is building it.
    """
    with (self.work / "lock").open("w") as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as e:
        raise InputError(
          f"another process is building {self.path}; wait for it or stop it"
        ) from e
      except OSError:
        pass  # A file system without locks.
      yield

  def finish(
    self, split: str, counts: dict[Kind, int], drops: Iterable[Drop] = ()
  ) -> Built:
    """Writes metadata, quarantine and summary; the build is then finished.

    Args:
      split: name of the only split.
      counts: number of shards of each kind.
      drops: everything left out.
    """
    lengths = [
      describe(self.path, kind, split, counts[kind]) if kind in counts else 0
      for kind in ("text_video", "text_image")
    ]
    quarantine = self.path / "quarantine.jsonl"
    write_drops(quarantine, drops)
    reasons = collections.Counter(d.reason for d in read_drops(quarantine))
    built = Built(*lengths, dict(sorted(reasons.items())))
    write_json(self._finished, {"identity": self.identity, **built._asdict()})
    self._remove_work()
    return built

  def abandon(self) -> None:
    """Removes a build without result."""
    shutil.rmtree(self.work)
    if not any(self.path.iterdir()):
      self.path.rmdir()

  def _remove_work(self) -> None:
    """Leaves nothing but the result, even while other writers still run."""
    remove_temporary(self.path)
    shutil.rmtree(self.work, ignore_errors=True)
