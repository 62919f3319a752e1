"""Pictures of all kinds are loaded as upright 8-bit RGB."""

import io

import numpy as np
import pytest
from PIL import Image
from skimage import data

from data_pipelines.media import pictures
from i2vgen_jax import preprocessing
from i2vgen_jax.errors import InputError


@pytest.fixture
def photo():
  return data.chelsea()[:120, :200]


def saved(path, array, **options):
  picture = Image.fromarray(array) if isinstance(array, np.ndarray) else array
  picture.save(path, **options)
  return path


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tif", "ppm"])
def test_lossless_files_are_read_exactly(tmp_path, photo, suffix):
  options = {"lossless": True} if suffix == "webp" else {}
  path = saved(tmp_path / f"a.{suffix}", photo, **options)
  assert pictures.is_picture(path)
  np.testing.assert_array_equal(preprocessing.load_picture(path), photo)


def test_the_camera_orientation_is_applied(tmp_path, photo):
  exif = Image.Exif()
  exif[0x0112] = 6  # rotate by 90 degrees clockwise to display
  path = saved(tmp_path / "a.png", photo, exif=exif)
  np.testing.assert_array_equal(
    preprocessing.load_picture(path), np.rot90(photo, -1)
  )


def test_transparency_is_composed_on_white(tmp_path, photo):
  alpha = np.zeros(photo.shape[:2], np.uint8)
  alpha[:, 100:] = 255
  path = saved(tmp_path / "a.png", np.dstack([photo, alpha]))
  image = preprocessing.load_picture(path)
  assert (image[:, :100] == 255).all()
  np.testing.assert_array_equal(image[:, 100:], photo[:, 100:])


def test_transparent_palette_is_composed_on_white(tmp_path):
  picture = Image.new("P", (4, 4), 0)
  picture.putpalette([10, 20, 30, 40, 50, 60])
  picture.putpixel((1, 1), 1)
  image = preprocessing.load_picture(
    saved(tmp_path / "a.png", picture, transparency=0)
  )
  assert image[0, 0].tolist() == [255, 255, 255]
  assert image[1, 1].tolist() == [40, 50, 60]


def test_gray_and_16_bit_pictures_keep_their_brightness(tmp_path):
  gray = data.camera()[:64, :64]
  expected = np.repeat(gray[..., None], 3, -1)
  path = saved(tmp_path / "a.png", gray)
  np.testing.assert_array_equal(preprocessing.load_picture(path), expected)
  deep = gray.astype(np.uint16) * 257
  for suffix in ("png", "tif"):
    path = saved(tmp_path / f"deep.{suffix}", deep)
    np.testing.assert_array_equal(preprocessing.load_picture(path), expected)
  black_and_white = Image.fromarray(gray > np.median(gray))
  image = preprocessing.load_picture(saved(tmp_path / "b.png", black_and_white))
  assert set(np.unique(image)) == {0, 255}


def test_cmyk_is_converted_to_rgb(tmp_path, photo):
  picture = Image.fromarray(photo).convert("CMYK")
  image = preprocessing.load_picture(
    saved(tmp_path / "a.jpg", picture, quality=98)
  )
  assert np.abs(image.astype(int) - photo).mean() < 6


def test_jpeg_round_trip(photo):
  image = preprocessing.load_picture(pictures.encode_jpeg(photo), "x").astype(
    int
  )
  assert np.abs(image - photo).mean() < 1.5


def test_shrink_averages(photo):
  assert pictures.shrink(photo, 120) is photo
  small = pictures.shrink(photo, 60)
  expected = photo.reshape(60, 2, 100, 2, 3).mean((1, 3))
  assert np.abs(small - expected).max() <= 1


def bomb():
  # A PNG header that announces 60,000 x 60,000 pixels.
  raw = io.BytesIO()
  Image.new("L", (1, 1)).save(raw, "PNG")
  raw = bytearray(raw.getvalue())
  raw[16:24] = (60_000).to_bytes(4, "big") * 2
  import zlib

  raw[29:33] = zlib.crc32(bytes(raw[12:29])).to_bytes(4, "big")
  return bytes(raw)


def cut_png():
  raw = io.BytesIO()
  Image.fromarray(data.chelsea()).save(raw, "PNG")
  return raw.getvalue()[:20_000]


@pytest.mark.parametrize(
  ("content", "reason"),
  [
    (b"", "empty"),
    (b"just a text, not pixels", "not a picture"),
    (pictures.encode_jpeg(data.chelsea())[:5000], "damaged"),
    (cut_png(), "damaged"),
    (bomb(), "60000"),
  ],
)
def test_errors_name_the_file_and_the_reason(tmp_path, content, reason):
  path = tmp_path / "given.jpg"
  path.write_bytes(content)
  with pytest.raises(InputError, match=reason) as caught:
    preprocessing.load_picture(path)
  assert "given.jpg" in str(caught.value)
  assert "\n" not in str(caught.value)


def test_errors_name_missing_files_and_folders(tmp_path):
  with pytest.raises(InputError, match=r"absent\.png.*No such file"):
    preprocessing.load_picture(tmp_path / "absent.png")
  with pytest.raises(InputError, match="directory"):
    preprocessing.load_picture(tmp_path)
