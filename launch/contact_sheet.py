"""A picture of a run: input, base frames and refined frames, row by row."""

import io
import textwrap

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

Frames = UInt8[np.ndarray, "f h w 3"]

_COLUMNS = 8
_LONG_SIDE = 160
_GAP = 8
_MIN_WIDTH = 480
_TEXT, _LINE = 13, 18
_LETTER = 7  # about the mean width of one, in pixels
_TITLE_LINES = 3


def contact_sheet(title: str, rows: list[tuple[str, Frames]]) -> Image.Image:
  """Labelled rows of frames, all as large as the last row's shape asks for.

  Args:
    title: above everything; shortened to three lines.
    rows: (label, clip); of a long clip every n-th frame is shown.
  """
  height, width = rows[-1][1].shape[1:3]
  scale = _LONG_SIDE / max(height, width)
  cell = max(round(width * scale), 1), max(round(height * scale), 1)
  columns = min(max(len(frames) for _, frames in rows), _COLUMNS)
  sheet_width = max(columns * (cell[0] + _GAP) + _GAP, _MIN_WIDTH)
  title = textwrap.fill(
    title,
    sheet_width // _LETTER,
    max_lines=_TITLE_LINES,
    placeholder=" ...",
  )
  top = _GAP + _LINE * (title.count("\n") + 1)
  row_height = _LINE + cell[1] + _GAP
  sheet = Image.new("RGB", (sheet_width, top + row_height * len(rows)), "white")
  draw = ImageDraw.Draw(sheet)
  font = ImageFont.load_default(_TEXT)
  draw.multiline_text((_GAP, _GAP // 2), title, "black", font)
  for number, (label, frames) in enumerate(rows):
    y = top + row_height * number
    draw.text((_GAP, y), label, "dimgray", font)
    for column, frame in enumerate(_some(frames, columns)):
      picture = Image.fromarray(frame).resize(cell, Image.Resampling.BICUBIC)
      sheet.paste(picture, (_GAP + column * (cell[0] + _GAP), y + _LINE))
  return sheet


def encode_png(picture: Image.Image) -> bytes:
  """The file's bytes."""
  buffer = io.BytesIO()
  picture.save(buffer, "PNG")
  return buffer.getvalue()


def _some(frames: Frames, columns: int) -> Frames:
  """First, last, and what lies evenly between."""
  number = min(len(frames), columns)
  return frames[np.rint(np.linspace(0, len(frames) - 1, number)).astype(int)]
