"""Truncated videos are distinguished from intact ones."""

import av
import numpy as np
import pytest

from data_pipelines.media.containers import is_cut_short

FORMATS = {
  "mp4": "libx264",
  "mov": "libx264",
  "mkv": "libx264",
  "webm": "libvpx",
  "avi": "mpeg4",
  "wmv": "wmv2",
  "flv": "libx264",
  "ts": "libx264",
  "m2ts": "libx264",
}


def film(path, codec, **muxer):
  """Writes 36 noisy frames."""
  rng = np.random.default_rng(0)
  with av.open(str(path), "w", options=muxer) as container:
    stream = container.add_stream(codec, rate=24)
    stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
    for _ in range(36):
      noise = rng.integers(256, size=(64, 96, 3), dtype=np.uint8)
      container.mux(stream.encode(av.VideoFrame.from_ndarray(noise)))
    container.mux(stream.encode())
  return path.read_bytes()


@pytest.mark.parametrize("suffix", FORMATS)
def test_truncation_is_detected(tmp_path, suffix):
  path = tmp_path / f"film.{suffix}"
  whole = film(path, FORMATS[suffix])
  assert not is_cut_short(path)
  # Odd numbers, because a cut between packets of TS goes unnoticed.
  for missing in (1, 3, 51, 1001, len(whole) // 3 | 1, len(whole) * 3 // 4 | 1):
    path.write_bytes(whole[:-missing])
    assert is_cut_short(path), missing


@pytest.mark.parametrize("flags", ["faststart", "frag_keyframe+empty_moov"])
def test_truncation_is_detected_in_other_mp4_layouts(tmp_path, flags):
  path = tmp_path / "film.mp4"
  whole = film(path, "libx264", movflags=flags)
  assert not is_cut_short(path)
  path.write_bytes(whole[: len(whole) // 2])
  assert is_cut_short(path)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "wmv"])
def test_trailing_garbage_is_not_truncation(tmp_path, suffix):
  path = tmp_path / f"film.{suffix}"
  whole = film(path, FORMATS[suffix])
  path.write_bytes(whole + bytes(range(200, 256)))
  assert not is_cut_short(path)


def test_a_live_recording_has_unknown_length(tmp_path):
  path = tmp_path / "film.mkv"
  film(path, "libx264", live="1")
  assert not is_cut_short(path)


@pytest.mark.parametrize(
  "content",
  [b"", b"\x1a\x45\xdf\xa3", b"FLV\1", b"G" * 3, b"RIFF", b"text" * 99],
)
def test_other_content_raises_no_error(tmp_path, content):
  path = tmp_path / "film"
  path.write_bytes(content)
  assert isinstance(is_cut_short(path), bool)
