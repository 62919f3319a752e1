"""One file looked at: its single shots, how they score, what is wrong."""

import bisect
import dataclasses
import hashlib
import io
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_pipelines.footage import fingerprint, scores, shots
from data_pipelines.footage.manifest import Source
from data_pipelines.footage.quarantine import Drop
from data_pipelines.footage.shots import Shot
from data_pipelines.media import pictures, video
from data_pipelines.shards.dataset import Kind
from i2vgen_jax import preprocessing
from i2vgen_jax.errors import InputError

# What is scanned is this small, in pixels of the shorter side.
SIDE = 256
# Pixels a side below which nothing can be seen, and nothing be measured.
_MIN_SIDE = 16
# Frames a second that scores and fingerprints see.
_LOOKS = 8


@dataclasses.dataclass(frozen=True)
class ScanSettings:
  """What counts as a clip.

  Attributes:
    split_shots: whether films are cut where their shots change; if not, a row
      of the manifest is one clip.
    min_frames: shots with fewer are left out.
    max_seconds: longer shots become several clips of equal length.
    max_film_seconds: longer films are left out.
    join_captions: whether several captions of a file become one.
    aesthetics: `module:function` that gives a number to uint8[n h w 3], or
      None.
  """

  split_shots: bool = True
  min_frames: int = 16
  max_seconds: float | int = 10
  max_film_seconds: float | int = 3 * 3600
  join_captions: bool = False
  aesthetics: str | None = None


class Candidate(NamedTuple):
  """A clip or picture that may become a record.

  Attributes:
    kind: text_video or text_image.
    row: of the manifest.
    path: as the manifest has it.
    location: where the file is.
    captions: of the file.
    start: time of the first frame, in seconds.
    last: time of the last frame.
    num_frames: from first to last.
    fingerprint: 64 bits; see `fingerprint`.
    scores: by name.
  """

  kind: Kind
  row: int
  path: str
  location: str
  captions: tuple[str, ...]
  start: float
  last: float
  num_frames: int
  fingerprint: int
  scores: dict[str, float | int]

  @property
  def id(self) -> str:
    """16 hexadecimal digits of where it comes from."""
    text = f"{self.path}\n{self.start:.6f}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


Scanned = tuple[list[Candidate], list[Drop]]


def scan(source: Source, file: Path, settings: ScanSettings) -> Scanned:
  """Looks at every frame of a film, or at a picture.

  Args:
    source: the row of the manifest.
    file: where its file is on this machine.
    settings: see above.

  Raises:
    InputError: nothing of the file can be used.
  """
  if settings.join_captions:
    source = source._replace(captions=(" ".join(source.captions),))
  if source.is_picture:
    return [_picture(source, file, settings)], []
  return _film(source, file, settings)


def _picture(source: Source, file: Path, settings: ScanSettings) -> Candidate:
  image = preprocessing.load_picture(file)
  _check_size(image, source)
  image = pictures.shrink(image, SIDE)
  return _candidate(source, "text_image", image[None], [0.0], 1, settings)


def _film(source: Source, file: Path, settings: ScanSettings) -> Scanned:
  fps = video.probe(file, name=source.path)
  small = _Looks()
  frames = video.stream(
    file,
    short_side=SIDE,
    start=source.start,
    stop=source.stop,
    name=source.path,
  )
  watched = small.watch(_short(frames, source, settings))
  if settings.split_shots:
    found = shots.find_shots(watched, fps)
  else:
    found = [Shot(0, sum(1 for _ in watched))]
  clips: list[Candidate] = []
  drops: list[Drop] = []
  times = small.times
  if not times:
    raise InputError(
      f"no frame of {source.path} from start to end", "no-frames"
    )
  if len(times) > 1 and not (np.diff(times) > 0).all():
    raise InputError(
      f"the frame times of {source.path} do not rise", "no-times"
    )
  if not found:
    raise InputError(f"no single shot in {source.path}", "no-shot")
  for gap in _gaps(found, len(times)):
    text = f"{gap.stop - gap.start} frames that are no single shot"
    drops.append(_drop(source, times[gap.start], "no-shot", text))
  # One frame is no clip.
  least = max(settings.min_frames, 2)
  for shot in found:
    if shot.stop - shot.start < least:
      text = f"a shot of {shot.stop - shot.start} frames"
      drops.append(_drop(source, times[shot.start], "few-frames", text))
      continue
    pieces = _pieces(shot, times, settings.max_seconds)
    fewest = min(piece.stop - piece.start for piece in pieces)
    if fewest < least:
      text = f"{fewest} frames in {settings.max_seconds:g} seconds of a shot"
      drops.append(_drop(source, times[shot.start], "few-frames", text))
      continue
    for piece in pieces:
      few, at = small.of(piece)
      count = piece.stop - piece.start
      clip = _candidate(source, "text_video", few, at, count, settings)
      clips.append(
        clip._replace(start=times[piece.start], last=times[piece.stop - 1])
      )
  return clips, drops


def _candidate(
  source: Source,
  kind: Kind,
  few: UInt8[np.ndarray, "n h w 3"],
  at: list[float],
  num_frames: int,
  settings: ScanSettings,
) -> Candidate:
  """Of the frames that are looked at, and their times."""
  values = scores.score(few, np.array(at))._asdict()
  if settings.aesthetics:
    judge = scores.load_hook(settings.aesthetics)
    values["aesthetics"] = float(judge(few))
  return Candidate(
    kind=kind,
    row=source.row,
    path=source.path,
    location=source.location,
    captions=source.captions,
    start=at[0],
    last=at[-1],
    num_frames=num_frames,
    fingerprint=fingerprint.fingerprint(few),
    scores=values,
  )


def _check_size(picture: UInt8[np.ndarray, "h w 3"], source: Source) -> None:
  height, width, _ = picture.shape
  if min(height, width) < _MIN_SIDE:
    raise InputError(
      f"{source.path} is {width}x{height}, less than {_MIN_SIDE} pixels a side;"
      " give a larger one",
      "too-small",
    )


def _short(
  frames: Iterator, source: Source, settings: ScanSettings
) -> Iterator:
  first = None
  for time, frame in frames:
    _check_size(frame, source)
    first = time if first is None else first
    if time - first > settings.max_film_seconds:
      raise InputError(
        f"{source.path} is longer than {settings.max_film_seconds:g} seconds",
        "too-long",
      )
    yield time, frame


def _gaps(found: list[Shot], count: int) -> list[Shot]:
  """What lies between shots and is more than the trim of a cut."""
  stops = [0, *(shot.stop for shot in found)]
  starts = [*(shot.start for shot in found), count]
  pairs = zip(stops, starts, strict=True)
  return [Shot(a, b) for a, b in pairs if b - a > 2 * shots.TRIM]


def _pieces(
  shot: Shot, times: list[float], max_seconds: float | int
) -> list[Shot]:
  length = times[shot.stop - 1] - times[shot.start]
  count = min(max(math.ceil(length / max_seconds), 1), shot.stop - shot.start)
  ends = np.linspace(shot.start, shot.stop, count + 1).round().astype(int)
  return [Shot(a, b) for a, b in itertools.pairwise(ends.tolist())]


def _drop(source: Source, start: float, reason: str, detail: str) -> Drop:
  return Drop(source.row, source.path, start, reason, detail)


class _Looks:
  """Some frames of a film, kept as JPEG while its shots are still unknown.

  Attributes:
    times: of all frames, in seconds.
  """

  def __init__(self):
    self.times: list[float] = []
    self._numbers: list[int] = []
    self._jpegs: list[bytes] = []

  def watch(self, frames: Iterator) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Passes the frames on."""
    due = -math.inf
    for time, frame in frames:
      if time >= due:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=95)
        self._numbers.append(len(self.times))
        self._jpegs.append(buffer.getvalue())
        # A frame early rather than late, whatever the rounding of times.
        due = time + 1 / _LOOKS - 1e-3
      self.times.append(time)
      yield frame

  def of(self, shot: Shot) -> tuple[UInt8[np.ndarray, "n h w 3"], list[float]]:
    """The frames kept of a shot, at least one, and their times."""
    first, last = (
      bisect.bisect_left(self._numbers, frame)
      for frame in (shot.start, shot.stop)
    )
    # None in a shot shorter than the step: then the one before it will do.
    first = min(first, last - 1)
    few = [np.array(Image.open(io.BytesIO(x))) for x in self._jpegs[first:last]]
    return np.stack(few), [self.times[n] for n in self._numbers[first:last]]
