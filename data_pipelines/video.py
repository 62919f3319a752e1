"""The only user of PyAV: frames to H.264 and any video file to frames."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import (
  ColorRange,
  Colorspace,
  Interpolation,
  VideoReformatter,
)
from jaxtyping import Float, UInt8

from data_pipelines.atomic import appearing
from data_pipelines.quarantine import Unusable
from i2vgen_jax.errors import InputError

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


# Transfer functions of high dynamic range: PQ and HLG, as ITU-T H.273 has them.
_HDR = (16, 18)


def probe(source: bytes | str | Path, *, name: str | None = None) -> float:
  """Looks whether a film is of a kind that can be used.

  Returns:
    Frames per second as the container tells them, 25 if it tells none.

  Raises:
    Unusable: missing, empty, damaged, without a video or without a frame in
      it; interlaced, of high dynamic range, or of too many pixels.
  """
  name = _called(source, name)
  with _opened(source, name) as container:
    track = container.streams.video[0]
    width, height = track.codec_context.width, track.codec_context.height
    if width * height > MAX_PIXELS:
      raise Unusable(
        "too-large",
        f"video {name} is {width}x{height}, more than {MAX_PIXELS} pixels;"
        " scale it down first",
      )
    _, frame = next(_frames(container, 0, name))
    if frame.interlaced_frame:
      raise Unusable(
        "interlaced", f"video {name} is interlaced; deinterlace it first"
      )
    if frame.color_trc in _HDR:
      raise Unusable(
        "hdr", f"video {name} is of high dynamic range; map its tones first"
      )
    return float(track.average_rate or 25)


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
    with appearing(path) as unfinished:
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
  """Decodes a video of any container and codec, turned upright.

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
  """
  name = _called(source, name)
  decoded = _within_limit(_decode(source, name), until, name)
  times, frames = zip(*decoded, strict=True)
  times = np.array(times, np.float64)
  chosen = list(range(len(times)) if select is None else select(times))
  size = _scaled(frames[0], short_side)
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
  """Yields the frames of a video of any length one by one, turned upright.

  Memory holds a few frames. Reading begins at the key frame before `start`.
  That a file is cut short shows only when it is read from start to end.

  Args:
    source: the file's path, or its bytes.
    short_side: scale down, by area, until the shorter side is at most this.
    start: seconds from the file's first frame; earlier frames are left out.
    stop: frames from this time on are left out; None reads to the end.
    name: what messages call it; the path when absent.

  Yields:
    Each frame's time, in seconds from the file's first frame, and its pixels.

  Raises:
    InputError: missing, empty, damaged, or without a video in it; raised when
      the frame is asked for that cannot be read.
  """
  size, converter = None, VideoReformatter()
  for time, frame in _decode(source, _called(source, name), start):
    size = size or _scaled(frame, short_side)
    if stop is not None and time >= stop:
      return
    if time >= start:
      yield time, _to_rgb(frame, size, converter)


def _called(source: bytes | str | Path, name: str | None) -> str:
  return name or ("video" if isinstance(source, bytes) else str(source))


def _within_limit(
  decoded: Iterator[tuple[float, av.VideoFrame]],
  until: float | int | None,
  name: str,
) -> Iterator[tuple[float, av.VideoFrame]]:
  """As much as memory may hold, up to the first frame after `until`."""
  num_bytes = 0
  for time, frame in decoded:
    num_bytes += 3 * frame.width * frame.height
    if num_bytes > MAX_BYTES:
      raise Unusable(
        "too-long",
        f"video {name} is too long: over {MAX_BYTES >> 30} GiB decoded;"
        " cut it into short clips first",
      )
    yield time, frame
    if until is not None and time > until:
      return


def _scaled(frame: av.VideoFrame, short_side: int | None) -> tuple[int, int]:
  """The size that all frames get; ones of another size are rare."""
  scale = min((short_side or np.inf) / min(frame.width, frame.height), 1)
  return round(frame.width * scale), round(frame.height * scale)


def _to_rgb(
  frame: av.VideoFrame, size: tuple[int, int], converter: VideoReformatter
) -> UInt8[np.ndarray, "h w 3"]:
  shrinks = size[0] < frame.width
  scaler = Interpolation.AREA if shrinks else Interpolation.BICUBIC
  rgb = converter.reformat(
    frame,
    *size,
    format="rgb24",
    interpolation=_EXACT | scaler,
    threads=1,
  )
  return np.rot90(rgb.to_ndarray(), frame.rotation // 90)


def _decode(
  source: bytes | str | Path, name: str, start: float | int = 0
) -> Iterator[tuple[float, av.VideoFrame]]:
  """Frames in the codec's own pixel format, in order of time.

  The times are seconds from the file's first frame. Decoding begins at a key
  frame before `start`.
  """
  with _opened(source, name) as container:
    yield from _frames(container, start, name)


@contextlib.contextmanager
def _opened(source: bytes | str | Path, name: str) -> Iterator[Any]:
  """A container with a video in it."""
  is_path = not isinstance(source, bytes)
  try:
    size = os.stat(source).st_size if is_path else len(source)
  except OSError as error:
    raise Unusable(
      "missing", f"cannot read video {name}: {error.strerror}; check the path"
    ) from error
  if not size:
    raise Unusable(
      "empty", f"video {name} is empty (0 bytes); give another file"
    )
  try:
    with av.open(str(source) if is_path else io.BytesIO(source)) as container:
      if not container.streams.video:
        raise Unusable(
          "no-video", f"{name} has no video in it; give a video file"
        )
      yield container
  except av.FFmpegError as error:
    raise Unusable(
      "damaged",
      f"video {name} is damaged or no video ({error.strerror});"
      " give an intact file",
    ) from error


def _frames(
  container, start: float | int, name: str
) -> Iterator[tuple[float, av.VideoFrame]]:
  track = container.streams.video[0]
  # Readers run many of these at once; one thread each is fastest in all.
  track.codec_context.thread_count = 1
  track.codec_context.thread_type = "NONE"
  frames = _timed(container, track, name)
  first = next(frames, None)
  if first is None:
    raise Unusable(
      "no-frames", f"video {name} has no frames; give an intact file"
    )
  if start > 0:
    yield from _from_key_frame(container, track, first.time, start, name)
    return
  yield 0.0, first
  count = 1
  for frame in frames:
    count += 1
    yield frame.time - first.time, frame
  if count < track.frames:
    raise Unusable(
      "truncated",
      f"video {name} is truncated: {count} of {track.frames} frames;"
      " give an intact file",
    )


def _from_key_frame(
  container, track, origin: float, start: float | int, name: str
) -> Iterator[tuple[float, av.VideoFrame]]:
  ticks = int((origin + start) / track.time_base)
  container.seek(ticks, stream=track)
  frames = _timed(container, track, name)
  frame = next(frames, None)
  if frame is None or frame.time > origin + start:
    # Containers without an index can land behind the place.
    container.seek(int(origin / track.time_base), stream=track)
    frames = _timed(container, track, name)
    frame = next(frames, None)
  while frame is not None:
    yield frame.time - origin, frame
    frame = next(frames, None)


def _timed(container, track, name: str) -> Iterator[av.VideoFrame]:
  for packet in container.demux(track):
    if packet.is_corrupt:
      raise Unusable(
        "truncated",
        f"video {name} is truncated: it ends within a frame; give an intact"
        " file",
      )
    for frame in packet.decode():
      if frame.time is None:
        raise Unusable(
          "no-times", f"a frame of video {name} has no time; convert it"
        )
      if frame.is_corrupt:
        raise Unusable(
          "damaged", f"a frame of video {name} is damaged; give an intact file"
        )
      yield frame
