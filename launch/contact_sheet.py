"""Rows of frames with text above them, as one picture."""

import io
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

Frames = UInt8[np.ndarray, "f h w 3"]

MARGIN = 16
_GAP = 6
_TEXT, _LINE = 14, 19
_LETTER = 7.2  # approximate mean width in pixels
# Layout of the contact sheet of a run.
_COLUMNS, _LONG_SIDE, _MIN_WIDTH, _TITLE_LINES = 8, 160, 480, 3


class Row(NamedTuple):
  """Lines of text above a picture.

  Attributes:
    texts: paragraphs in black.
    note: one more in gray.
    picture: the picture, which may be missing.
  """

  texts: Sequence[str]
  note: str = ""
  picture: Image.Image | None = None


def contact_sheet(title: str, rows: list[tuple[str, Frames]]) -> Image.Image:
  """Labelled rows of frames, all with the size of the last row's frames.

  Args:
    title: text above all rows, shortened to three lines.
    rows: (label, clip); a long clip is shown with evenly spaced frames.
  """
  height, width = rows[-1][1].shape[1:3]
  scale = _LONG_SIDE / max(height, width)
  cell = round(width * scale), round(height * scale)
  strips = [Row([], name, strip(_some(clip), cell)) for name, clip in rows]
  widths = [row.picture.width + 2 * MARGIN for row in strips]
  sheet_width = max(_MIN_WIDTH, *widths)
  lines = _wrap(title, sheet_width, max_lines=_TITLE_LINES, placeholder=" ...")
  return stack([Row(lines), *strips], sheet_width)


def strip(frames: Frames, cell: tuple[int, int]) -> Image.Image:
  """Frames side by side, each as large as fits into (width, height)."""
  height, width = frames.shape[1:3]
  scale = min(cell[0] / width, cell[1] / height)
  size = max(round(width * scale), 1), max(round(height * scale), 1)
  step = size[0] + _GAP
  drawn = Image.new("RGB", (step * len(frames) - _GAP, size[1]), "white")
  for number, frame in enumerate(frames):
    picture = Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)
    drawn.paste(picture, (number * step, 0))
  return drawn


def stack(rows: Sequence[Row], width: int) -> Image.Image:
  """Rows below one another on a white sheet."""
  font = ImageFont.load_default(_TEXT)
  placed, y = [], MARGIN
  for row in rows:
    lines = [(s, "black") for text in row.texts for s in _wrap(text, width)]
    lines += [(s, "dimgray") for s in _wrap(row.note, width) if row.note]
    placed.append((y, lines, row.picture))
    y += _LINE * len(lines)
    y += row.picture.height + MARGIN if row.picture else 0
  sheet = Image.new("RGB", (width, y), "white")
  draw = ImageDraw.Draw(sheet)
  for y, lines, picture in placed:
    for number, (text, colour) in enumerate(lines):
      draw.text((MARGIN, y + number * _LINE), text, colour, font)
    if picture:
      sheet.paste(picture, (MARGIN, y + len(lines) * _LINE))
  return sheet


def encode(picture: Image.Image, form: str, **options: int) -> bytes:
  """Content of a file of the form "PNG" or "JPEG"."""
  buffer = io.BytesIO()
  picture.save(buffer, form, **options)
  return buffer.getvalue()


def _wrap(text: str, width: int, **options) -> list[str]:
  columns = int((width - 2 * MARGIN) / _LETTER)
  return textwrap.wrap(text, columns, **options) or [""]


def _some(frames: Frames) -> Frames:
  """The first frame, the last, and evenly spaced ones between."""
  count = min(len(frames), _COLUMNS)
  return frames[np.rint(np.linspace(0, len(frames) - 1, count)).astype(int)]
