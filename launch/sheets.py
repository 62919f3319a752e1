"""Pictures of a dataset: strips of frames, contact sheets, histograms."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.footage.survey import FRAMES, LeftOut

_WIDTH = 1280
_GAP, _MARGIN = 6, 16
# Of a strip, in pixels; wide frames make it lower.
_HEIGHT = 150
_TEXT, _LINE = 15, 20
_LETTER = 7.2  # about the mean width of one, in pixels
_BLUE, _DARK = "#4878a8", "#202020"
_COLUMNS = 4
_BINS = 24


def strip(frames: np.ndarray) -> Image.Image:
  """uint8[f h w 3], at most FRAMES of them, side by side."""
  height, width = frames.shape[1:3]
  room = (_WIDTH - 2 * _MARGIN - (FRAMES - 1) * _GAP) / FRAMES
  # A single picture may be as wide as two frames of a clip.
  room *= 1 if len(frames) > 1 else 2
  scale = min(_HEIGHT * (1 if len(frames) > 1 else 2) / height, room / width)
  cell = max(round(width * scale), 1), max(round(height * scale), 1)
  step = cell[0] + _GAP
  made = Image.new("RGB", (step * len(frames) - _GAP, cell[1]), "white")
  for number, frame in enumerate(frames):
    picture = Image.fromarray(frame).resize(cell, Image.Resampling.LANCZOS)
    made.paste(picture, (number * step, 0))
  return made


def sheet(rows: Sequence[tuple[Sequence[str], str, Image.Image]]) -> bytes:
  """A PNG of strips with their captions and what is known of each.

  Args:
    rows: captions, a line of facts, and the strip.
  """
  font = ImageFont.load_default(_TEXT)
  texts = [(_wrapped(captions), _wrapped([f])) for captions, f, _ in rows]
  heights = [
    _LINE * (len(above) + len(facts)) + picture.height + 2 * _MARGIN
    for (above, facts), (_, _, picture) in zip(texts, rows, strict=True)
  ]
  made = Image.new("RGB", (_WIDTH, sum(heights) + _MARGIN), "white")
  draw, y = ImageDraw.Draw(made), _MARGIN
  for (above, facts), (_, _, picture), height in zip(
    texts, rows, heights, strict=True
  ):
    lines = [(line, _DARK) for line in above] + [(s, "dimgray") for s in facts]
    for number, (line, colour) in enumerate(lines):
      draw.text((_MARGIN, y + number * _LINE), line, colour, font)
    made.paste(picture, (_MARGIN, y + len(lines) * _LINE + 2))
    y += height
  return png(made)


def _wrapped(texts: Sequence[str]) -> list[str]:
  width = int((_WIDTH - 2 * _MARGIN) / _LETTER)
  return [line for text in texts for line in textwrap.wrap(text, width) or [""]]


def brief(number: float) -> str:
  """Three digits, or all of them before the point."""
  return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def png(picture: Image.Image) -> bytes:
  """The file's bytes."""
  return _saved(picture, "PNG")


def jpeg(picture: Image.Image) -> bytes:
  """The file's bytes, small enough for a page of many."""
  return _saved(picture, "JPEG", quality=88)


def _saved(picture: Image.Image, form: str, **options: int) -> bytes:
  buffer = io.BytesIO()
  picture.save(buffer, form, **options)
  return buffer.getvalue()


def histograms(values: Mapping[str, np.ndarray], noun: str) -> bytes:
  """A PNG with a panel for each name, and the median marked in it.

  Args:
    values: float[n] by what they are, none empty.
    noun: what is counted.
  """
  rows = math.ceil(len(values) / _COLUMNS)
  figure = Figure(figsize=(12.8, 2.7 * rows), dpi=100, layout="constrained")
  grid = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
  for axes, (name, numbers) in zip(grid, values.items(), strict=False):
    _histogram(axes, numbers)
    axes.set_title(name, fontsize=10)
    axes.set_ylabel("captions" if "caption" in name else noun)
  for axes in grid[len(values) :]:
    axes.set_visible(False)
  return _drawn(figure)


def _histogram(axes, numbers: np.ndarray) -> None:
  low, high = float(numbers.min()), float(numbers.max())
  if high - low < 1e-3 * max(abs(high), 1e-9):
    # One value alone would fill the panel, however it is scaled.
    axes.bar([brief(high)], [len(numbers)], width=0.2, color=_BLUE)
    axes.set_xlim(-0.8, 0.8)
  else:
    axes.hist(numbers, _BINS, color=_BLUE, edgecolor="white", linewidth=0.5)
    median = float(np.median(numbers))
    axes.axvline(median, color=_DARK, linewidth=1)
    axes.annotate(
      f"median {brief(median)}", (median, 1), (4, -2), color=_DARK, fontsize=8,
      xycoords=("data", "axes fraction"), textcoords="offset points", va="top",
    )  # fmt: skip
    axes.margins(y=0.15)
  axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
  axes.spines[["top", "right"]].set_visible(False)


def bars(rows: Sequence[LeftOut]) -> bytes:
  """A PNG of how often each reason left something out."""
  height = 0.6 + 0.45 * len(rows)
  figure = Figure(figsize=(12.8, height), dpi=100, layout="constrained")
  axes = figure.subplots()
  names = [f"{row.meaning} ({row.reason})" for row in rows]
  drawn = axes.barh(names, [row.count for row in rows], 0.6, color=_BLUE)
  axes.bar_label(drawn, [f"{row.count:,}" for row in rows], padding=4)
  axes.invert_yaxis()
  axes.set_xticks([])
  axes.margins(x=0.1)
  axes.spines[["top", "right", "bottom"]].set_visible(False)
  return _drawn(figure)


def _drawn(figure: Figure) -> bytes:
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png")
  return buffer.getvalue()
