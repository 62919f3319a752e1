"""Pictures of a dataset, an evaluation and a sweep, as PNG files."""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from data_pipelines.footage.survey import LeftOut
from i2vgen_jax.evaluation.spectra import ROUNDING, Spectrum

_WIDTH = 12.8  # inches at 100 pixels
_BLUE, _DARK = "#4878a8", "#202020"
_COLUMNS = 4
_BINS = 24


def brief(number: float) -> str:
  """Three significant digits, or all digits before the point."""
  return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def histograms(values: Mapping[str, np.ndarray], noun: str) -> bytes:
  """A panel for each name, with the median marked.

  Args:
    values: float[n] by name, none empty.
    noun: name of what is counted.
  """
  rows = math.ceil(len(values) / _COLUMNS)
  figure = Figure((_WIDTH, 2.7 * rows), 100, layout="constrained")
  for number, (name, numbers) in enumerate(values.items(), 1):
    axes = figure.add_subplot(rows, _COLUMNS, number)
    _histogram(axes, numbers)
    axes.set_title(name, fontsize=10)
    axes.set_ylabel("captions" if "caption" in name else noun)
  return _png(figure)


def _histogram(axes: Axes, numbers: np.ndarray) -> None:
  low, high = float(numbers.min()), float(numbers.max())
  if high - low < 1e-3 * max(abs(high), 1e-9):
    # A single value would fill the panel.
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
  """How many inputs were left out for each reason."""
  height = 0.6 + 0.45 * len(rows)
  figure = Figure((_WIDTH, height), 100, layout="constrained")
  axes = figure.subplots()
  names = [f"{row.meaning} ({row.reason})" for row in rows]
  drawn = axes.barh(names, [row.count for row in rows], 0.6, color=_BLUE)
  axes.bar_label(drawn, [f"{row.count:,}" for row in rows], padding=4)
  axes.invert_yaxis()
  axes.set_xticks([])
  axes.margins(x=0.1)
  axes.spines[["top", "right", "bottom"]].set_visible(False)
  return _png(figure)


def spectra(
  spatial: Mapping[str, Spectrum], temporal: Mapping[str, Spectrum]
) -> bytes:
  """Named spectra, spatial on the left and temporal on the right."""
  figure = Figure((_WIDTH, 4.4), 100, layout="constrained")
  panels = zip(
    figure.subplots(1, 2),
    (spatial, temporal),
    ("cycles per shorter side", "cycles per clip"),
    strict=True,
  )
  for axes, curves, unit in panels:
    for name, power in curves.items():
      axes.loglog(np.arange(1, len(power) + 1), power + ROUNDING, label=name)
    axes.set(xlabel=unit, ylabel="power, squared 8-bit levels")
    # Few cycles are numbers, not powers of ten.
    axes.xaxis.set_major_formatter(LogFormatter())
    axes.xaxis.set_minor_formatter(LogFormatter())
    axes.legend()
    axes.spines[["top", "right"]].set_visible(False)
  return _png(figure)


def losses(curves: Mapping[str, Mapping[int, float]]) -> bytes:
  """A panel with the losses by timestep for each name, on scales of its own."""
  width = _WIDTH / 2 * len(curves)
  figure = Figure((width, 3), 100, layout="constrained")
  panels = figure.subplots(1, len(curves), squeeze=False).flat
  for axes, (name, losses) in zip(panels, curves.items(), strict=True):
    points = zip(*losses.items(), strict=True)
    axes.plot(*points, "o-", color=_BLUE, clip_on=False)
    axes.set(title=name, xlabel="timestep, 0 without noise", ylabel="loss")
    axes.set_xlim(0, 1000)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
  return _png(figure)


def tradeoff(
  points: Sequence[tuple[str, float, float]],
  cost: str,
  metric: str,
  highest: bool,
) -> bytes:
  """The metric of each run against its cost, marked by its rank.

  A line connects the runs that no run of lower cost is better than.

  Args:
    points: name, cost and metric of each run, the best first.
    cost: label of the first axis.
    metric: label of the second axis.
    highest: whether the highest metric is the best.
  """
  figure = Figure((_WIDTH, 5 + 0.1 * len(points)), 100, layout="constrained")
  axes = figure.subplots()
  front: list[tuple[float, float]] = []
  sign = -1 if highest else 1
  for _, x, y in sorted(points, key=lambda point: (point[1], sign * point[2])):
    if not front or sign * y < sign * front[-1][1]:
      front.append((x, y))
  axes.plot(*zip(*front, strict=True), color=_BLUE, linewidth=1, zorder=1)
  for rank, (name, x, y) in enumerate(points, 1):
    axes.scatter(x, y, 320, color="white", edgecolors=_BLUE, zorder=2)
    style = {"color": _DARK, "zorder": 3, "marker": f"${rank}$"}
    axes.scatter(x, y, 50 * len(str(rank)), label=name, **style)
  axes.set(xlabel=cost, ylabel=metric)
  axes.margins(0.08)
  axes.grid(alpha=0.3)
  axes.spines[["top", "right"]].set_visible(False)
  figure.legend(loc="outside right upper", frameon=False, fontsize=8)
  return _png(figure)


def _png(figure: Figure) -> bytes:
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png")
  return buffer.getvalue()
