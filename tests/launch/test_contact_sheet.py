"""Contact sheets: every row shows its own frames in order."""

import io

import numpy as np
import pytest
from PIL import Image

from launch.contact_sheet import contact_sheet, encode

# Plain clips survive any scaling, so a frame can be found by its colour.
SHADES = (40, 80, 120, 160, 200, 240)


def clip(number, size=(64, 48)):
  width, height = size
  frames = np.zeros((number, height, width, 3), np.uint8)
  frames[..., 0] = np.array(SHADES[:number])[:, None, None]
  frames[..., 2] = 255
  return frames


def shades(picture, y):
  """Red values of the frames that a line of the sheet crosses, in order."""
  line = np.asarray(picture)[y]
  framed = line[(line[:, 1] == 0) & (line[:, 2] == 255)][:, 0]
  starts = np.diff(framed.astype(int), prepend=0) > 9
  return [int(value) for value in framed[starts]]


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (64, 96)])
def test_rows_and_columns(size):
  small = tuple(side // 2 for side in size)
  rows = [
    ("input", clip(1, small)),
    ("base", clip(6, small)),
    ("refined", clip(6, size)),
  ]
  sheet = contact_sheet("a red disc", rows)
  found = [shades(sheet, y) for y in range(sheet.height)]
  runs = [s for s, before in zip(found[1:], found, strict=False) if s != before]
  assert [s for s in runs if s] == [[40], list(SHADES), list(SHADES)]
  cell = tuple(round(160 * side / max(size)) for side in size)
  heights = [sum(f == s for f in found) for s in ([40], list(SHADES))]
  assert heights == [cell[1], 2 * cell[1]]
  assert 6 * cell[0] < sheet.width < 6 * (cell[0] + 12) + 12


def test_a_long_clip_shows_first_and_last_frame():
  frames = np.repeat(clip(6), 10, axis=0)
  sheet = contact_sheet("", [("base", frames)])
  middle = shades(sheet, sheet.height - 80)
  assert middle[0] == SHADES[0] and middle[-1] == SHADES[-1]


@pytest.mark.parametrize(
  "title", ["", "word " * 500, "x" * 3000, "猫 été 🐈\n\n"]
)
def test_any_title(title):
  plain = contact_sheet("short", [("base", clip(1))])
  sheet = contact_sheet(title, [("base", clip(1))])
  assert sheet.width == plain.width
  assert plain.height <= sheet.height <= plain.height + 40


def test_png_holds_the_same_pixels():
  sheet = contact_sheet("title", [("base", clip(2))])
  again = Image.open(io.BytesIO(encode(sheet, "PNG")))
  np.testing.assert_array_equal(np.asarray(again), np.asarray(sheet))
