"""H.264 round trips, decoding of real files, and errors for damaged ones."""

import io
import os
import struct
import subprocess
import sys
import wave

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from data_pipelines.media import video
from data_pipelines.procedural import world
from i2vgen_jax.errors import InputError


@pytest.fixture(scope="module")
def clip():
  scene = world.numbered_scene(0, 3, "train")
  return world.render(scene, (96, 64), 12)


def psnr(a, b):
  return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def test_round_trip_keeps_pixels_and_times(clip):
  frames, times = video.decode_mp4(video.encode_mp4(clip, 8))
  assert frames.shape == clip.shape
  assert psnr(frames, clip) > 34
  np.testing.assert_allclose(times, np.arange(12) / 8, atol=1e-4)
  bias = (frames.astype(float) - clip).mean((0, 1, 2))
  assert np.abs(bias).max() < 1.5
  sharp, _ = video.decode_mp4(
    video.encode_mp4(clip, 8, crf=14, full_colour=True)
  )
  assert psnr(sharp, clip) > 42


@pytest.mark.parametrize("fps", [1, 12.5, 30000 / 1001, 60])
def test_the_frame_rate_is_written(clip, fps):
  data = video.encode_mp4(clip, fps)
  with av.open(io.BytesIO(data)) as container:
    stream = container.streams.video[0]
    assert float(stream.average_rate) == pytest.approx(fps, rel=1e-3)
    assert stream.codec_context.name == "h264"
    assert stream.codec_context.pix_fmt == "yuv420p"


def test_uneven_times_are_kept(clip):
  times = np.cumsum(np.random.default_rng(0).uniform(0.02, 0.2, len(clip)))
  times -= times[0]
  timed = zip(times.tolist(), clip, strict=True)
  data = video.encode_stream(timed, 8, (96, 64), crf=16)
  _, decoded = video.decode_mp4(data)
  np.testing.assert_allclose(decoded, times, atol=1e-4)


_ENCODE = """
import sys, numpy
from data_pipelines.media import video
frames = numpy.load(sys.argv[1])
sys.stdout.buffer.write(video.encode_mp4(frames, 8, full_colour=True))
"""


def test_equal_input_gives_equal_bytes_whatever_memory_contains(tmp_path):
  """x264's macroblock-tree rate control reads uninitialised memory."""
  scene = world.numbered_scene(3, 0, "test")
  np.save(tmp_path / "clip.npy", world.render(scene, (32, 32)))
  encodings = {
    subprocess.run(
      [sys.executable, "-c", _ENCODE, str(tmp_path / "clip.npy")],
      env=os.environ | {"MALLOC_PERTURB_": filling},
      capture_output=True,
      check=True,
    ).stdout
    for filling in ("0", "85", "170")
  }
  assert len(encodings) == 1
  assert len(encodings.pop()) > 500


def test_the_bytes_do_not_depend_on_the_number_of_cores(clip):
  """x264 writes its settings into its output."""
  data = video.encode_mp4(clip, 8)
  assert b" threads=1 lookahead_threads=1 sliced_threads=0 " in data


def test_only_selected_frames_are_returned(clip):
  data = video.encode_mp4(clip, 8)
  everything, times = video.decode_mp4(data)
  frames, chosen = video.decode_mp4(data, lambda t: [7, 2, 2])
  np.testing.assert_array_equal(frames, everything[[7, 2, 2]])
  np.testing.assert_array_equal(chosen, times[[7, 2, 2]])


@pytest.mark.parametrize(
  ("cover", "size"),
  [
    ((448, 256), (455, 256)),
    ((256, 256), (455, 256)),
    ((1920, 80), (1280, 720)),
  ],
)
def test_frames_are_scaled_to_cover_a_size(footage, cover, size):
  choose = lambda times: [60, 3, 70]  # noqa: E731
  whole, _ = video.decode_mp4(footage["bigbuckbunny"], choose)
  frames, first = video.decode_to_cover(footage["bigbuckbunny"], choose, cover)
  np.testing.assert_array_equal(first, whole[0])
  assert [frame.shape for frame in frames] == 3 * [(*size[::-1], 3)]
  for frame, picture in zip(frames, whole, strict=True):
    small = Image.fromarray(picture).resize(size, Image.Resampling.BOX)
    assert np.abs(frame - np.asarray(small, float)).mean() < 1.5


def test_frames_that_no_other_refers_to_are_left_out(clip, monkeypatch):
  decoded, timed = [], video._timed

  def recording(*args, **kwargs):
    for frame in timed(*args, **kwargs):
      decoded.append(frame)
      yield frame

  monkeypatch.setattr(video, "_timed", recording)
  data = video.encode_mp4(clip, 8)
  everything, _ = video.decode_mp4(data)
  assert len(decoded) == 12
  for number in range(12):
    decoded.clear()
    frames, _ = video.decode_to_cover(data, lambda t: [number], (96, 64))  # noqa: B023
    np.testing.assert_array_equal(frames, everything[[number]])
    assert len(decoded) < 12


def encoded(clip, codec, form, times=None, **options):
  """A file of any container and codec, with B-frames."""
  buffer = io.BytesIO()
  with av.open(buffer, "w", format=form) as container:
    stream = container.add_stream(codec, 25, options=options)
    stream.width, stream.height = clip.shape[2], clip.shape[1]
    stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    frames = map(av.VideoFrame.from_ndarray, clip)
    packets = [p for f in [*frames, None] for p in stream.encode(f)]
    for number, packet in enumerate(packets):
      if times is not None:
        packet.pts = packet.dts = times[number]
      container.mux(packet)
  return buffer.getvalue()


def trimmed(data, count):
  """The first packets cut by an edit list, as tools that copy do it."""
  buffer = io.BytesIO()
  with av.open(io.BytesIO(data)) as source:
    track = source.streams.video[0]
    times = sorted(p.pts for p in source.demux(track) if p.pts is not None)
  with (
    av.open(io.BytesIO(data)) as source,
    av.open(buffer, "w", format="mp4") as target,
  ):
    track = source.streams.video[0]
    stream = target.add_stream_from_template(track)
    for packet in source.demux(track):
      if packet.dts is not None:
        packet.pts -= times[count]
        packet.dts -= times[count]
        packet.stream = stream
        target.mux(packet)
  return buffer.getvalue()


@pytest.mark.parametrize(
  ("codec", "form", "cut"),
  [
    ("libx264", "mp4", 0),
    ("libx264", "mp4", 1),
    ("libx264", "mp4", 3),
    ("libx264", "avi", 0),
    ("mpeg4", "avi", 0),
    ("mpeg2video", "mpegts", 0),
    ("libx264", "matroska", 0),
  ],
)
def test_covering_frames_are_those_of_the_whole_video(
  tmp_path, codec, form, cut
):
  rng = np.random.default_rng(0)
  # Frames differ by their brightness, which every codec keeps.
  levels = rng.permutation(np.linspace(20, 230, 24)).astype(np.uint8)
  clip = np.broadcast_to(levels[:, None, None, None], (24, 32, 48, 3)).copy()
  data = encoded(clip, codec, form, bf="3")
  if cut:
    data = trimmed(data, cut)
  path = tmp_path / "video"
  path.write_bytes(data)
  everything, _ = video.decode_mp4(path)
  assert len(everything) > 15
  for number in range(len(everything)):
    frames, first = video.decode_to_cover(path, lambda t: [number], (48, 32))  # noqa: B023
    np.testing.assert_array_equal(frames[0], everything[number])
    np.testing.assert_array_equal(first, everything[number])


def test_frames_with_equal_times_are_all_kept(clip):
  times = [0, 1, 1, *range(2, 11)]
  data = encoded(clip, "mjpeg", "matroska", times)
  frames, found = video.decode_mp4(data)
  assert len(frames) == 12 and found[1] == found[2]
  for number in (1, 2):
    assert psnr(frames[number], clip[number]) > 24


@pytest.mark.parametrize("last", [0, 4, 11])
def test_decoding_stops_after_until(clip, monkeypatch, last):
  data = video.encode_mp4(clip, 8)
  everything, _ = video.decode_mp4(data)
  # Room for the frames up to the one after `last` only.
  monkeypatch.setattr(video, "MAX_BYTES", 3 * 96 * 64 * min(last + 2, 12))
  seen = []
  frames, _ = video.decode_mp4(
    data, lambda times: seen.append(len(times)) or [last], until=last / 8
  )
  assert seen == [min(last + 2, 12)]
  np.testing.assert_array_equal(frames, everything[[last]])


def test_large_videos_are_scaled_down_by_area(clip):
  data = video.encode_mp4(clip, 8, crf=6, full_colour=True)
  frames, _ = streamed(data, short_side=32)
  assert frames.shape == (12, 32, 48, 3)
  averaged = clip.reshape(12, 32, 2, 48, 2, 3).mean((2, 4))
  assert psnr(frames, averaged) > 38
  assert streamed(data, short_side=100)[0].shape == clip.shape


@pytest.mark.parametrize(
  ("matrix", "quarters_clockwise"),
  [((0, 1, -1, 0), 1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 3)],
)
def test_rotated_videos_are_upright(clip, matrix, quarters_clockwise):
  """The track header maps (x, y) to (ax + cy, bx + dy), y pointing down."""
  data = video.encode_mp4(clip, 8)
  a, b, c, d = matrix
  identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
  turned = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
  start = data.index(identity, data.index(b"tkhd"))
  data = data[:start] + struct.pack(">9i", *turned) + data[start + 36 :]
  frames, _ = video.decode_mp4(data)
  upright = np.rot90(clip, -quarters_clockwise, axes=(1, 2))
  assert frames.shape == upright.shape
  assert psnr(frames, upright) > 34
  width, height = upright.shape[2] // 2, upright.shape[1] // 4
  small, first = video.decode_to_cover(data, lambda t: [4], (width, height))
  np.testing.assert_array_equal(first, frames[4])
  assert small[0].shape[:2] == (upright.shape[1] // 2, width)


@pytest.mark.parametrize(
  ("name", "shape", "seconds"),
  [("bikes", (250, 272, 640, 3), 10), ("bigbuckbunny", (132, 720, 1280, 3), 5)],
)
def test_real_videos_are_decoded(footage, name, shape, seconds):
  frames, times = video.decode_mp4(footage[name], lambda t: [0, len(t) - 1])
  assert frames.shape[1:] == shape[1:]
  assert times[-1] == pytest.approx(seconds, abs=0.5)
  assert frames[0].std() > 20
  assert psnr(frames[0], frames[1]) < 30


def test_a_file_decodes_like_its_bytes(tmp_path, clip):
  path = tmp_path / "out.mp4"
  path.write_bytes(video.encode_mp4(clip, 8))
  frames, _ = video.decode_mp4(path)
  assert psnr(frames, clip) > 34


def test_frames_that_h264_cannot_hold_are_refused(clip):
  with pytest.raises(InputError, match="95x64"):
    video.encode_mp4(clip[:, :, 1:], 8)
  with pytest.raises(InputError, match="0 frames"):
    video.encode_mp4(clip[:0], 8)
  with pytest.raises(InputError, match="fps"):
    video.encode_mp4(clip, 0)


def sound_only():
  buffer = io.BytesIO()
  with wave.open(buffer, "wb") as sound:
    sound.setnchannels(1)
    sound.setsampwidth(2)
    sound.setframerate(8000)
    sound.writeframes(bytes(16000))
  return buffer.getvalue()


@pytest.mark.parametrize(
  ("spoil", "reason"),
  [
    (lambda data: b"", "empty"),
    (lambda data: b"no video at all " * 50, "damaged or not a video"),
    (lambda data: data[: len(data) // 2], "damaged"),
    (lambda data: sound_only(), "no video track"),
  ],
)
def test_errors_name_the_file_and_the_reason(tmp_path, clip, spoil, reason):
  path = tmp_path / "given.mp4"
  path.write_bytes(spoil(video.encode_mp4(clip, 8)))
  with pytest.raises(InputError, match=reason) as caught:
    video.decode_mp4(path)
  assert "given.mp4" in str(caught.value)
  assert "\n" not in str(caught.value)


def test_an_error_names_a_missing_file(tmp_path):
  with pytest.raises(InputError, match=r"absent\.mp4.*No such file"):
    video.decode_mp4(tmp_path / "absent.mp4")


def test_videos_larger_than_memory_are_refused(clip, monkeypatch):
  monkeypatch.setattr(video, "MAX_BYTES", 3 * 96 * 64 * 11)
  with pytest.raises(InputError, match="too long"):
    video.decode_mp4(video.encode_mp4(clip, 8))


def test_only_the_chosen_frames_take_memory(clip, monkeypatch):
  data = video.encode_mp4(clip, 240)
  everything, _ = video.decode_mp4(data)
  monkeypatch.setattr(video, "MAX_BYTES", 3 * 96 * 64 * 2)
  frames, _ = video.decode_mp4(data, lambda times: [3, 11])
  np.testing.assert_array_equal(frames, everything[[3, 11]])
  with pytest.raises(InputError, match="too long"):
    video.decode_mp4(data, lambda times: [3, 7, 11])
  # A caller that bounds the part knows how much it asks for.
  frames, _ = video.decode_mp4(data, lambda times: range(9), until=8 / 240)
  np.testing.assert_array_equal(frames, everything[:9])


def test_a_decoded_frame_is_released_before_the_next_one(clip, monkeypatch):
  data = video.encode_mp4(np.concatenate([clip] * 5), 240)
  places, timed = [], video._timed

  def watched(*arguments):
    for frame in timed(*arguments):
      places.append(frame.planes[0].buffer_ptr)
      yield frame

  monkeypatch.setattr(video, "_timed", watched)
  video.decode_mp4(data, lambda times: [0, len(times) - 1])
  assert len(places) == 60
  # The memory of a released frame is reused for a later one.
  assert len(set(places)) < 30


def test_frames_in_packets_with_other_times_are_chosen_by_their_own(tmp_path):
  """AVI with B-frames; the times in its packets are a guess."""
  pictures = np.arange(0, 240, 10, np.uint8)[:, None, None, None]
  pictures = np.tile(pictures, (1, 64, 96, 3))
  path = tmp_path / "a.avi"
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=12)
    stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
    stream.options = {"bf": "2"}
    for picture in pictures:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
    container.mux(stream.encode())
  frames, times = video.decode_mp4(path, lambda t: [0, 7, len(t) - 1])
  np.testing.assert_allclose(times, np.array([0, 7, 23]) / 12)
  np.testing.assert_allclose(frames.mean((1, 2, 3)), [0, 70, 230], atol=4)


def test_frames_closer_than_a_tick_are_kept(clip):
  timed = ((n * 1e-6, frame) for n, frame in enumerate(clip))
  data = video.encode_stream(timed, 240, (96, 64), crf=16)
  _, decoded = video.decode_mp4(data)
  np.testing.assert_allclose(decoded, np.arange(12) / 90_000, atol=1e-6)


@pytest.mark.parametrize("matrix", [Colorspace.ITU601, Colorspace.ITU709])
@pytest.mark.parametrize("tagged", [False, True])
@pytest.mark.parametrize("size", [(64, 720), (1280, 718), (64, 1080)])
def test_colour_without_a_tag_is_bt709_from_720_lines_on(size, tagged, matrix):
  width, height = size
  picture = np.full((height, width, 3), (30, 200, 60), np.uint8)
  buffer, code = io.BytesIO(), {Colorspace.ITU601: 5, Colorspace.ITU709: 1}
  with av.open(buffer, "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=12)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.codec_context.colorspace = code[matrix] if tagged else 2
    frame = av.VideoFrame.from_ndarray(picture).reformat(
      format="yuv420p", dst_colorspace=matrix, dst_color_range=ColorRange.MPEG
    )
    container.mux(stream.encode(frame))
    container.mux(stream.encode())
  frames, _ = video.decode_mp4(buffer.getvalue())
  expected = Colorspace.ITU709 if height >= 720 else Colorspace.ITU601
  error = np.abs(frames[0].astype(int) - picture).max()
  assert (error < 4) == (tagged or matrix == expected)


def streamed(source, **options):
  times, frames = zip(*video.stream(source, **options), strict=True)
  return np.stack(frames), np.array(times)


@pytest.fixture(scope="module")
def long_data(clip):
  # Half a minute; x264 writes a key frame at least every 250 frames.
  return video.encode_mp4(np.concatenate([clip, clip[::-1]] * 30), 24)


def test_streaming_equals_decoding_at_once(footage):
  frames, times = streamed(footage["bikes"])
  expected, when = video.decode_mp4(footage["bikes"])
  np.testing.assert_array_equal(frames, expected)
  np.testing.assert_array_equal(times, when)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (12.3, 13.1), (29, None)])
def test_streaming_a_part(long_data, start, stop):
  expected, times = video.decode_mp4(long_data)
  inside = (times >= start) & (times < (stop or np.inf))
  frames, when = streamed(long_data, start=start, stop=stop)
  np.testing.assert_array_equal(when, times[inside])
  np.testing.assert_array_equal(frames, expected[inside])


def test_streaming_a_part_starts_at_a_key_frame(long_data, monkeypatch):
  decoded = []
  timed = video._timed

  def counted(*arguments):
    for frame in timed(*arguments):
      decoded.append(frame.time)
      yield frame

  monkeypatch.setattr(video, "_timed", counted)
  assert len(streamed(long_data, start=25, stop=25.2)[1]) == 5
  assert len(decoded) < 260  # of 720


def test_streaming_is_not_limited_by_memory(long_data, monkeypatch):
  monkeypatch.setattr(video, "MAX_BYTES", 3 * 96 * 64 * 11)
  assert len(streamed(long_data)[0]) == 720
  with pytest.raises(InputError, match="too long"):
    video.decode_mp4(long_data)


def test_streaming_a_part_after_the_end_yields_nothing(long_data):
  assert list(video.stream(long_data, start=100)) == []


@pytest.mark.parametrize(
  ("spoil", "reason"),
  [
    (lambda data: b"", "empty"),
    (lambda data: data[: len(data) // 2], "damaged"),
    (lambda data: sound_only(), "no video track"),
  ],
)
def test_streaming_errors_name_the_file_and_the_reason(
  tmp_path, clip, spoil, reason
):
  path = tmp_path / "given.mp4"
  path.write_bytes(spoil(video.encode_mp4(clip, 8)))
  with pytest.raises(InputError, match=reason) as caught:
    list(video.stream(path))
  assert "given.mp4" in str(caught.value)
  with pytest.raises(InputError, match="absent"):
    list(video.stream(tmp_path / "absent.mp4"))
