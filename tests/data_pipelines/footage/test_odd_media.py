"""Unusual videos and pictures are used, or refused with one reason."""

import collections
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image
from skimage import data

from data_pipelines.footage.build import build_footage
from data_pipelines.footage.clips import encode, scan
from data_pipelines.footage.manifest import ManifestRow
from data_pipelines.footage.quarantine import read_drops
from data_pipelines.footage.settings import FootageSettings, ScanSettings
from data_pipelines.loading.reader import Reader
from data_pipelines.media import video
from data_pipelines.shards.dataset import Dataset, dataset_dir
from i2vgen_jax.errors import InputError

WHOLE = ScanSettings(split_shots=False, min_frames=8)
TICK = Fraction(1, 1000)


def frames(count=24, size=(96, 64)):
  """A photo panned by two pixels per frame."""
  width, height = size
  photo = data.chelsea()
  return np.stack(
    [photo[50 : 50 + height, 2 * n : 2 * n + width] for n in range(count)]
  )


def write(path, pictures, codec="libx264", pixels="yuv420p", **given):
  """Writes a video; `given` holds codec settings and what is popped here."""
  times, aspect = given.pop("times", None), given.pop("aspect", None)
  rate, options = given.pop("rate", 12), given.pop("options", {})
  with av.open(str(path), "w", options=given.pop("muxer", {})) as container:
    stream = container.add_stream(codec, rate=rate)
    stream.height, stream.width = pictures.shape[1:3]
    stream.pix_fmt, stream.options = pixels, options
    if times:
      stream.time_base = stream.codec_context.time_base = TICK
    if aspect:
      stream.sample_aspect_ratio = aspect
    for name, value in given.items():
      setattr(stream.codec_context, name, value)
    for number, picture in enumerate(pictures):
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))
      if times:
        frame.pts, frame.time_base = times[number], TICK
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def found(path, settings=WHOLE):
  """The only candidate of a file, and its example."""
  source = ManifestRow(1, path.name, str(path), ("x",))
  [candidate], drops = scan(source, path, settings)
  assert not drops
  return candidate, encode(candidate, path, 720)


def reason(path, settings=WHOLE):
  """Reason for which a file is refused."""
  source = ManifestRow(1, path.name, str(path), ("x",))
  try:
    candidates, [drop] = scan(source, path, settings)
  except InputError as error:
    assert str(error).isprintable()
    return error.reason
  assert not candidates
  return drop.reason


GOOD = {  # name -> arguments of `write`
  "gray.mkv": {"codec": "ffv1", "pixels": "gray"},
  "alpha.mov": {"codec": "qtrle", "pixels": "argb"},
  "alpha.webm": {"codec": "libvpx-vp9", "pixels": "yuva420p"},
  "deep.mkv": {"pixels": "yuv420p10le"},
  "full.mp4": {"pixels": "yuv444p"},
  "moves.gif": {"codec": "gif", "pixels": "rgb8"},
  "fragments.mp4": {"muxer": {"movflags": "frag_keyframe+empty_moov"}},
  "fast.mkv": {"rate": 1000},
  "uneven.mkv": {"times": np.cumsum([5, 9, 50, 120] * 6).tolist()},
  "early.mkv": {"times": [83 * n - 500 for n in range(24)]},
  "late.mp4": {"times": [83 * n + 100_000 for n in range(24)]},
  "film.flv": {},
  "film.ts": {},
  "film.mpg": {"codec": "mpeg2video", "rate": 24},
  "film.wmv": {"codec": "wmv2"},
  "film.avi": {"codec": "mpeg4"},
}


@pytest.mark.parametrize("name", GOOD)
def test_usable_videos(tmp_path, name):
  path = write(tmp_path / name, frames(), **GOOD[name])
  candidate, example = found(path)
  assert (candidate.num_frames, example.width, example.height) == (24, 96, 64)
  decoded, times = video.decode_mp4(example.media)
  assert (np.diff(times) > 0).all()
  # GIF has few colours, and gray video has none.
  lumas = decoded.mean(-1) - frames().mean(-1)
  assert np.abs(lumas).mean() < 16


@pytest.mark.parametrize("start", [0.5, 1.2])
@pytest.mark.parametrize(
  "name", ["moves.gif", "film.avi", "film.ts", "film.mpg", "film.wmv"]
)
def test_a_part_of_a_video_without_index(tmp_path, name, start):
  path = write(tmp_path / name, frames(), **GOOD[name])
  expected = [
    time for time, _ in video.stream(path) if start <= time < start + 0.5
  ]
  part = video.stream(path, start=start, stop=start + 0.5)
  assert [time for time, _ in part] == pytest.approx(expected)


@pytest.mark.parametrize(
  ("aspect", "width"), [((4, 3), 128), ((1, 2), 48), ((8, 9), 84)]
)
def test_pixels_are_made_square(tmp_path, aspect, width):
  path = write(tmp_path / "a.mp4", frames(), aspect=Fraction(*aspect))
  _, example = found(path)
  assert (example.width, example.height) == (width, 64)


@pytest.mark.parametrize(
  ("matrix", "shown"),
  [
    ((-1, 0, 0, 1), lambda x: x[:, :, ::-1]),
    ((1, 0, 0, -1), lambda x: x[:, ::-1]),
    ((0, 1, 1, 0), lambda x: x.transpose(0, 2, 1, 3)),
    ((0, -1, -1, 0), lambda x: x.transpose(0, 2, 1, 3)[:, ::-1, ::-1]),
    ((-1, 0, 0, -1), lambda x: x[:, ::-1, ::-1]),
  ],
)
def test_mirrored_videos_are_decoded_as_players_show_them(
  tmp_path, matrix, shown
):
  raw = bytearray(write(tmp_path / "a.mp4", frames()).read_bytes())
  a, b, c, d = (value << 16 for value in matrix)
  place = raw.index(b"tkhd") + 4 + 40
  raw[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
  (tmp_path / "a.mp4").write_bytes(raw)
  _, example = found(tmp_path / "a.mp4")
  decoded, _ = video.decode_mp4(example.media)
  assert np.abs(decoded.astype(int) - shown(frames())).mean() < 6


def test_an_edit_list_selects_a_part(tmp_path):
  """As in a video trimmed on a phone, which is not truncated."""
  raw = bytearray(write(tmp_path / "a.mp4", frames()).read_bytes())
  place = raw.index(b"elst") + 12
  duration, _ = struct.unpack(">Ii", raw[place : place + 8])
  raw[place : place + 4] = struct.pack(">I", duration // 2)
  (tmp_path / "a.mp4").write_bytes(raw)
  assert found(tmp_path / "a.mp4")[0].num_frames == 12


def patched(path, box, offset, value):
  raw = bytearray(write(path, frames()).read_bytes())
  place = raw.index(box) + offset
  raw[place : place + 4] = value
  path.write_bytes(raw)


@pytest.mark.parametrize("box", [b"mvhd", b"mdhd"])
def test_a_wrong_duration_in_the_header_is_ignored(tmp_path, box):
  patched(tmp_path / "a.mp4", box, 20, b"\x7f\xff\xff\xf0")
  assert found(tmp_path / "a.mp4")[0].num_frames == 24


def test_metadata_in_another_encoding_is_ignored(tmp_path):
  raw = write(tmp_path / "a.mkv", frames()).read_bytes()
  assert b"Lavf" in raw
  (tmp_path / "a.mkv").write_bytes(raw.replace(b"Lavf", b"caf\xe9"))
  found(tmp_path / "a.mkv")


def test_a_cover_picture_is_ignored(tmp_path):
  path = tmp_path / "a.mp4"
  with av.open(str(path), "w") as container:
    cover = container.add_stream("mjpeg", rate=1)
    cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
    cover.disposition = Disposition.attached_pic
    film = container.add_stream("libx264", rate=12)
    film.width, film.height, film.pix_fmt = 96, 64, "yuv420p"
    for stream, count in ((cover, 1), (film, 24)):
      for picture in frames(count):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))
        container.mux(stream.encode(frame))
      container.mux(stream.encode())
  assert found(path)[0].num_frames == 24


@pytest.mark.parametrize("value", [b"\0\0\0\0", b"\x7f\xff\xff\xff"])
def test_frames_of_zero_or_endless_duration_are_refused(tmp_path, value):
  patched(tmp_path / "a.mp4", b"stts", 16, value)
  assert reason(tmp_path / "a.mp4") in ("no-times", "few-frames")


BAD = {
  "fields.mkv": (
    "interlaced",
    {"options": {"x264-params": "tff=1"}},
  ),
  "pq.mkv": ("hdr", {"pixels": "yuv420p10le", "color_trc": 16}),
  "hlg.mkv": ("hdr", {"pixels": "yuv420p10le", "color_trc": 18}),
  "wide.mkv": ("damaged", {"aspect": Fraction(50, 1)}),
  "hour.mkv": ("few-frames", {"times": [60_000 * n for n in range(24)]}),
  "slow.mp4": ("few-frames", {"rate": Fraction(1, 2)}),
  "days.mkv": ("too-long", {"times": [10**7 * n for n in range(24)]}),
}


@pytest.mark.parametrize("name", BAD)
def test_unusable_videos(tmp_path, name):
  expected, given = BAD[name]
  assert reason(write(tmp_path / name, frames(), **given)) == expected


@pytest.mark.parametrize("rate", [Fraction(1, 60), 1000])
def test_implausible_frame_rates_do_not_break_shot_detection(tmp_path, rate):
  path = write(tmp_path / "a.mkv", frames(), rate=rate)
  assert reason(path, ScanSettings()) in ("few-frames", "no-shot")


def test_a_video_that_becomes_interlaced_is_refused(tmp_path):
  parts = []
  for options in ({}, {"flags": "+ildct+ilme"}):
    path = tmp_path / "part.mpg"
    write(path, frames(), "mpeg2video", rate=24, options=options)
    parts.append(path.read_bytes())
  (tmp_path / "a.mpg").write_bytes(b"".join(parts))
  assert reason(tmp_path / "a.mpg") == "interlaced"


def test_a_video_that_changes_its_size_is_refused(tmp_path):
  parts = []
  for size in ((96, 64), (64, 96)):
    path = tmp_path / "part.mpg"
    write(path, frames(size=size), "mpeg2video", rate=24)
    parts.append(path.read_bytes())
  (tmp_path / "a.mpg").write_bytes(b"".join(parts))
  assert reason(tmp_path / "a.mpg") == "resized"


def test_audio_with_a_cover_picture_has_no_video(tmp_path):
  path = tmp_path / "a.mp3"
  with av.open(str(path), "w") as container:
    sound = container.add_stream("libmp3lame", rate=44100)
    cover = container.add_stream("mjpeg", rate=1)
    cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
    cover.disposition = Disposition.attached_pic
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frames(1)[0]))
    frame.pts = 0
    container.mux(cover.encode(frame))
    container.mux(cover.encode())
    silence = av.AudioFrame.from_ndarray(
      np.zeros((2, 1152), np.float32), "fltp", "stereo"
    )
    silence.sample_rate = 44100
    for _ in range(40):
      container.mux(sound.encode(silence))
    container.mux(sound.encode())
  path.rename(tmp_path / "a.mp4")
  assert reason(tmp_path / "a.mp4") == "no-video"


@pytest.mark.parametrize(
  ("content", "expected"),
  [
    (b"ffconcat version 1.0\nfile a.mp4\n", "damaged"),
    (b"#EXTM3U\n#EXTINF:3,\na.mp4\n#EXT-X-ENDLIST\n", "damaged"),
    (b"<html><body>404</body></html>" * 20, "damaged"),
    (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "damaged"),
    (bytes(100_000), "damaged"),
    (b"1\n00:00:01,000 --> 00:00:02,000\nhi\n", "no-video"),
  ],
)
def test_other_content_is_refused(tmp_path, content, expected):
  write(tmp_path / "a.mp4", frames())
  (tmp_path / "b.mp4").write_bytes(content)
  assert reason(tmp_path / "b.mp4") == expected


@pytest.mark.parametrize("suffix", ["mkv", "ts", "avi", "mp4"])
def test_a_video_damaged_in_the_middle_is_refused(tmp_path, suffix):
  codec = "mpeg4" if suffix == "avi" else "libx264"
  path = write(tmp_path / f"a.{suffix}", frames(size=(192, 128)), codec)
  raw = bytearray(path.read_bytes())
  places = np.random.default_rng(1).integers(
    len(raw) // 3, len(raw) * 2 // 3, 99
  )
  for place in places.tolist():
    raw[place] ^= 0xA5
  path.write_bytes(raw)
  assert reason(path) in ("damaged", "truncated", "no-times", "few-frames")


PICTURES = ["jpg", "png", "webp", "tif", "bmp", "ppm", "avif"]


@pytest.mark.parametrize("suffix", PICTURES)
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_truncated_picture_is_damaged(tmp_path, suffix, share):
  path = tmp_path / f"a.{suffix}"
  Image.fromarray(data.chelsea()).save(path)
  assert found(path)[1].width == 451
  raw = path.read_bytes()
  path.write_bytes(raw[: int(len(raw) * share)])
  assert reason(path) == "damaged"


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.tif"])
def test_the_first_picture_of_a_file_is_used(tmp_path, name):
  pages = [Image.fromarray(frame) for frame in frames(4)]
  pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
  candidate, example = found(tmp_path / name)
  assert (candidate.kind, candidate.num_frames) == ("text_image", 1)
  assert (example.width, example.height) == (96, 64)


AVI = {  # codec and arguments of `write`
  "variable rate": ("mpeg4", {"times": np.cumsum([50, 100, 250] * 8).tolist()}),
  "no frames at the end": ("mpeg4", {"times": [0, *range(900, 1820, 40)]}),
  "mpeg4 b-frames": ("mpeg4", {"max_b_frames": 2, "gop_size": 12}),
  "mpeg2 b-frames": ("mpeg2video", {"max_b_frames": 2, "rate": 24}),
  "h264 b-frames": ("libx264", {"options": {"bf": "2", "g": "8"}}),
  "variable rate and b-frames": (
    "libx264",
    {"times": np.cumsum([50, 100, 250] * 8).tolist(), "max_b_frames": 2},
  ),
  "open groups": (
    "libx264",
    {"options": {"x264-params": "open-gop=1:keyint=8:bframes=3"}},
  ),
}


@pytest.mark.parametrize("name", AVI)
def test_avi_is_intact_unless_its_end_is_missing(tmp_path, name):
  codec, given = AVI[name]
  path = write(tmp_path / "a.avi", frames(size=(192, 128)), codec, **given)
  assert found(path)[0].num_frames == 24
  whole = list(video.stream(path))
  lumas = np.array([frame.mean() for _, frame in whole])
  assert np.corrcoef(lumas, frames(size=(192, 128)).mean((1, 2, 3)))[0, 1] > 0.9
  # Decoding from the middle gives the same times and pixels.
  for start, _ in whole:
    part = list(video.stream(path, start=start))
    assert [time for time, _ in part] == [t for t, _ in whole if t >= start]
    np.testing.assert_array_equal(part[0][1], whole[-len(part)][1])
  raw = path.read_bytes()
  path.write_bytes(raw[: len(raw) * 2 // 3])
  assert reason(path) == "truncated"
  with pytest.raises(InputError, match=r"truncated|damaged"):
    video.decode_mp4(path)


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
@pytest.mark.parametrize("suffix", ["ts", "m2ts"])
def test_joined_mpeg_ts_runs_on(tmp_path, codec, suffix):
  parts = [frames(), frames()[:, ::-1], frames(36)]
  raw = []
  for part in parts:
    path = write(tmp_path / f"part.{suffix}", part, codec, rate=24)
    raw.append(path.read_bytes())
  path = tmp_path / f"a.{suffix}"
  path.write_bytes(b"".join(raw))
  candidate, example = found(path)
  assert candidate.num_frames == 84
  decoded, times = video.decode_mp4(example.media)
  np.testing.assert_allclose(times, np.arange(84) / 24, atol=1e-3)
  assert np.abs(decoded.astype(int) - np.concatenate(parts)).mean() < 10
  whole = list(video.stream(path))
  for number in (3, 20, 26, 50, 80):
    part = list(video.stream(path, start=whole[number][0]))
    assert len(part) == 84 - number
    np.testing.assert_array_equal(part[0][1], whole[number][1])


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
@pytest.mark.parametrize("whole_end", [False, True])
def test_joined_mpeg_ts_with_a_truncated_part_is_refused(
  tmp_path, codec, whole_end
):
  rng = np.random.default_rng(0)
  noise = rng.integers(256, size=(24, 128, 192, 3), dtype=np.uint8)
  raw = write(tmp_path / "part.ts", noise, codec, rate=24).read_bytes()
  path = tmp_path / "a.ts"
  path.write_bytes(raw + raw)
  assert found(path)[0].num_frames == 48
  # Within a frame, between packets.
  cut = len(raw) // 376 * 188
  end = raw if whole_end else raw[cut + 20 * 188 :]
  path.write_bytes(raw[:cut] + end)
  assert reason(path) in ("damaged", "truncated")


@pytest.mark.parametrize(
  ("suffix", "codec", "tick"),
  [
    ("webm", "libvpx", Fraction(1, 1000)),
    ("mkv", "libx264", Fraction(1, 1000)),
    ("mp4", "libx264", Fraction(1, 90_000)),
    ("mp4", "libx264", Fraction(1, 10**6)),
  ],
)
@pytest.mark.parametrize("at", [1, 2, 12, 21, 22])
def test_frames_one_tick_apart_are_kept(
  tmp_path, monkeypatch, suffix, codec, tick, at
):
  """Two frames that are close at any place of a film or of a part."""
  monkeypatch.setitem(globals(), "TICK", tick)
  times = [round(n / 12 / tick) for n in range(24)]
  times[at + 1] = times[at] + 1
  path = write(tmp_path / f"a.{suffix}", frames(), codec, times=times)
  candidate, example = found(path)
  assert candidate.num_frames == len(video.decode_mp4(example.media)[0]) == 24
  when = [time for time, _ in video.stream(path)]
  for a, b in ((at, 24), (at + 1, 24), (0, at + 1), (0, at + 2)):
    if b - a >= 2:
      part = candidate._replace(
        start=when[a], last=when[b - 1], num_frames=b - a
      )
      assert len(video.decode_mp4(encode(part, path, 720).media)[0]) == b - a


@pytest.mark.parametrize(
  ("count", "expected"), [(1, "few-frames"), (8, "few-frames"),
                          (16, "few-frames"), (19, "few-frames"),
                          (40, "no-shot")],
)  # fmt: skip
@pytest.mark.parametrize("is_black", [False, True])
def test_a_short_film_has_few_frames(tmp_path, count, expected, is_black):
  pictures = frames(count) * (not is_black)
  path = write(tmp_path / "a.mp4", pictures.astype(np.uint8), rate=30)
  if count < 20 or is_black:
    assert reason(path, ScanSettings()) == expected


def test_files_with_the_wrong_suffix(tmp_path):
  Image.fromarray(data.chelsea()).save(tmp_path / "a.png")
  (tmp_path / "a.png").rename(tmp_path / "b.jpg")
  assert found(tmp_path / "b.jpg")[0].kind == "text_image"
  (tmp_path / "b.jpg").rename(tmp_path / "c.mp4")
  assert reason(tmp_path / "c.mp4") == "few-frames"
  write(tmp_path / "d.mp4", frames()).rename(tmp_path / "e.png")
  assert reason(tmp_path / "e.png") == "damaged"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_pixels_are_damaged(tmp_path, value):
  pixels = np.full((64, 96), 0.5, np.float32)
  pixels[3, 4] = value
  Image.fromarray(pixels).save(tmp_path / "a.tif")
  assert reason(tmp_path / "a.tif") == "damaged"


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000), (15, 99)])
def test_a_tiny_picture_is_too_small(tmp_path, size):
  Image.new("RGB", size).save(tmp_path / "a.png")
  assert reason(tmp_path / "a.png") == "too-small"


def test_a_tiny_video_is_too_small(tmp_path):
  write(tmp_path / "a.mkv", frames()[:, :1], "ffv1", "bgr0")
  assert reason(tmp_path / "a.mkv") == "too-small"


def test_random_bytes_are_damaged(tmp_path):
  for suffix in ("mp4", "mkv", "gif", "jpg", "png", "tif"):
    path = tmp_path / f"a.{suffix}"
    # A fixed seed, because some random bytes pass for the sound of an mp3.
    path.write_bytes(np.random.default_rng(0).bytes(20_000))
    assert reason(path) == "damaged"


# ---- One build of all kinds of media ----


def film(number, count=24, size=(96, 64)):
  """Colours of its own for each number, panned by eight pixels in all."""
  rng, (width, height) = np.random.default_rng(number), size
  cells = rng.integers(256, size=(4, 6, 3), dtype=np.uint8)
  picture = Image.fromarray(cells).resize((width + 8, height))
  starts = (8 * n // count for n in range(count))
  return np.stack([np.asarray(picture)[:, x : x + width] for x in starts])


def write_films(folder):
  """Writes videos; returns the reason for each that is left out, or None."""
  expected = dict.fromkeys(GOOD) | {name: r for name, (r, _) in BAD.items()}
  arguments = GOOD | {name: given for name, (_, given) in BAD.items()}
  arguments |= {
    f"{name}.avi": {"codec": codec, **given}
    for name, (codec, given) in AVI.items()
  }
  expected |= {f"{name}.avi": None for name in AVI}
  # Two frames a millisecond apart at an edge of the clip.
  close = [0, 83, 84, *(83 * n for n in range(3, 24))]
  arguments["close.webm"] = {"codec": "libvpx", "times": close}
  expected["close.webm"] = None
  for number, (name, given) in enumerate(arguments.items()):
    write(folder / name, film(number), **given)
  # 24 frames take 24 milliseconds.
  expected["fast.mkv"] = "few-frames"

  write(folder / "part.ts", film(100), rate=24)
  (folder / "joined.ts").write_bytes((folder / "part.ts").read_bytes() * 2)
  write(folder / "hd.mp4", film(101, size=(1280, 720)))
  write(folder / "240 fps.mp4", film(102, 600), rate=240)
  write(folder / "short.mp4", film(103, 16))
  expected |= {"joined.ts": None, "hd.mp4": None, "240 fps.mp4": None}
  expected["short.mp4"] = "few-frames"

  raw = write(folder / "cut.avi", frames(size=(192, 128)), "mpeg4").read_bytes()
  (folder / "cut.avi").write_bytes(raw[: len(raw) * 2 // 3])
  (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
  (folder / "page.mp4").write_text("<html><body>404</body></html>" * 20)
  (folder / "empty.mp4").touch()
  expected |= {"cut.avi": "truncated", "noise.mp4": "damaged"}
  return expected | {"page.mp4": "damaged", "empty.mp4": "empty"}


def write_pictures(folder):
  """As `write_films`, of pictures in many modes."""
  textures = iter(film(number, 1)[0] for number in range(200, 300))
  alpha = np.full((64, 96, 1), 128, np.uint8)
  rgba = np.concatenate([next(textures), alpha], 2)
  palette = Image.fromarray(next(textures)).quantize(64)
  Image.fromarray(rgba).save(folder / "rgba.png")
  Image.fromarray(rgba[:, ::-1, 1:3]).save(folder / "la.png")
  palette.save(folder / "palette.png", transparency=0)
  Image.fromarray(next(textures)).save(
    folder / "key.png", transparency=(1, 2, 3)
  )
  deep = next(textures)[..., 0].astype(np.uint16) * 257
  Image.fromarray(deep).save(folder / "deep.png")
  pixels = next(textures)[..., 0].astype(np.float32) / 255
  Image.fromarray(pixels).save(folder / "float.tif")
  pixels[3, 4] = np.nan
  Image.fromarray(pixels).save(folder / "nan.tif")
  Image.new("RGB", (15, 99)).save(folder / "tiny.png")
  raw = (folder / "rgba.png").read_bytes()
  (folder / "cut.png").write_bytes(raw[: len(raw) * 9 // 10])
  good = "rgba.png", "la.png", "palette.png", "key.png", "deep.png", "float.tif"
  bad = {"nan.tif": "damaged", "tiny.png": "too-small", "cut.png": "damaged"}
  return dict.fromkeys(good) | bad


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """Folder of a build, its result, and the expected reason of each row."""
  folder = tmp_path_factory.mktemp("media")
  expected = write_films(folder) | write_pictures(folder)
  rows = [f'{name},"{name}, as it is"' for name in expected]
  # Rows of one clip, a URI, and rows that cannot be used.
  rows += ["hd.mp4,second", "hd.mp4,third", "hd.mp4,second"]
  (folder / "part.ts").rename(folder / "by uri.ts")
  rows.append(f"file://{folder}/by%20uri.ts,x")
  expected[f"file://{folder}/by%20uri.ts"] = "duplicate"
  rows += ['open.mp4,"open quote', "comma.mp4,a, b", "none.mp4,", "gone.mp4,x"]
  rows.append("nowhere://bucket/a.mp4,x")
  expected |= {None: "bad-row", "none.mp4": "no-caption", "gone.mp4": "missing"}
  expected["nowhere://bucket/a.mp4"] = "missing"
  manifest = folder / "list.csv"
  manifest.write_text("path,caption\n" + "\n".join(rows) + "\n")
  result = build_footage(manifest, folder / "data", FootageSettings())
  return folder / "data", result, expected


def records(data_dir, kind):
  dataset = Dataset([dataset_dir(data_dir, kind)])
  return [dataset[number] for number in range(len(dataset))]


def test_each_row_is_in_or_out_for_its_reason(built):
  data_dir, result, expected = built
  drops = list(read_drops(data_dir / "quarantine.jsonl"))
  out = {drop.path: drop.reason for drop in drops}
  sources = [
    record["source"].decode()
    for kind in ("text_video", "text_image")
    for record in records(data_dir, kind)
  ]
  assert {**dict.fromkeys(sources), **out} == expected
  # Each part of the joined file is a shot.
  twice = [
    path for path, count in collections.Counter(sources).items() if count > 1
  ]
  assert twice == ["joined.ts"] and (result.num_videos, result.num_images) == (
    27,
    6,
  )
  assert result.dropped == {
    "bad-row": 2,
    "damaged": 5,
    "duplicate": 1,
    "empty": 1,
    "few-frames": 4,
    "hdr": 2,
    "interlaced": 1,
    "missing": 2,
    "no-caption": 1,
    "too-long": 1,
    "too-small": 1,
    "truncated": 1,
  }


def test_rows_of_one_clip_share_its_captions(built):
  videos = records(built[0], "text_video")
  [hd] = [r["captions"] for r in videos if r["source"] == b"hd.mp4"]
  assert hd == [b"hd.mp4, as it is", b"second", b"third"]


@pytest.mark.parametrize(
  "bucket", [(16, 8, 1), (16, 60, 1), (8, 240, 1), (2, 1, 1), (1, 8, 1)]
)
def test_every_bucket_reads_every_clip(built, tokenizer, bucket):
  reader = Reader(
    [dataset_dir(built[0], "text_video")],
    batch_size=built[1].num_videos,
    size=(48, 32),
    buckets=[bucket],
    clip_size=None,
    tokenizer=tokenizer,
    seed=0,
  )
  for step in range(3):
    shape = built[1].num_videos, bucket[0], 32, 48, 3
    assert reader.batch(step).frames.shape == shape
