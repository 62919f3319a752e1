"""Frames to H.264 and any video file to frames; the only user of PyAV."""

import contextlib
import io
import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
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
from i2vgen_jax.files import check_file

Frame = UInt8[np.ndarray, "h w 3"]
Frames = UInt8[np.ndarray, "f h w 3"]
Times = Float[np.ndarray, "f"]

# Pixels of a frame above which decoding could exhaust the memory: 8K has 33
# million.
MAX_PIXELS = 40_000_000
# Bytes of frames that `decode_mp4` returns of a video decoded to its end.
MAX_BYTES = 2 << 30

_CLOCK = Fraction(1, 90_000)  # seconds per tick; all usual frame rates fit
_BT709 = 1  # code of primaries, transfer and matrix alike
# Without these flags swscale rounds chroma badly and darkens by 2 of 255.
_EXACT = (
  Interpolation.ACCURATE_RND
  | Interpolation.FULL_CHR_H_INT
  | Interpolation.FULL_CHR_H_INP
)

# Plausible frame rates and pixel aspect ratios; DVDs have aspects up to 1.42.
_RATES = (1.0, 240.0)
_ASPECTS = (1 / 4, 4)
_LAST_TICK = 2**62  # seeking takes 64-bit numbers
# Formats of files that refer to other files.
_PLAYLISTS = ("concat", "hls", "dash", "imf", "sdp", "rtsp")
# Transfer functions of high dynamic range in ITU-T H.273: PQ and HLG.
_HDR = (16, 18)
_UNSPECIFIED = 2  # code of the matrix of frames without a colour tag
_HD_LINES = 720  # frames of so many lines without a tag are BT.709


def encode_mp4(
  frames: Frames,
  fps: float | int,
  *,
  crf: int = 16,
  full_colour: bool = False,
  times: Times | None = None,
) -> bytes:
  """Encodes H.264 in mp4; the same input gives the same bytes.

  Args:
    frames: frames of even width and height.
    fps: frames per second.
    crf: x264's constant rate factor; lower is better and larger.
    full_colour: keep colour at full resolution (yuv444p). This is sharper at
      small sizes, but some players cannot show it.
    times: times of the frames in seconds, if they are not evenly spaced.

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
    raise InputError(f"fps must be positive, got {fps}")
  if times is None:
    times = np.arange(num_frames) / fps
  pairs = zip(times.tolist(), frames, strict=True)
  return encode_stream(
    pairs, fps, (width, height), crf=crf, full_colour=full_colour
  )


def encode_stream(
  frames: Iterable[tuple[float, Frame]],
  fps: float | int,
  size: tuple[int, int],
  *,
  crf: int,
  full_colour: bool = False,
) -> bytes:
  """Encodes frames one by one, without keeping them; see `encode_mp4`.

  Args:
    frames: increasing times in seconds, and frames.
    fps: mean frames per second.
    size: (width, height) of the frames, both even.
    crf: x264's constant rate factor.
    full_colour: keep colour at full resolution.
  """
  pixels = "yuv444p" if full_colour else "yuv420p"
  buffer, converter = io.BytesIO(), VideoReformatter()
  with av.open(buffer, "w", format="mp4") as container:
    rate = Fraction(min(fps, _CLOCK.denominator)).limit_denominator(10_000)
    stream = container.add_stream("libx264", rate=rate)
    # Macroblock-tree rate control reads uninitialised memory when frames are
    # tiny, and the bytes would differ from run to run.
    stream.options = {"crf": str(crf), "mbtree": "0"}
    stream.time_base = stream.codec_context.time_base = _CLOCK
    stream.width, stream.height = size
    stream.pix_fmt = pixels
    context = stream.codec_context
    context.thread_count = 1  # the bytes must not depend on the machine
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = ColorRange.MPEG.value
    tick = -_LAST_TICK
    for time, picture in frames:
      frame = converter.reformat(
        av.VideoFrame.from_ndarray(np.ascontiguousarray(picture)),
        format=pixels,
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=_EXACT | Interpolation.BICUBIC,
        threads=1,
      )
      # Frames may be closer than a tick.
      tick = max(round(time * _CLOCK.denominator), tick + 1)
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

  Frames are rotated and mirrored as the file says, and stretched where its
  pixels are not square. Transparency is ignored. Colour without a tag is
  BT.709 in frames of 720 lines or more, and BT.601 in smaller ones. Memory
  holds the chosen frames only.

  Args:
    source: path or content of the file.
    select: chooses frame numbers by the times of all frames; None keeps all.
      Called again if the times in the packets prove wrong.
    until: seconds from the first frame; the first frame after that is the
      last that is decoded. None decodes to the end.
    short_side: scale down, by area, until the shorter side is at most this.
    name: name of the video in messages; the path by default.

  Returns:
    The frames, and their times in seconds from the first frame of the file.

  Raises:
    InputError: missing, empty, damaged, or without a video track; or, without
      `until`, too long: the chosen frames take over `MAX_BYTES`. Codecs that
      check little, such as VP8, may hide damage within a frame.
  """
  with _named(source, name):
    times = _packet_times(source, until)
    while True:
      numbers = np.arange(len(times))
      if select is not None and len(times):
        numbers = numbers[list(select(times))]
      chosen = numbers.tolist()
      decoded, pictures = _pick(source, set(chosen), until, short_side)
      if np.array_equal(decoded, times):
        return np.stack([pictures[n] for n in chosen]), times[chosen]
      # Not every packet has one frame with its time.
      times = decoded


def count_frames(source: bytes | str | Path, *, until: float | int) -> int:
  """Decodes like `decode_mp4` without converting, to measure its cost.

  Raises:
    InputError: missing, empty, damaged, or without a video track.
  """
  with _named(source, None):
    return sum(1 for _ in _decode_until(source, until))


def stream(
  source: bytes | str | Path,
  *,
  short_side: int | None = None,
  start: float | int = 0,
  stop: float | int | None = None,
  name: str | None = None,
) -> Iterator[tuple[float, UInt8[np.ndarray, "h w 3"]]]:
  """Yields the frames of a video of any length one by one; see `decode_mp4`.

  Memory holds a few frames. Decoding begins at the key frame before `start`.
  Missing frames are noticed only when the video is read from start to end.

  Args:
    source: path or content of the file.
    short_side: scale down, by area, until the shorter side is at most this.
    start: seconds from the first frame; earlier frames are skipped.
    stop: frames from this time on are skipped; None reads to the end.
    name: name of the video in messages; the path by default.

  Yields:
    Time of each frame, in seconds from the first frame, and its pixels.

  Raises:
    InputError: missing, empty, damaged, without a video track, or with a frame
      that `probe` would refuse; raised when that frame is reached.
  """
  shape, converter = None, VideoReformatter()
  with _named(source, name):
    for time, frame, aspect in _decode(source, start):
      if stop is not None and time >= stop:
        return
      _check(frame)
      if shape is None:
        shape = frame.width, frame.height
        size = _scaled(frame, aspect, short_side)
      if shape != (frame.width, frame.height):
        raise InputError(
          f"changes its size at {time:.2f} s; cut it there", "resized"
        )
      if time >= start:
        yield time, _to_rgb(frame, size, converter)


def probe(source: bytes | str | Path, *, name: str | None = None) -> float:
  """Checks that a video is of a kind that can be used, by its first frame.

  Returns:
    Frames per second as the container gives them, 25 if it does not, limited
    to rates that cameras have.

  Raises:
    InputError: missing, empty, damaged, truncated, without a video track or a
      frame in it; interlaced, of high dynamic range, or with too many pixels.
  """
  with _named(source, name):
    with _opened(source) as (_, track):
      if is_cut_short(source):
        raise InputError(
          "is truncated: its end is missing; give an intact file", "truncated"
        )
      _check_size(track.codec_context)
      fps = float(track.average_rate or 25)
    _check(next(_decode(source)).frame)
    return min(max(fps, _RATES[0]), _RATES[1])


@contextlib.contextmanager
def _named(source: bytes | str | Path, name: str | None) -> Iterator[None]:
  """Puts the name of a video before what is wrong with it."""
  if isinstance(source, bytes):
    video = f"video {name}" if name else "the video"
    if not source:
      raise InputError(f"{video} is empty (0 bytes); give another", "empty")
  else:
    video = f"video {name or source}"
    check_file(source, video)
  try:
    yield
  except av.FFmpegError as e:
    raise InputError(
      f"{video} is damaged or no video ({e.strerror}); give an intact file"
    ) from e
  except InputError as e:
    raise InputError(f"{video} {e}", e.reason) from e


def _check(frame: av.VideoFrame) -> None:
  """Refuses frames that cannot be shown as they are."""
  _check_size(frame)
  if frame.interlaced_frame:
    raise InputError("is interlaced; deinterlace it first", "interlaced")
  if frame.color_trc in _HDR:
    raise InputError("has high dynamic range; tone-map it first", "hdr")


def _check_size(frame: Any) -> None:
  if frame.width * frame.height > MAX_PIXELS:
    raise InputError(
      f"is {frame.width}x{frame.height}, more than {MAX_PIXELS} pixels;"
      " scale it down first",
      "too-large",
    )


class _Decoded(NamedTuple):
  """A frame as its codec returns it.

  Attributes:
    time: seconds from the first frame of the file.
    frame: frame in the pixel format and size of the codec.
    aspect: width of its pixels divided by their height.
  """

  time: float
  frame: av.VideoFrame
  aspect: float


def _pick(
  source: bytes | str | Path,
  chosen: Collection[int],
  until: float | int | None,
  short_side: int | None,
) -> tuple[Times, dict[int, Frame]]:
  """The times of all frames, and the pictures of the chosen frame numbers."""
  times: list[float] = []
  pictures: dict[int, Frame] = {}
  converter, num_bytes = VideoReformatter(), 0
  for number, (time, frame, aspect) in enumerate(_decode_until(source, until)):
    if number == 0:
      size = _scaled(frame, aspect, short_side)
    times.append(time)
    if number in chosen:
      pictures[number] = _to_rgb(frame, size, converter)
      num_bytes += pictures[number].nbytes
    if until is None and num_bytes > MAX_BYTES:
      raise InputError(
        f"is too long: over {MAX_BYTES >> 30} GiB decoded; cut it into short"
        " clips first",
        "too-long",
      )
  return np.array(times, np.float64), pictures


def _packet_times(
  source: bytes | str | Path, until: float | int | None
) -> Times:
  """Times of the frames as packets give them, which is quick but may be off."""
  with _opened(source) as (container, track):
    ticks = [
      packet.pts
      for packet in _packets(container, track)
      if packet.pts is not None and not packet.is_discard
    ]
    base = track.time_base
  seconds = [tick * base.numerator / base.denominator for tick in sorted(ticks)]
  times = np.array(seconds, np.float64)
  times -= times[:1]
  count = None if until is None else np.searchsorted(times, until, "right") + 1
  return times[:count]


def _decode_until(
  source: bytes | str | Path, until: float | int | None
) -> Iterator[_Decoded]:
  """Frames up to the first one after `until`."""
  for decoded in _decode(source):
    yield decoded
    if until is not None and decoded.time > until:
      return


def _decode(
  source: bytes | str | Path, start: float | int = 0
) -> Iterator[_Decoded]:
  """Frames in order of time, from a key frame before `start` on."""
  with _opened(source) as (container, track):
    aspect = float(track.sample_aspect_ratio or 1)
    if not _ASPECTS[0] <= aspect <= _ASPECTS[1]:
      raise InputError(
        f"has pixels {aspect:g} times as wide as high; correct its header"
      )
    packets, ticks = _packets(container, track), deque()
    frames = _timed(container, packets, ticks)
    first = next(frames, None)
    if first is None:
      raise InputError("has no frames; give an intact file", "no-frames")
    origin = first.time
    if start > 0:
      packets = _packets_from(container, track, packets, origin + start)
      lag = len(ticks)
      ticks.clear()
      frames = _timed(container, packets, ticks, lag)
      first = next(frames, None)
    if first is not None and first.time - origin <= start:
      count = 0
      for frame in itertools.chain([first], frames):
        count += 1
        yield _Decoded(frame.time - origin, frame, aspect)
      promised = _promised_frames(source, container, track)
      if start <= 0 and count < promised:
        raise InputError(
          f"is truncated: {count} of {promised} frames; give an intact file",
          "truncated",
        )
      return
  # Containers without an index can seek too far, or not at all.
  yield from _decode(source)


@contextlib.contextmanager
def _opened(source: bytes | str | Path) -> Iterator[tuple[Any, Any]]:
  """The container, and its first video track that is not a cover picture."""
  file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
  # Titles may be in any encoding.
  with av.open(file, metadata_errors="replace") as container:
    if container.format.name in _PLAYLISTS:
      raise InputError("is a playlist; give the videos it names")
    tracks = [
      track
      for track in container.streams.video
      if not track.disposition & Disposition.attached_pic
    ]
    if not tracks:
      raise InputError("has no video in it; give a video file", "no-video")
    context = tracks[0].codec_context
    if context is None:
      raise InputError("has an unknown codec; convert it to H.264")
    # Several readers run at once; with one thread each they are fastest.
    context.thread_count, context.thread_type = 1, "NONE"
    yield container, tracks[0]


def _promised_frames(
  source: bytes | str | Path, container: Any, track: Any
) -> int:
  """Number of frames that the container announces; 0 if it does not."""
  is_avi = container.format.name == "avi"
  # AVI announces empty packets too, which show a frame for longer.
  if is_avi and not is_cut_short(source):
    return len(track.index_entries)
  if "mp4" not in container.format.name:
    return track.frames
  # An edit list may show fewer than there are.
  return sum(not entry.is_discard for entry in track.index_entries)


def _packets_from(
  container: Any, track: Any, packets: Iterator[av.Packet], seconds: float
) -> Iterator[av.Packet]:
  """Packets from a key frame before a time on; none if it cannot be reached."""
  ticks = int(min(seconds / track.time_base, _LAST_TICK))
  if container.format.name == "mpegts":
    yield from _skip(track, packets, ticks)
    return
  try:
    container.seek(ticks, stream=track)
  except av.FFmpegError:
    return
  yield from _packets(container, track)


def _skip(
  track: Any, packets: Iterator[av.Packet], ticks: int
) -> Iterator[av.Packet]:
  """Packets from the last key frame before a time on, without seeking.

  The clock of joined MPEG-TS may restart, so that a time has several places.
  """
  held: list[av.Packet] = []
  for packet in packets:
    if packet.is_keyframe and packet.pts is not None and packet.pts <= ticks:
      held.clear()
      track.codec_context.flush_buffers()
    held.append(packet)
    if packet.dts is not None and packet.dts > ticks:
      break
  yield from held
  yield from packets


def _packets(container: Any, track: Any) -> Iterator[av.Packet]:
  """All packets of a track, on one clock.

  The packets of MPEG-TS are numbered, and before a jump of the numbers one of
  the last two frames is marked as corrupt. Where a key frame follows, or where
  the clock goes back, intact files were joined; the clock runs on from there.
  """
  is_ts = container.format.name == "mpegts"
  marked, shift, last = 0, 0, None
  for packet in container.demux(track):
    if packet.dts is not None and packet.is_keyframe and is_ts and last:
      if marked or packet.dts + shift <= last.dts:
        marked, shift = 0, last.dts + last.duration - packet.dts
    elif marked == 1 or (marked and packet.dts is None):
      marked = -1
    marked = 2 if packet.is_corrupt else marked - (marked > 0)
    if marked < 0 or (marked and not is_ts):
      raise InputError(
        "is truncated: it ends within a frame; give an intact file", "truncated"
      )
    if packet.dts is not None:
      packet.dts += shift
      last = packet
    if packet.pts is not None:
      packet.pts += shift
    yield packet


def _timed(
  container: Any,
  packets: Iterable[av.Packet],
  ticks: deque[int],
  lag: int | None = None,
) -> Iterator[av.VideoFrame]:
  """The frames in the packets, with increasing times in intact files.

  AVI numbers its packets in the order of decoding. The times that FFmpeg
  guesses from that are wrong with B-frames, so frames get the numbers in turn.

  Args:
    container: the container.
    packets: its packets.
    ticks: receives the numbers that are left, of packets still in the decoder.
    lag: how many are left after each frame, if some frames cannot be decoded
      because decoding starts in the middle.
  """
  for packet in packets:
    if container.format.name == "avi" and packet.dts is not None:
      ticks.append(packet.dts)
    for frame in packet.decode():
      while lag is not None and len(ticks) > lag + (packet.dts is not None):
        ticks.popleft()
      lag = None
      if ticks:
        frame.pts = ticks.popleft()
      if frame.time is None:
        raise InputError("has a frame without a time; convert it", "no-times")
      if frame.is_corrupt:
        raise InputError("has a damaged frame; give an intact file")
      yield frame


def _scaled(
  frame: av.VideoFrame, aspect: float, short_side: int | None
) -> tuple[int, int]:
  """Width and height of the result, in square pixels."""
  width, height = frame.width * aspect, frame.height
  scale = min((short_side or np.inf) / min(width, height), 1)
  return max(round(width * scale), 1), max(round(height * scale), 1)


def _to_rgb(
  frame: av.VideoFrame, size: tuple[int, int], converter: VideoReformatter
) -> UInt8[np.ndarray, "h w 3"]:
  # As players do; swscale would take BT.601 for all of them.
  is_hd = frame.colorspace == _UNSPECIFIED and frame.height >= _HD_LINES
  shrinks = size[0] * size[1] < frame.width * frame.height
  scaler = Interpolation.AREA if shrinks else Interpolation.BICUBIC
  rgb = converter.reformat(
    frame,
    *size,
    format="rgb24",
    src_colorspace=Colorspace.ITU709 if is_hd else None,
    interpolation=_EXACT | scaler,
    threads=1,
  )
  return _upright(rgb.to_ndarray(), frame)


def _upright(
  picture: UInt8[np.ndarray, "h w 3"], frame: av.VideoFrame
) -> UInt8[np.ndarray, "h2 w2 3"]:
  """The picture rotated and mirrored as the display matrix says."""
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
