"""Rows of plain text tables."""

import math


def row(name: str, *cells: str) -> str:
  """A name, and cells aligned to the right."""
  return f"  {name:24}" + "".join(f"{cell:>13}" for cell in cells)


def cell(value: float, digits: int = 1) -> str:
  """A number, or a dash for NaN."""
  return "-" if math.isnan(value) else f"{value:.{digits}f}"
