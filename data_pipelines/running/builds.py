"""What every build has: a directory that goes on, ends, and is described.

What is done stays in the directory until all is done, so that a build that
was killed goes on where it was; a finished one does nothing.
"""

import collections
import contextlib
import fcntl
import functools
import itertools
import json
import math
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.footage.quarantine import Drop
from data_pipelines.media import pictures, video
from data_pipelines.procedural import world
from data_pipelines.running.runner import Progress
from data_pipelines.shards import tfrecord
from data_pipelines.shards.dataset import Example, Kind, describe, shard_path
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import remove_temporary, write_json, write_json_lines

KINDS: tuple[Kind, ...] = ("text_video", "text_image")

# Of x264: the small clips have edges that must stay sharp.
_CRF = 14


class Built(NamedTuple):
  """What a build wrote and what it had to leave out.

  Attributes:
    num_videos: clips written.
    num_images: pictures written.
    dropped: how many files, rows or shots were left out, by reason.
  """

  num_videos: int
  num_images: int
  dropped: dict[str, int]


def work_dir(output_dir: Path) -> Path:
  """Where a build keeps what is not yet part of the result."""
  return output_dir / ".build"


def begin(output_dir: Path, identity: dict) -> Built | None:
  """Makes the directory, or finds a build that is finished or goes on.

  Raises:
    InputError: it is another build's, or cannot be made.
  """
  identity = json.loads(json.dumps(identity))
  finished = output_dir / "build.json"
  started = work_dir(output_dir) / "identity.json"
  for path in (finished, started):
    if path.exists():
      told = _told(path)
      if told.get("identity") != identity:
        raise InputError(
          f"{output_dir} holds a build of another list or other settings; "
          "remove it or give another name"
        )
      if path == finished:
        _tidy(output_dir)
        return Built(told["num_videos"], told["num_images"], told["dropped"])
      return None
  if output_dir.exists() and not (
    # A build that was killed as it began or gave up has left this and no more.
    output_dir.is_dir() and {*output_dir.iterdir()} <= {started.parent}
  ):
    raise InputError(
      f"{output_dir} exists already; remove it or give another name"
    )
  try:
    # What is in it may be of another list.
    shutil.rmtree(started.parent, ignore_errors=True)
    started.parent.mkdir(parents=True)
    write_json(started, {"identity": identity})
  except OSError as error:
    raise InputError(
      f"cannot make {output_dir}: {error.strerror}; give a writable directory"
    ) from error
  return None


def _told(path: Path) -> dict:
  """What a file of a build says; nothing where it is another program's."""
  try:
    told = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise InputError(
      f"{path} cannot be read ({error}); remove it or give another name"
    ) from error
  return told if isinstance(told, dict) else {}


@contextlib.contextmanager
def alone(output_dir: Path) -> Iterator[None]:
  """Keeps a directory that was begun from a second build at the same time.

  Raises:
    InputError: another process on this machine builds there.
  """
  with (work_dir(output_dir) / "lock").open("w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise InputError(
        f"another process is building {output_dir}; wait for it, or end it"
      ) from error
    except OSError:
      pass  # A file system without locks.
    yield


def finish(
  output_dir: Path,
  identity: dict,
  split: str,
  counts: dict[Kind, int],
  drops: Iterable[Drop],
) -> Built:
  """Metadata, quarantine and summary; from then on the build is finished."""
  lengths = {
    kind: describe(output_dir, kind, split, count)
    for kind, count in counts.items()
  }
  reasons = collections.Counter()

  def counted() -> Iterator[dict]:
    for drop in drops:
      reasons[drop.reason] += 1
      yield drop._asdict()

  write_json_lines(output_dir / "quarantine.jsonl", counted())
  built = Built(
    num_videos=lengths.get("text_video", 0),
    num_images=lengths.get("text_image", 0),
    dropped=dict(sorted(reasons.items())),
  )
  write_json(
    output_dir / "build.json", {"identity": identity, **built._asdict()}
  )
  _tidy(output_dir)
  return built


def _tidy(output_dir: Path) -> None:
  """Nothing but the result stays, whatever writers still are at work."""
  remove_temporary(output_dir)
  shutil.rmtree(work_dir(output_dir), ignore_errors=True)


# ---- The procedural world ----


def build_procedural(
  output_dir: str | Path,
  num_clips: int,
  split: world.Split,
  *,
  size: tuple[int, int] = (128, 128),
  num_frames: int = 8,
  fps: float | int = 8,
  seed: int = 0,
  shard_size: int = 512,
  progress: Progress | None = None,
) -> Built:
  """Writes a text_video and a text_image set of the procedural world.

  Clip n is a function of (seed, n, split) alone. The pictures are one frame
  of each clip, and their captions leave the motion out.

  Args:
    output_dir: data_dir to make.
    num_clips: clips, and pictures, to write.
    split: which side of the held-out combinations.
    size: (width, height) in pixels, even.
    num_frames: frames per clip.
    fps: frames per second.
    seed: of all scenes.
    shard_size: examples per shard.
    progress: called after every shard.

  Raises:
    InputError: nothing to write, an odd size, or a directory that cannot be
      made.
  """
  if num_clips < 1 or num_frames < 1:
    raise InputError(
      f"cannot build {num_clips} clips of {num_frames} frames;"
      " both must be at least 1"
    )
  if size[0] % 2 or size[1] % 2:
    raise InputError(
      f"cannot build clips of {size[0]}x{size[1]}; H.264 needs an even width"
      " and height"
    )
  output_dir = Path(output_dir)
  identity = {
    "procedural": {
      "num_clips": num_clips,
      "split": split,
      "size": list(size),
      "num_frames": num_frames,
      "fps": fps,
      "seed": seed,
      "shard_size": shard_size,
    }
  }
  if done := begin(output_dir, identity):
    return done
  count = math.ceil(num_clips / shard_size)
  draw = functools.partial(_drawn, split, seed, size, num_frames, fps)
  for number, kind in itertools.product(range(count), KINDS):
    numbers = range(number * shard_size, num_clips)[:shard_size]
    path = shard_path(output_dir, kind, split, number, count)
    if not path.exists():
      path.parent.mkdir(parents=True, exist_ok=True)
      tfrecord.write_shard(path, (draw(kind, n).record(kind) for n in numbers))
    if progress:
      progress("clips", numbers.stop, num_clips)
  return finish(output_dir, identity, split, dict.fromkeys(KINDS, count), [])


def _drawn(
  split: world.Split,
  seed: int,
  size: tuple[int, int],
  num_frames: int,
  fps: float | int,
  kind: Kind,
  number: int,
) -> Example:
  scene = world.numbered_scene(seed, number, split)
  frames = world.render(scene, size, num_frames)
  name = f"procedural-{split}-{seed}-{number:06d}"
  width, height = size
  if kind == "text_image":
    still = frames[np.random.default_rng(number).integers(num_frames)]
    text = world.still_caption(scene)
    return Example(pictures.encode_jpeg(still), [text], name, 1, width, height)
  mp4 = video.encode_mp4(frames, fps, crf=_CRF, full_colour=True)
  text = world.caption(scene)
  return Example(mp4, [text], name, num_frames, width, height, fps)
