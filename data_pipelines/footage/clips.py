"""Clips and pictures of a file: detection, measurement and encoding.

The first round of a build scans every file for candidates; the second encodes
those that were selected.
"""

import bisect
import hashlib
import io
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_pipelines.footage import fingerprint, scores, shots
from data_pipelines.footage.manifest import ManifestRow
from data_pipelines.footage.quarantine import Drop
from data_pipelines.footage.settings import ScanSettings
from data_pipelines.footage.shots import Shot
from data_pipelines.media import pictures, video
from data_pipelines.shards.dataset import Example, Kind
from i2vgen_jax import preprocessing
from i2vgen_jax.errors import InputError

# Shorter side, in pixels, at which frames are scanned.
SIDE = 256
# Smaller pictures show too little to be measured.
_MIN_SIDE = 16
# Frames per second that scores and fingerprints use.
_SAMPLE_FPS = 8
# x264 rate factor: visually lossless.
_CRF = 18


class Candidate(NamedTuple):
  """A clip or picture that may become a record.

  Attributes:
    source: row of the manifest that lists the file.
    kind: text_video or text_image.
    start: time of the first frame, in seconds.
    last: time of the last frame.
    num_frames: number of frames from first to last.
    fingerprint: 64 bits; see `fingerprint`.
    scores: scores by name.
  """

  source: ManifestRow
  kind: Kind
  start: float
  last: float
  num_frames: int
  fingerprint: int
  scores: dict[str, float | int]

  @property
  def id(self) -> str:
    """16 hexadecimal digits that identify the part of the file."""
    text = f"{self.source.path}\n{self.start:.6f}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def scan(
  row: ManifestRow, file: Path, settings: ScanSettings
) -> tuple[list[Candidate], list[Drop]]:
  """Measures every frame of a video, or a picture.

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
  return [_measure(row, "text_image", frames, [0.0], [0.0], settings)], []


def _scan_video(
  row: ManifestRow, file: Path, settings: ScanSettings
) -> tuple[list[Candidate], list[Drop]]:
  samples = _Samples(row, settings)
  found, times = _find_shots(file, samples), samples.times
  clips: list[Candidate] = []
  drops: list[Drop] = []
  edges = [0, *itertools.chain(*found), len(times)]
  for start, stop in zip(edges[::2], edges[1::2], strict=True):
    if stop - start > 2 * shots.TRIM:
      text = f"{stop - start} frames outside single shots"
      drops.append(Drop.of(row, times[start], InputError(text, "no-shot")))
  for shot in found:
    try:
      pieces = _pieces(shot, times, settings)
    except InputError as e:
      drops.append(Drop.of(row, times[shot.start], e))
      continue
    for piece in pieces:
      inside = *samples.inside(piece), times[piece.start : piece.stop]
      clips.append(_measure(row, "text_video", *inside, settings))
  return clips, drops


def _find_shots(file: Path, samples: "_Samples") -> list[Shot]:
  """The shots of a video; fills `samples`."""
  row, settings, times = samples.row, samples.settings, samples.times
  fps = video.probe(file, name=row.path)
  frames = samples.collect(file)
  if settings.split_shots:
    found = shots.find_shots(frames, fps, times)
  else:
    found = [Shot(0, sum(1 for _ in frames))]
  if not times:
    raise InputError(f"{row.path} has no frame from start to end", "no-frames")
  if (np.diff(times) <= 0).any():
    text = f"the frame times of {row.path} do not increase; encode it again"
    raise InputError(text, "no-times")
  least = max(settings.min_frames, math.ceil(shots.MIN_SECONDS * fps))
  if not found and len(times) < least + 2 * shots.TRIM:
    text = f"{row.path} has {len(times)} frames, too few for a clip"
    raise InputError(text, "few-frames")
  if not found:
    raise InputError(f"{row.path} has no single shot", "no-shot")
  return found


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
  return list(itertools.starmap(Shot, itertools.pairwise(ends.tolist())))


def _measure(
  row: ManifestRow,
  kind: Kind,
  frames: video.Frames,
  frame_times: list[float],
  times: list[float],
  settings: ScanSettings,
) -> Candidate:
  """The candidate with frames at `times`, measured on some of them."""
  values = scores.score(frames, np.array(frame_times))._asdict()
  if settings.aesthetics:
    aesthetics = scores.load_hook(settings.aesthetics)
    values["aesthetics"] = float(aesthetics(frames))
  look = fingerprint.fingerprint(frames)
  return Candidate(row, kind, times[0], times[-1], len(times), look, values)


def _check_size(picture: video.Frame, row: ManifestRow) -> None:
  height, width, _ = picture.shape
  if min(height, width) < _MIN_SIDE:
    text = f"{width}x{height}, less than {_MIN_SIDE} pixels a side"
    raise InputError(f"{row.path} is {text}", "too-small")


class _Samples:
  """Some frames of a video, kept as JPEG until its shots are known.

  Attributes:
    row: row of the manifest.
    settings: what counts as a clip.
    times: times of all frames, in seconds.
  """

  def __init__(self, row: ManifestRow, settings: ScanSettings):
    self.row, self.settings = row, settings
    self.times: list[float] = []
    # Frame numbers and JPEG files.
    self._kept: list[tuple[int, bytes]] = []

  def collect(self, file: Path) -> Iterator[video.Frame]:
    """Yields the frames from the start to the end that the row gives.

    Raises:
      InputError: the frames are too small, or the video is too long.
    """
    row, limit, due = self.row, self.settings.max_film_seconds, -math.inf
    for time, frame in video.stream(
      file, short_side=SIDE, start=row.start, stop=row.stop, name=row.path
    ):
      _check_size(frame, row)
      if self.times and time - self.times[0] > limit:
        text = f"{row.path} is longer than {limit:g} seconds"
        raise InputError(text, "too-long")
      if time >= due:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=95)
        self._kept.append((len(self.times), buffer.getvalue()))
        # Early rather than late by a frame, however times are rounded.
        due = time + 1 / _SAMPLE_FPS - 1e-3
      self.times.append(time)
      yield frame

  def inside(self, shot: Shot) -> tuple[video.Frames, list[float]]:
    """The samples of a shot, at least one, and their times."""
    first, stop = (bisect.bisect_left(self._kept, (edge,)) for edge in shot)
    # A shot may be shorter than the step; the sample before it is used then.
    kept = self._kept[min(first, stop - 1) : stop]
    frames = [preprocessing.load_picture(jpeg) for _, jpeg in kept]
    return np.stack(frames), [self.times[number] for number, _ in kept]


def encode(candidate: Candidate, file: Path, short_side: int) -> Example:
  """The example of a candidate, read from its file.

  Raises:
    InputError: the file has changed since it was scanned.
  """
  if candidate.kind == "text_image":
    image = pictures.shrink(preprocessing.load_picture(file), short_side)
    fps, media = 0.0, pictures.encode_jpeg(image)
  else:
    clip = _read_clip(candidate, file, short_side)
    _, image = first = next(clip)
    fps = (candidate.num_frames - 1) / (candidate.last - candidate.start)
    clip, size = itertools.chain([first], clip), image.shape[1::-1]
    media = video.encode_stream(clip, fps, size, crf=_CRF)
  height, width, _ = image.shape
  return Example(
    media=media,
    captions=candidate.source.captions,
    id=candidate.id,
    num_frames=candidate.num_frames,
    width=width,
    height=height,
    fps=fps,
    source=candidate.source.path,
    start=candidate.start,
    scores=candidate.scores,
  )


def _read_clip(
  candidate: Candidate, file: Path, short_side: int
) -> Iterator[tuple[float, video.Frame]]:
  """Frames of even width and height, and their times from the first one."""
  start, stop = candidate.start, math.nextafter(candidate.last, math.inf)
  count = 0
  # Times are exact: they are those of the scan.
  frames = video.stream(file, short_side=short_side, start=start, stop=stop)
  for time, frame in frames:
    count += 1
    height, width = (side // 2 * 2 for side in frame.shape[:2])
    yield time - start, frame[:height, :width]
  if count != candidate.num_frames:
    raise InputError(
      f"{candidate.source.path} has {count} frames where there were "
      f"{candidate.num_frames}; build again",
      "changed",
    )
