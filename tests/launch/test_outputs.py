"""All files of a run, or none."""

import os
from pathlib import Path

import pytest

from i2vgen_jax.errors import InputError
from launch import outputs


@pytest.fixture
def source(tmp_path):
  path = tmp_path / "photo.jpg"
  path.write_bytes(b"photo")
  return path


def test_check_leaves_nothing(tmp_path, source):
  outputs.check(tmp_path / "out.mp4", source)
  assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("out.avi", "is not an .mp4"),
    ("out", "is not an .mp4"),
    (".mp4", "is not an .mp4"),
    ("absent/out.mp4", "no folder"),
    ("photo.jpg/out.mp4", "no folder"),
    ("folder.mp4", "is a folder"),
    ("sheet.mp4", "sheet.png is a folder"),
    ("n" * 300 + ".mp4", "cannot write"),
  ],
)
def test_refused(tmp_path, source, name, message):
  (tmp_path / "folder.mp4").mkdir()
  (tmp_path / "sheet.png").mkdir()
  before = sorted(tmp_path.iterdir())
  with pytest.raises(InputError, match=message):
    outputs.check(tmp_path / name, source)
  assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["photo.png", "photo.mp4"])
def test_the_input_is_never_overwritten(tmp_path, name):
  source = tmp_path / name
  source.write_bytes(b"mine")
  with pytest.raises(InputError, match="overwrite the input"):
    outputs.check(tmp_path / "photo.mp4", source)


def test_a_folder_that_takes_no_files(source):
  """/proc refuses new files even to root."""
  if not os.path.isdir("/proc/self"):
    pytest.skip("no /proc here")
  with pytest.raises(InputError, match="cannot write /proc/out"):
    outputs.check(Path("/proc/out.mp4"), source)


def test_write_replaces_all(tmp_path):
  files = {tmp_path / name: name.encode() for name in ("a.mp4", "a.json")}
  (tmp_path / "a.mp4").write_bytes(b"old")
  outputs.write(files)
  assert {p: p.read_bytes() for p in tmp_path.iterdir()} == files


def test_a_failed_write_leaves_what_was_there(tmp_path):
  old = tmp_path / "a.mp4"
  old.write_bytes(b"old")
  files = {old: b"new", tmp_path / "gone" / "a.png": b"new"}
  with pytest.raises(InputError, match="cannot write"):
    outputs.write(files)
  assert old.read_bytes() == b"old"
  assert list(tmp_path.iterdir()) == [old]
