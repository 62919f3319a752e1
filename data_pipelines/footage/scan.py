"""The first round of a build: the shots in each file, and their scores."""

import bisect
import hashlib
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_pipelines.footage import fingerprint, scores, shots
from data_pipelines.footage.fetch import call_on_file
from data_pipelines.footage.groups import read_group
from data_pipelines.footage.manifest import ManifestRow
from data_pipelines.footage.quarantine import Drop, drop
from data_pipelines.footage.settings import FootageSettings, ScanSettings
from data_pipelines.footage.shots import Shot
from data_pipelines.media import pictures, video
from data_pipelines.shards.dataset import Kind
from i2vgen_jax import preprocessing
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import write_json_lines

# Files of a task that has scanned a group, with one JSON object per line.
CANDIDATES, DROPS = "candidates.jsonl", "drops.jsonl"
# Shorter side, in pixels, at which frames are scanned.
SIDE = 256
# Smaller pictures show too little to be measured.
_MIN_SIDE = 16
# Frames per second that scores and fingerprints use.
_SAMPLE_FPS = 8


class Candidate(NamedTuple):
  """A clip or picture that may become a record.

  Attributes:
    kind: text_video or text_image.
    row: row of the manifest.
    path: path of the file as the manifest gives it.
    location: absolute path or URI of the file.
    captions: captions of the row.
    start: time of the first frame, in seconds.
    last: time of the last frame.
    num_frames: number of frames from first to last.
    fingerprint: 64 bits; see `fingerprint`.
    scores: scores by name.
  """

  kind: Kind
  row: int
  path: str
  location: str
  captions: Sequence[str]
  start: float
  last: float
  num_frames: int
  fingerprint: int
  scores: dict[str, float | int]

  @property
  def id(self) -> str:
    """16 hexadecimal digits that identify the part of the file."""
    text = f"{self.path}\n{self.start:.6f}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def scan_group(
  work: Path, settings: FootageSettings, number: int, folder: Path
) -> None:
  """Scans the files of a group; see `running.runner.FolderTasks`.

  Args:
    work: folder with the groups.
    settings: settings of the build.
    number: number of the group.
    folder: folder for the candidates and the drops.
  """
  candidates: list[Candidate] = []
  drops: list[Drop] = []
  for row in read_group(work, number):
    try:
      good, bad = call_on_file(
        scan, row, settings.scan, seconds=settings.stall_seconds
      )
      candidates += good
      drops += bad
    except InputError as e:
      drops.append(drop(row, None, e))
  write_json_lines(folder / CANDIDATES, (c._asdict() for c in candidates))
  write_json_lines(folder / DROPS, (d._asdict() for d in drops))


def scan(
  row: ManifestRow, file: Path, settings: ScanSettings
) -> tuple[list[Candidate], list[Drop]]:
  """Looks at every frame of a video, or at a picture.

  Args:
    row: row of the manifest.
    file: path of its file on this machine.
    settings: what counts as a clip.

  Returns:
    The clips and pictures that can be used, and the parts that cannot.

  Raises:
    InputError: nothing in the file can be used.
  """
  if settings.join_captions:
    row = row._replace(captions=(" ".join(row.captions),))
  if not row.is_picture:
    return _scan_video(row, file, settings)
  image = preprocessing.load_picture(file)
  _check_size(image, row)
  frames = pictures.shrink(image, SIDE)[None]
  return [_candidate(row, "text_image", frames, [0.0], [0.0], settings)], []


def _scan_video(
  row: ManifestRow, file: Path, settings: ScanSettings
) -> tuple[list[Candidate], list[Drop]]:
  samples = _Samples(row, settings)
  found = _find_shots(row, file, settings, samples)
  clips: list[Candidate] = []
  drops: list[Drop] = []
  times = samples.times
  for gap in _gaps(found, len(times)):
    text = f"{gap.stop - gap.start} frames outside single shots"
    drops.append(drop(row, times[gap.start], InputError(text, "no-shot")))
  for shot in found:
    try:
      pieces = _pieces(shot, times, settings)
    except InputError as e:
      drops.append(drop(row, times[shot.start], e))
      continue
    for piece in pieces:
      inside = *samples.inside(piece), times[piece.start : piece.stop]
      clips.append(_candidate(row, "text_video", *inside, settings))
  return clips, drops


def _find_shots(
  row: ManifestRow, file: Path, settings: ScanSettings, samples: "_Samples"
) -> list[Shot]:
  """The shots of a video; takes samples of it."""
  fps = video.probe(file, name=row.path)
  frames = video.stream(
    file, short_side=SIDE, start=row.start, stop=row.stop, name=row.path
  )
  sampled = samples.collect(frames)
  if settings.split_shots:
    found = shots.find_shots(sampled, fps)
  else:
    found = [Shot(0, sum(1 for _ in sampled))]
  times = samples.times
  if not times:
    raise InputError(f"{row.path} has no frame from start to end", "no-frames")
  if any(after <= before for before, after in itertools.pairwise(times)):
    text = f"the frame times of {row.path} do not increase"
    raise InputError(text, "no-times")
  least = max(settings.min_frames, math.ceil(shots.MIN_SECONDS * fps))
  if not found and len(times) < least + 2 * shots.TRIM:
    text = f"{row.path} has {len(times)} frames, too few for a clip"
    raise InputError(text, "few-frames")
  if not found:
    raise InputError(f"{row.path} has no single shot", "no-shot")
  return found


def _candidate(
  row: ManifestRow,
  kind: Kind,
  samples: UInt8[np.ndarray, "n h w 3"],
  sample_times: list[float],
  times: list[float],
  settings: ScanSettings,
) -> Candidate:
  """A candidate with frames at `times`, measured on some of them."""
  values = scores.score(samples, np.array(sample_times))._asdict()
  if settings.aesthetics:
    aesthetics = scores.load_hook(settings.aesthetics)
    values["aesthetics"] = float(aesthetics(samples))
  return Candidate(
    kind=kind,
    row=row.row,
    path=row.path,
    location=row.location,
    captions=row.captions,
    start=times[0],
    last=times[-1],
    num_frames=len(times),
    fingerprint=fingerprint.fingerprint(samples),
    scores=values,
  )


def _check_size(picture: UInt8[np.ndarray, "h w 3"], row: ManifestRow) -> None:
  height, width, _ = picture.shape
  if min(height, width) < _MIN_SIDE:
    raise InputError(
      f"{row.path} is {width}x{height}, less than {_MIN_SIDE} pixels a side",
      "too-small",
    )


def _gaps(found: list[Shot], count: int) -> list[Shot]:
  """Frames between shots, where there are more than a cut's trim."""
  stops = [0, *(shot.stop for shot in found)]
  starts = [*(shot.start for shot in found), count]
  pairs = zip(stops, starts, strict=True)
  return [Shot(a, b) for a, b in pairs if b - a > 2 * shots.TRIM]


def _pieces(
  shot: Shot, times: list[float], settings: ScanSettings
) -> list[Shot]:
  """A shot in the fewest parts of equal length that are short enough."""
  frames = shot.stop - shot.start
  seconds = times[shot.stop - 1] - times[shot.start]
  count = min(max(math.ceil(seconds / settings.max_seconds), 1), frames)
  # A single frame has no motion.
  least = max(settings.min_frames, 2)
  if frames // count < least:
    text = f"{frames // count} frames in a clip, fewer than {least}"
    raise InputError(text, "few-frames")
  ends = np.linspace(shot.start, shot.stop, count + 1).round().astype(int)
  return [Shot(a, b) for a, b in itertools.pairwise(ends.tolist())]


class _Samples:
  """Some frames of a video, kept as JPEG until its shots are known.

  Attributes:
    times: times of all frames, in seconds.
  """

  def __init__(self, row: ManifestRow, settings: ScanSettings):
    self.times: list[float] = []
    self._row, self._max_seconds = row, settings.max_film_seconds
    self._numbers: list[int] = []
    self._jpegs: list[bytes] = []

  def collect(self, frames: Iterator) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yields the given frames without their times.

    Raises:
      InputError: the frames are too small, or the video is too long.
    """
    due = -math.inf
    for time, frame in frames:
      _check_size(frame, self._row)
      if self.times and time - self.times[0] > self._max_seconds:
        text = f"{self._row.path} is longer than {self._max_seconds:g} seconds"
        raise InputError(text, "too-long")
      if time >= due:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=95)
        self._numbers.append(len(self.times))
        self._jpegs.append(buffer.getvalue())
        # Rather a frame early than late, however times are rounded.
        due = time + 1 / _SAMPLE_FPS - 1e-3
      self.times.append(time)
      yield frame

  def inside(
    self, shot: Shot
  ) -> tuple[UInt8[np.ndarray, "n h w 3"], list[float]]:
    """The samples of a shot, at least one, and their times."""
    first = bisect.bisect_left(self._numbers, shot.start)
    stop = bisect.bisect_left(self._numbers, shot.stop)
    # A shot may be shorter than the step; the sample before it is used then.
    first = min(first, stop - 1)
    jpegs = self._jpegs[first:stop]
    frames = [np.array(Image.open(io.BytesIO(jpeg))) for jpeg in jpegs]
    return np.stack(frames), [self.times[n] for n in self._numbers[first:stop]]
