"""Encodes H.264 and decodes any video file; the only user of PyAV."""

import contextlib
import io
import itertools
import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import Float, UInt8

from data_pipelines.media.containers import is_cut_short
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import check_file

Source = bytes | str | Path  # content or path of a file
Frame = UInt8[np.ndarray, "h w 3"]
# Beside frames of another size.
WholeFrame = UInt8[np.ndarray, "H W 3"]
Frames = UInt8[np.ndarray, "f h w 3"]
Times = Float[np.ndarray, "f"]

# Pixels of a frame above which decoding could exhaust the memory: 8K has 33
# million.
MAX_PIXELS = 40_000_000
# Bytes of frames that `decode_mp4` returns of a video decoded to its end.
MAX_BYTES = 2 << 30

_CLOCK = Fraction(1, 90_000)  # seconds per tick; all usual frame rates fit
_BT709 = 1  # code of primaries, transfer and matrix alike
_LIMITED_RANGE = 1  # code of luma from 16 to 235
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


def encode_mp4(frames: Frames, fps: float | int, **options: int) -> bytes:
  """Encodes H.264 in mp4; the same input gives the same bytes.

  Args:
    frames: frames of even width and height.
    fps: frames per second.
    options: crf and full_colour; see `encode_stream`.

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
  timed = zip((np.arange(num_frames) / fps).tolist(), frames, strict=True)
  return encode_stream(timed, fps, (width, height), **options)


def encode_stream(
  frames: Iterable[tuple[float, Frame]],
  fps: float | int,
  size: tuple[int, int],
  *,
  crf: int = 16,
  full_colour: bool = False,
) -> bytes:
  """Encodes frames one by one, without keeping them; see `encode_mp4`.

  Args:
    frames: increasing times in seconds, and frames.
    fps: mean frames per second.
    size: (width, height) of the frames, both even.
    crf: x264's constant rate factor; lower is better and larger.
    full_colour: keep colour at full resolution (yuv444p). This is sharper at
      small sizes, but some players cannot show it.
  """
  buffer, converter = io.BytesIO(), VideoReformatter()
  with av.open(buffer, "w", format="mp4") as container:
    rate = Fraction(min(fps, _CLOCK.denominator)).limit_denominator(10_000)
    stream = container.add_stream("libx264", rate, time_base=_CLOCK)
    stream.width, stream.height = size
    stream.pix_fmt = "yuv444p" if full_colour else "yuv420p"
    # Macroblock-tree rate control reads uninitialised memory when frames are
    # tiny, and the bytes would differ from run to run.
    # One thread, because the bytes must not depend on the machine.
    stream.options = {"crf": str(crf), "mbtree": "0", "threads": "1"}
    stream.colorspace = stream.color_primaries = stream.color_trc = _BT709
    stream.color_range = _LIMITED_RANGE
    tick = -_LAST_TICK
    for time, picture in frames:
      frame = converter.reformat(
        av.VideoFrame.from_ndarray(np.ascontiguousarray(picture)),
        format=stream.pix_fmt,
        dst_colorspace=_BT709,
        dst_color_range=_LIMITED_RANGE,
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
  source: Source,
  select: Callable[[Times], Sequence[int]] | None = None,
  *,
  until: float | int = math.inf,
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
      last that is decoded.
    name: name of the video in messages; the path by default.

  Returns:
    The frames, and their times in seconds from the first frame of the file.

  Raises:
    InputError: missing, empty, damaged, or without a video track; or, without
      `until`, too long: the chosen frames take over `MAX_BYTES`. Codecs that
      check little, such as VP8, may hide damage within a frame.
  """
  frames, times, _ = _decode_chosen(source, select, until, name, None)
  return np.stack(frames), times


def decode_to_cover(
  source: Source,
  select: Callable[[Times], Sequence[int]],
  cover: tuple[int, int],
  *,
  until: float | int = math.inf,
  name: str | None = None,
) -> tuple[list[Frame], WholeFrame]:
  """Decodes frames scaled down until they just cover a size.

  It is much faster than scaling the frames of `decode_mp4`: few pixels are
  converted to RGB, and frames that are neither chosen nor needed to decode
  others are left out, so that damage in them is not noticed. The filter is an
  area average.

  Args:
    source: path or content of the file.
    select: see `decode_mp4`, as for `until` and `name`.
    cover: (width, height) in pixels. Smaller frames are not enlarged.

  Returns:
    The frames, and the first of them at its own size.

  Raises:
    InputError: see `decode_mp4`.
  """
  frames, _, first = _decode_chosen(source, select, until, name, cover)
  return frames, first


def count_frames(source: Source, *, until: float | int) -> int:
  """Decodes like `decode_mp4` without converting, to measure its cost.

  Raises:
    InputError: missing, empty, damaged, or without a video track.
  """
  with _named(source):
    return sum(1 for _ in _decode(source, until=until))


def stream(
  source: Source,
  *,
  short_side: int | None = None,
  start: float | int = 0,
  stop: float | int | None = None,
  name: str | None = None,
) -> Iterator[tuple[float, Frame]]:
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
  size, converter = None, VideoReformatter()
  with _named(source, name):
    for time, frame, aspect in _usable(source, start, stop):
      size = size or _shown_size(frame, aspect, short_side)
      yield time, _to_rgb(frame, size, converter)


def stream_to_cover(
  source: Source, cover: tuple[int, int], *, name: str | None = None
) -> Iterator[tuple[float, Frame, WholeFrame]]:
  """Yields all frames as `decode_to_cover` scales them.

  Args:
    source: path or content of the file.
    cover: see `decode_to_cover`.
    name: name of the video in messages; the path by default.

  Yields:
    Time of each frame, in seconds from the first frame, the scaled frame, and
    the frame at its own size.

  Raises:
    InputError: see `stream`.
  """
  size, converters = None, (VideoReformatter(), VideoReformatter())
  with _named(source, name):
    for time, frame, aspect in _usable(source, 0, None):
      whole = _shown_size(frame, aspect)
      size = size or _covering(frame, whole, cover)
      small, large = (
        _to_rgb(frame, side, converter)
        for side, converter in zip((size, whole), converters, strict=True)
      )
      yield time, small, large


def _usable(
  source: Source, start: float | int, stop: float | int | None
) -> Iterator[tuple[float, av.VideoFrame, float]]:
  """Frames of one size from `start` on and before `stop`; see `_decode`."""
  shape = None
  for time, frame, aspect in _decode(source, start):
    if stop is not None and time >= stop:
      return
    _check(frame)
    shape = shape or (frame.width, frame.height)
    if shape != (frame.width, frame.height):
      raise InputError(
        f"changes its size at {time:.2f} s; cut it there", "resized"
      )
    if time >= start:
      yield time, frame, aspect


def probe(source: Source, *, name: str | None = None) -> float:
  """Checks that a video is of a kind that can be used, by its first frame.

  Returns:
    Frames per second as the container gives them, 25 if it does not, limited
    to rates that cameras have.

  Raises:
    InputError: missing, empty, damaged, truncated, without a video track or a
      frame in it; interlaced, of high dynamic range, or with too many pixels.
  """
  with _named(source, name):
    with _opened(source) as track:
      if is_cut_short(source):
        raise _truncated("its end is missing")
      _check_size(track.codec_context)
      fps = float(track.average_rate or 25)
    _, first, _ = next(_decode(source))
    _check(first)
    return min(max(fps, _RATES[0]), _RATES[1])


@contextlib.contextmanager
def _named(source: Source, name: str | None = None) -> Iterator[None]:
  """Prefixes errors with the name of the video."""
  is_file = not isinstance(source, bytes)
  video = f"video {name or source}" if name or is_file else "the video"
  if is_file:
    check_file(source, video)
  elif not source:
    raise InputError(f"{video} is empty (0 bytes); give another", "empty")
  try:
    yield
  except av.FFmpegError as e:
    raise InputError(
      f"{video} is damaged or not a video ({e.strerror}); give an intact file"
    ) from e
  except InputError as e:
    raise InputError(f"{video} {e}", e.reason) from e


def _truncated(how: str) -> InputError:
  return InputError(f"is truncated: {how}; give an intact file", "truncated")


def _check(frame: av.VideoFrame) -> None:
  """Refuses frames that cannot be shown as they are."""
  _check_size(frame)
  if frame.interlaced_frame:
    raise InputError("is interlaced; deinterlace it first", "interlaced")
  if frame.color_trc in _HDR:
    raise InputError("has high dynamic range; tone-map it first", "hdr")


def _check_size(frame: Any) -> None:
  if frame.width * frame.height > MAX_PIXELS:
    size = f"{frame.width}x{frame.height}"
    text = f"is {size}, more than {MAX_PIXELS} pixels; scale it down first"
    raise InputError(text, "too-large")


def _decode_chosen(
  source: Source,
  select: Callable[[Times], Sequence[int]] | None,
  until: float | int,
  name: str | None,
  cover: tuple[int, int] | None,
) -> tuple[list[Frame], Times, WholeFrame]:
  """The chosen frames, their times, and the first one at its own size."""

  def choose(times: Times) -> list[int]:
    if select is None or not len(times):
      return list(range(len(times)))
    return list(select(times))

  def numbered(times: list[float]) -> Iterator[tuple[int, Any, float]]:
    """All frames by number; their times are added to the list."""
    for time, frame, aspect in _decode(source, until=until):
      times.append(time)
      yield len(times) - 1, frame, aspect

  with _named(source, name):
    with _opened(source) as track:
      times, ticks = _packet_times(track, until)
      chosen = choose(times)
      if cover is not None and ticks is not None and chosen:
        wanted = [ticks[number] for number in chosen]
        # The first frame is the origin of all times.
        frames = _decode_needed(track, {ticks[0], *wanted}, until)
        pictures, first = _pick(frames, wanted, until, cover)
        if pictures.keys() >= set(wanted):
          return [pictures[tick] for tick in wanted], times[chosen], first
    while True:
      decoded = []
      pictures, first = _pick(numbered(decoded), chosen, until, cover)
      if np.array_equal(decoded, times):
        return [pictures[number] for number in chosen], times[chosen], first
      # Not every packet has one frame with its time.
      times = np.array(decoded)
      chosen = choose(times)


def _pick(
  frames: Iterable[tuple[int, av.VideoFrame, float]],
  chosen: Sequence[int],
  until: float | int,
  cover: tuple[int, int] | None,
) -> tuple[dict[int, Frame], WholeFrame | None]:
  """The chosen pictures by the keys of `frames`, and the first one whole."""
  size, pictures, first = None, {}, None
  converter, wanted = VideoReformatter(), set(chosen)
  for key, frame, aspect in frames:
    if size is None:
      size = whole = _shown_size(frame, aspect)
      if cover is not None:
        size = _covering(frame, whole, cover)
    if key in wanted:
      pictures[key] = picture = _to_rgb(frame, size, converter)
      if key == chosen[0]:
        # Another converter, as each is prepared for one size.
        first = picture
        if size != whole:
          first = _to_rgb(frame, whole, VideoReformatter())
      if until == math.inf and len(pictures) * picture.nbytes > MAX_BYTES:
        raise InputError(
          f"is too long: over {MAX_BYTES >> 30} GiB decoded; cut it into short"
          " clips first",
          "too-long",
        )
  return pictures, first


def _packet_times(
  track: Any, until: float | int
) -> tuple[Times, list[int] | None]:
  """Times of the frames as packets give them, which is quick but may be off.

  Returns:
    The times, and their ticks where those identify the frames of the decoder:
    in H.264 in mp4, which datasets consist of, without two equal ones.
  """
  packets = (packet for packet in _packets(track) if not packet.is_discard)
  ticks = sorted(packet.pts for packet in packets if packet.pts is not None)
  base = track.time_base
  is_mp4 = "mp4" in track.container.format.name
  identify = is_mp4 and track.codec_context.name == "h264"
  times = np.array(ticks, np.float64) * base.numerator / base.denominator
  times -= times[:1]
  length = int(np.searchsorted(times, until, "right")) + 1
  ticks = ticks[:length]
  unique = len(set(ticks)) == len(ticks)
  return times[:length], ticks if identify and unique else None


def _decode_needed(
  track: Any, needed: Collection[int], until: float | int
) -> Iterator[tuple[int, av.VideoFrame, float]]:
  """Frames of an mp4 file whose packets were read, from the first one on.

  Args:
    track: the track.
    needed: ticks of frames; others may be left out, if no frame refers to them.
    until: see `decode_mp4`.

  Yields:
    Ticks of the frame, and what `_decode` yields of it.
  """
  # Opening the file again would take as long as decoding a few frames.
  track.container.seek(min(needed), stream=track)
  aspect, origin = _aspect(track), None
  for frame in _timed(_sparing(_packets(track), needed), deque()):
    origin = frame.time if origin is None else origin
    yield frame.pts, frame, aspect
    if frame.time - origin > until:
      return


def _decode(
  source: Source,
  start: float | int = 0,
  until: float | int = math.inf,
) -> Iterator[tuple[float, av.VideoFrame, float]]:
  """Frames in order of time, from a key frame before `start` on.

  Args:
    source: path or content of the file.
    start: seconds from the first frame of the file.
    until: see `decode_mp4`.

  Yields:
    Seconds from the first frame of the file, the frame as its codec returns
    it, and the width of its pixels divided by their height.
  """
  with _opened(source) as track:
    aspect = _aspect(track)
    packets, ticks = _packets(track), deque()
    frames = _timed(packets, ticks)
    first = next(frames, None)
    if first is None:
      raise InputError("has no frames; give an intact file", "no-frames")
    origin = first.time
    if start > 0:
      packets = _packets_from(track, packets, origin + start)
      lag = len(ticks)
      ticks.clear()
      frames = _timed(packets, ticks, lag)
      first = next(frames, None)
    if first is not None and first.time - origin <= start:
      count = 0
      for frame in itertools.chain([first], frames):
        count += 1
        yield frame.time - origin, frame, aspect
        if frame.time - origin > until:
          return
      promised = _promised_frames(source, track)
      if start <= 0 and count < promised:
        raise _truncated(f"{count} of {promised} frames")
      return
  # Containers without an index can seek too far, or not at all.
  yield from _decode(source, until=until)


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[Any]:
  """The first video track that is not a cover picture."""
  file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
  # Titles may be in any encoding.
  with av.open(file, metadata_errors="replace") as container:
    if container.format.name in _PLAYLISTS:
      raise InputError("is a playlist; give the videos it names")
    for track in container.streams.video:
      if not track.disposition & Disposition.attached_pic:
        break
    else:
      raise InputError("has no video track; give a video file", "no-video")
    context = track.codec_context
    if context is None:
      raise InputError("has an unknown codec; convert it to H.264")
    # Several readers run at once; with one thread each they are fastest.
    context.thread_count, context.thread_type = 1, "NONE"
    yield track


def _aspect(track: Any) -> float:
  """Width of a pixel divided by its height."""
  aspect = float(track.sample_aspect_ratio or 1)
  if not _ASPECTS[0] <= aspect <= _ASPECTS[1]:
    raise InputError(
      f"has pixels {aspect:g} times as wide as high; correct its header"
    )
  return aspect


def _promised_frames(source: Source, track: Any) -> int:
  """Number of frames that the container announces; 0 if it does not."""
  form = track.container.format.name
  # AVI announces empty packets too, which show a frame for longer.
  if form == "avi" and not is_cut_short(source):
    return len(track.index_entries)
  if "mp4" not in form:
    return track.frames
  # An edit list may show fewer than there are.
  return sum(not entry.is_discard for entry in track.index_entries)


def _packets_from(
  track: Any, packets: Iterator[av.Packet], seconds: float
) -> Iterator[av.Packet]:
  """Packets from a key frame before a time on; none if it cannot be reached."""
  ticks = int(min(seconds / track.time_base, _LAST_TICK))
  if track.container.format.name == "mpegts":
    return _skip(packets, ticks)
  try:
    track.container.seek(ticks, stream=track)
  except av.FFmpegError:
    return iter(())
  return _packets(track)


def _sparing(
  packets: Iterator[av.Packet], needed: Collection[int]
) -> Iterator[av.Packet]:
  """The packets, of which the decoder only decodes what is needed."""
  for packet in packets:
    spares = packet.pts is not None and packet.pts not in needed
    context = packet.stream.codec_context
    context.skip_frame = "NONREF" if spares else "DEFAULT"
    yield packet


def _skip(packets: Iterator[av.Packet], ticks: int) -> Iterator[av.Packet]:
  """Packets from the last key frame before a time on, without seeking.

  The clock of joined MPEG-TS may restart, so that a time has several places.
  """
  held: list[av.Packet] = []
  for packet in packets:
    if packet.is_keyframe and packet.pts is not None and packet.pts <= ticks:
      held.clear()
      packet.stream.codec_context.flush_buffers()
    held.append(packet)
    if packet.dts is not None and packet.dts > ticks:
      break
  yield from held
  yield from packets


def _packets(track: Any) -> Iterator[av.Packet]:
  """All packets of a track, on one clock.

  The packets of MPEG-TS are numbered, and before a jump of the numbers one of
  the last two frames is marked as corrupt. Where a key frame follows, or where
  the clock goes back, intact files were joined; the clock runs on from there.
  """
  is_ts = track.container.format.name == "mpegts"
  marked, shift, last = 0, 0, None
  for packet in track.container.demux(track):
    if packet.dts is not None and packet.is_keyframe and is_ts and last:
      if marked or packet.dts + shift <= last.dts:
        marked, shift = 0, last.dts + last.duration - packet.dts
    elif marked == 1 or (marked and packet.dts is None):
      marked = -1
    marked = 2 if packet.is_corrupt else marked - (marked > 0)
    if marked < 0 or (marked and not is_ts):
      raise _truncated("it ends within a frame")
    if packet.dts is not None:
      packet.dts += shift
      last = packet
    if packet.pts is not None:
      packet.pts += shift
    yield packet


def _timed(
  packets: Iterable[av.Packet], ticks: deque[int], lag: int | None = None
) -> Iterator[av.VideoFrame]:
  """The frames in the packets, with increasing times in intact files.

  AVI numbers its packets in the order of decoding. The times that FFmpeg
  guesses from that are wrong with B-frames, so frames get the numbers in turn.

  Args:
    packets: packets of a track.
    ticks: receives the numbers that are left, of packets still in the decoder.
    lag: how many are left after each frame, if some frames cannot be decoded
      because decoding starts in the middle.
  """
  for packet in packets:
    if packet.dts is not None and packet.stream.container.format.name == "avi":
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


def _shown_size(
  frame: av.VideoFrame, aspect: float, short_side: int | None = None
) -> tuple[int, int]:
  """Width and height in square pixels, scaled down to `short_side`."""
  width, height = frame.width * aspect, frame.height
  scale = min((short_side or np.inf) / min(width, height), 1)
  return max(round(width * scale), 1), max(round(height * scale), 1)


def _covering(
  frame: av.VideoFrame, size: tuple[int, int], cover: tuple[int, int]
) -> tuple[int, int]:
  """`size` scaled down until the upright picture just covers `cover`."""
  a, b, *_ = _display_matrix(frame)
  if abs(b) > abs(a):
    cover = cover[::-1]
  scale = min(max(cover[0] / size[0], cover[1] / size[1]), 1)
  return round(size[0] * scale), round(size[1] * scale)


def _to_rgb(
  frame: av.VideoFrame, size: tuple[int, int], converter: VideoReformatter
) -> Frame:
  # As players do; swscale would take BT.601 for all of them.
  is_hd = frame.colorspace == _UNSPECIFIED and frame.height >= _HD_LINES
  shrinks = size[0] * size[1] < frame.width * frame.height
  scaler = Interpolation.AREA if shrinks else Interpolation.BICUBIC
  converted = converter.reformat(
    frame,
    *size,
    format="rgb24",
    src_colorspace=_BT709 if is_hd else None,
    interpolation=_EXACT | scaler,
    threads=1,
  )
  return _upright(converted.to_ndarray(), frame)


def _upright(rgb: Frame, frame: av.VideoFrame) -> UInt8[np.ndarray, "h2 w2 3"]:
  """The picture rotated and mirrored as the display matrix says."""
  a, b, c, d = _display_matrix(frame)
  if abs(b) > abs(a):
    rgb, a, d = rgb.transpose(1, 0, 2), c, b
  right, down = -1 if a < 0 else 1, -1 if d < 0 else 1
  return np.ascontiguousarray(rgb[::down, ::right])


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
  """(a, b, c, d), which show (x, y) at (ax + cy, bx + dy), y pointing down."""
  matrix = frame.side_data.get("DISPLAYMATRIX")
  if matrix is None:
    return 1, 0, 0, 1
  a, b, _, c, d = np.frombuffer(matrix, np.int32, 5).tolist()
  return a, b, c, d
