"""The only user of PyAV: frames to H.264 and any video file to frames."""

import contextlib
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.reformatter import (
  ColorRange,
  Colorspace,
  Interpolation,
  VideoReformatter,
)
from jaxtyping import Float, UInt8

from data_pipelines.media.containers import is_cut_short
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import check_file, replacing

Frames = UInt8[np.ndarray, "f h w 3"]
Times = Float[np.ndarray, "f"]

# Decoded size above which a film is taken for a decompression bomb: 8K is 33
# million pixels.
MAX_PIXELS = 40_000_000
# Decoded frames of one file beyond this are refused: a clip is one short shot.
MAX_BYTES = 2 << 30

_CLOCK = Fraction(1, 90_000)  # one tick; every usual frame rate fits
_BT709 = 1  # code of primaries, transfer and matrix alike
# Without these flags swscale halves chroma carelessly and darkens by 2 of 255.
_EXACT = (
  Interpolation.ACCURATE_RND
  | Interpolation.FULL_CHR_H_INT
  | Interpolation.FULL_CHR_H_INP
)


# Frames a second that a header is believed to mean.
_RATES = (1.0, 240.0)
# Ratios of a pixel's sides that a header is believed to mean; DVDs have 1.42.
_ASPECTS = (1 / 4, 4)
_LAST_TICK = 2**62  # beyond no place can be told
# Files that are no films but name others.
_PLAYLISTS = ("concat", "hls", "dash", "imf", "sdp", "rtsp")
# Transfer functions of high dynamic range: PQ and HLG, as ITU-T H.273 has them.
_HDR = (16, 18)


def probe(source: bytes | str | Path, *, name: str | None = None) -> float:
  """Looks whether a film is of a kind that can be used.

  Returns:
    Frames per second as the container tells them, 25 if it tells none, and
    never beyond what a camera has.

  Raises:
    InputError: missing, empty, damaged, cut short, without a video or without a
      frame in it; interlaced, of high dynamic range, or of too many pixels.
  """
  name = _called(source, name)
  with _opened(source, name) as container:
    if not isinstance(source, bytes) and is_cut_short(Path(source)):
      raise InputError(
        f"video {name} is truncated: its end is missing; give an intact file",
        "truncated",
      )
    track = _track(container, name)
    _check_size(track.codec_context.width, track.codec_context.height, name)
    _, frame = next(_frames(container, track, 0, name))
    _check(frame, name)
    return min(max(float(track.average_rate or 25), _RATES[0]), _RATES[1])


def write_mp4(
  path: str | Path, frames: Frames, fps: float | int, *, crf: int = 16
) -> None:
  """Writes an H.264 file that any player shows; appears by rename.

  Args:
    path: file to write.
    frames: the pictures; width and height must be even.
    fps: frames per second.
    crf: x264's constant rate factor; lower is better and larger.

  Raises:
    InputError: no frames, an odd size, or an unwritable path.
  """
  data = encode_mp4(frames, fps, crf=crf)
  path = Path(path)
  try:
    with replacing(path) as unfinished:
      unfinished.write_bytes(data)
  except OSError as error:
    raise InputError(
      f"cannot write {path}: {error.strerror}; give a writable path"
    ) from error


def encode_mp4(
  frames: Frames,
  fps: float | int,
  *,
  crf: int = 16,
  full_colour: bool = False,
  times: Times | None = None,
) -> bytes:
  """H.264 in mp4, the same bytes for the same input.

  Args:
    frames: the pictures; width and height must be even.
    fps: frames per second.
    crf: x264's constant rate factor.
    full_colour: keep colour at full resolution (yuv444p). Sharper at small
      sizes, but some players cannot show it.
    times: of the frames, in seconds, when they are not evenly spaced.

  Raises:
    InputError: no frames, an odd size, or a rate that is not positive.
  """
  num_frames, height, width, _ = frames.shape
  if not num_frames or width % 2 or height % 2 or not width * height:
    raise InputError(
      f"cannot encode {num_frames} frames of {width}x{height};"
      " H.264 needs at least one frame and an even width and height"
    )
  if not fps > 0:
    raise InputError(f"cannot encode at {fps} fps; give a positive rate")
  if times is None:
    times = np.arange(num_frames) / fps
  ticks = np.rint(times * _CLOCK.denominator).astype(int).tolist()
  pixels = "yuv444p" if full_colour else "yuv420p"
  buffer, converter = io.BytesIO(), VideoReformatter()
  with av.open(buffer, "w", format="mp4") as container:
    rate = Fraction(fps).limit_denominator(10_000)
    stream = container.add_stream("libx264", rate=rate)
    # Macroblock-tree rate control reads memory that nothing has written when
    # frames are tiny, and the bytes then differ from run to run.
    stream.options = {"crf": str(crf), "mbtree": "0"}
    stream.time_base = stream.codec_context.time_base = _CLOCK
    stream.width, stream.height, stream.pix_fmt = width, height, pixels
    context = stream.codec_context
    context.thread_count = 1  # the bytes must not depend on the machine
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = ColorRange.MPEG.value
    for tick, picture in zip(ticks, frames, strict=True):
      frame = converter.reformat(
        av.VideoFrame.from_ndarray(np.ascontiguousarray(picture)),
        format=pixels,
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=_EXACT | Interpolation.BICUBIC,
        threads=1,
      )
      frame.pts, frame.time_base = tick, _CLOCK
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return buffer.getvalue()


def decode_mp4(
  source: bytes | str | Path,
  select: Callable[[Times], Sequence[int]] | None = None,
  *,
  until: float | int | None = None,
  short_side: int | None = None,
  name: str | None = None,
) -> tuple[Frames, Times]:
  """Decodes a video of any container and codec, as a player would show it.

  Frames are turned and mirrored as the file says, and stretched where its
  pixels are not square. Transparency is left out.

  Args:
    source: the file's path, or its bytes.
    select: chooses frames by the times of all of them; the others are not
      converted. None keeps all.
    until: seconds from the first frame; the first frame after that is the
      last that is decoded. None goes to the end.
    short_side: scale down, by area, until the shorter side is at most this.
    name: what messages call it; the path when absent.

  Returns:
    The frames and their times in seconds from the first frame of the file.

  Raises:
    InputError: missing, empty, damaged, too long, or without a video in it.
      Codecs that check little, such as VP8, may hide damage within a frame.
  """
  name = _called(source, name)
  decoded = _within_limit(_decode(source, name), until, name)
  times, frames, aspects = zip(*decoded, strict=True)
  times = np.array(times, np.float64)
  chosen = list(range(len(times)) if select is None else select(times))
  size = _scaled(frames[0], aspects[0], short_side)
  converter = VideoReformatter()
  pictures = [_to_rgb(frames[number], size, converter) for number in chosen]
  return np.stack(pictures), times[chosen]


def count_frames(source: bytes | str | Path, *, until: float | int) -> int:
  """Decodes as `decode_mp4` does, converts nothing: what decoding costs.

  Raises:
    InputError: missing, empty, damaged, too long, or without a video in it.
  """
  name = _called(source, None)
  decoded = _within_limit(_decode(source, name), until, name)
  return sum(1 for _ in decoded)


def stream(
  source: bytes | str | Path,
  *,
  short_side: int | None = None,
  start: float | int = 0,
  stop: float | int | None = None,
  name: str | None = None,
) -> Iterator[tuple[float, UInt8[np.ndarray, "h w 3"]]]:
  """Yields the frames of a video of any length one by one; see `decode_mp4`.

  Memory holds a few frames. Reading begins at the key frame before `start`.
  That frames are missing shows only when it is read from start to end.

  Args:
    source: the file's path, or its bytes.
    short_side: scale down, by area, until the shorter side is at most this.
    start: seconds from the file's first frame; earlier frames are left out.
    stop: frames from this time on are left out; None reads to the end.
    name: what messages call it; the path when absent.

  Yields:
    Each frame's time, in seconds from the file's first frame, and its pixels.

  Raises:
    InputError: missing, empty, damaged, or without a video in it, or with a
      frame of a kind that `probe` refuses; raised when that frame is asked
      for.
  """
  size, given, converter = None, None, VideoReformatter()
  name = _called(source, name)
  for time, frame, aspect in _decode(source, name, start):
    if stop is not None and time >= stop:
      return
    _check(frame, name)
    size = size or _scaled(frame, aspect, short_side)
    given = given or (frame.width, frame.height)
    if given != (frame.width, frame.height):
      raise InputError(
        f"video {name} changes its size at {time:.2f} s; cut it there",
        "resized",
      )
    if time >= start:
      yield time, _to_rgb(frame, size, converter)


def _called(source: bytes | str | Path, name: str | None) -> str:
  return name or ("video" if isinstance(source, bytes) else str(source))


class _Decoded(NamedTuple):
  """A frame as the codec has it.

  Attributes:
    time: seconds from the file's first frame.
    frame: in the codec's own pixel format and size.
    aspect: width to height of its pixels.
  """

  time: float
  frame: av.VideoFrame
  aspect: float


def _within_limit(
  decoded: Iterator[_Decoded], until: float | int | None, name: str
) -> Iterator[_Decoded]:
  """As much as memory may hold, up to the first frame after `until`."""
  num_bytes = 0
  for one in decoded:
    frame = one.frame
    num_bytes += 3 * frame.width * frame.height
    if num_bytes > MAX_BYTES:
      raise InputError(
        f"video {name} is too long: over {MAX_BYTES >> 30} GiB decoded;"
        " cut it into short clips first",
        "too-long",
      )
    yield one
    if until is not None and one.time > until:
      return


def _check(frame: av.VideoFrame, name: str) -> None:
  """Refuses frames that cannot be shown as they are."""
  _check_size(frame.width, frame.height, name)
  if frame.interlaced_frame:
    raise InputError(
      f"video {name} is interlaced; deinterlace it first", "interlaced"
    )
  if frame.color_trc in _HDR:
    raise InputError(
      f"video {name} is of high dynamic range; map its tones first", "hdr"
    )


def _check_size(width: int, height: int, name: str) -> None:
  if width * height > MAX_PIXELS:
    raise InputError(
      f"video {name} is {width}x{height}, more than {MAX_PIXELS} pixels;"
      " scale it down first",
      "too-large",
    )


def _scaled(
  frame: av.VideoFrame, aspect: float, short_side: int | None
) -> tuple[int, int]:
  """The size that all frames get; ones of another size are rare."""
  width, height = frame.width * aspect, frame.height
  scale = min((short_side or np.inf) / min(width, height), 1)
  return max(round(width * scale), 1), max(round(height * scale), 1)


def _to_rgb(
  frame: av.VideoFrame, size: tuple[int, int], converter: VideoReformatter
) -> UInt8[np.ndarray, "h w 3"]:
  shrinks = size[0] * size[1] < frame.width * frame.height
  scaler = Interpolation.AREA if shrinks else Interpolation.BICUBIC
  rgb = converter.reformat(
    frame,
    *size,
    format="rgb24",
    interpolation=_EXACT | scaler,
    threads=1,
  )
  return _upright(rgb.to_ndarray(), frame)


def _upright(
  picture: UInt8[np.ndarray, "h w 3"], frame: av.VideoFrame
) -> UInt8[np.ndarray, "h2 w2 3"]:
  """Turned by quarters and mirrored as the frame's display matrix says."""
  matrix = frame.side_data.get(SideData.DISPLAYMATRIX)
  if matrix is None:
    return picture
  # It maps (x, y) to (ax + cy, bx + dy), y pointing down.
  a, b, _, c, d = np.frombuffer(matrix, np.int32, 5).tolist()
  if abs(b) > abs(a):
    picture, a, d = picture.transpose(1, 0, 2), c, b
  picture = picture[:, ::-1] if a < 0 else picture
  picture = picture[::-1] if d < 0 else picture
  return np.ascontiguousarray(picture)


def _decode(
  source: bytes | str | Path, name: str, start: float | int = 0
) -> Iterator[_Decoded]:
  """Frames in order of time, from a key frame before `start` on."""
  with _opened(source, name) as container:
    track = _track(container, name)
    aspect = float(track.sample_aspect_ratio or 1)
    if not _ASPECTS[0] <= aspect <= _ASPECTS[1]:
      raise InputError(
        f"the pixels of video {name} are {aspect:g} times as wide as high;"
        " correct its header",
        "damaged",
      )
    frames = _frames(container, track, start, name)
    first = next(frames, None)
    if first is not None and first[0] <= start:
      for time, frame in itertools.chain([first], frames):
        yield _Decoded(time, frame, aspect)
      return
  # Containers without an index can land behind the place, or nowhere.
  yield from _decode(source, name)


def _track(container: Any, name: str) -> Any:
  """The first video that is no picture of a cover."""
  tracks = [
    track
    for track in container.streams.video
    if not track.disposition & Disposition.attached_pic
  ]
  if not tracks:
    raise InputError(
      f"{name} has no video in it; give a video file", "no-video"
    )
  if tracks[0].codec_context is None:
    raise InputError(
      f"no decoder for video {name}; give H.264, for instance", "damaged"
    )
  return tracks[0]


@contextlib.contextmanager
def _opened(source: bytes | str | Path, name: str) -> Iterator[Any]:
  is_path = not isinstance(source, bytes)
  if is_path:
    check_file(source, f"video {name}")
  elif not source:
    raise InputError(
      f"video {name} is empty (0 bytes); give another file", "empty"
    )
  try:
    with av.open(
      str(source) if is_path else io.BytesIO(source),
      # Titles may be in any encoding.
      metadata_errors="replace",
    ) as container:
      if container.format.name in _PLAYLISTS:
        raise InputError(
          f"{name} is no video but a list of files; list them", "damaged"
        )
      yield container
  except av.FFmpegError as error:
    raise InputError(
      f"video {name} is damaged or no video ({error.strerror});"
      " give an intact file",
      "damaged",
    ) from error


def _frames(
  container, track, start: float | int, name: str
) -> Iterator[tuple[float, av.VideoFrame]]:
  """Frames and their times, in seconds from the file's first frame.

  None come where the container cannot go to `start`.
  """
  # Readers run many of these at once; one thread each is fastest in all.
  track.codec_context.thread_count = 1
  track.codec_context.thread_type = "NONE"
  frames = _timed(container, track, name)
  first = next(frames, None)
  if first is None:
    raise InputError(
      f"video {name} has no frames; give an intact file", "no-frames"
    )
  if start > 0:
    ticks = int((first.time + start) / track.time_base)
    if _sought(container, track, ticks):
      for frame in _timed(container, track, name):
        yield frame.time - first.time, frame
    return
  yield 0.0, first
  count = 1
  for frame in frames:
    count += 1
    yield frame.time - first.time, frame
  promised = _promised_frames(container, track)
  if count < promised:
    raise InputError(
      f"video {name} is truncated: {count} of {promised} frames;"
      " give an intact file",
      "truncated",
    )


def _promised_frames(container, track) -> int:
  """How many frames the container says it shows; 0 if it does not say."""
  if "mp4" not in container.format.name:
    return track.frames
  # An edit list may show fewer than there are.
  return sum(not entry.is_discard for entry in track.index_entries)


def _sought(container, track, ticks: int) -> bool:
  try:
    container.seek(min(ticks, _LAST_TICK), stream=track)
  except av.FFmpegError:
    return False
  return True


def _timed(container, track, name: str) -> Iterator[av.VideoFrame]:
  for packet in container.demux(track):
    if packet.is_corrupt:
      raise InputError(
        f"video {name} is truncated: it ends within a frame; give an intact"
        " file",
        "truncated",
      )
    for frame in packet.decode():
      if frame.time is None:
        raise InputError(
          f"a frame of video {name} has no time; convert it", "no-times"
        )
      if frame.is_corrupt:
        raise InputError(
          f"a frame of video {name} is damaged; give an intact file", "damaged"
        )
      yield frame
