"""Photographs in unpacked Debian packages."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from i2vgen_jax.errors import InputError
from launch import photographs


def jpeg(side):
  pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3))
  buffer = io.BytesIO()
  Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG")
  return buffer.getvalue()


def found(package, root):
  return {
    name: picture.size
    for name, picture in photographs.photographs(package, root)
  }


def test_pictures_of_other_folders_are_left_out(tmp_path):
  land = tmp_path / "images" / "land"
  land.mkdir(parents=True)
  (land / "a.jpg").write_bytes(jpeg(256))
  (tmp_path / "images" / "ship.jpg").write_bytes(jpeg(256))
  assert found("endless-sky-data", tmp_path) == {"endless-a.jpg": (256, 256)}


def test_wallpapers_in_several_sizes_have_one_name(tmp_path):
  for side in (256, 300):
    folder = tmp_path / "Path" / "contents" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{side}x{side}.jpg").write_bytes(jpeg(side))
  names = found("plasma-workspace-wallpapers", tmp_path).keys()
  assert names == {"plasma-Path.jpg"}


def test_pictures_are_cut_out_of_resource_files(tmp_path):
  parts = [b"qres header"]
  for side in (256, 64, 300):
    parts += [struct.pack(">I", len(jpeg(side))), jpeg(side), b"between"]
  # The picture of 64 pixels is an icon, and the last is not a JPEG.
  parts += [struct.pack(">I", 9), b"\xff\xd8\xff\xe0 other"]
  folder = tmp_path / "rcc"
  folder.mkdir()
  (folder / "erase.rcc").write_bytes(b"".join(parts))
  (folder / "menu.rcc").write_bytes(b"".join(parts))
  sizes = found("gcompris-qt-data", tmp_path)
  assert sizes == {
    "erase-000.jpg": (256, 256),
    "erase-001.jpg": (300, 300),
  }


def test_a_package_that_cannot_be_downloaded_is_named(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", "")
  with pytest.raises(InputError, match="Debian package endless-sky-data"):
    photographs.download(tmp_path / "out")
