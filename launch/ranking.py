"""The runs of a sweep by their metric: report.csv, and report.png."""

import csv
import difflib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from i2vgen_jax.errors import InputError
from i2vgen_jax.files import replacing
from launch import outputs, plots

# By the name of a run, its settings or results, which may be nested.
Runs = Mapping[str, Mapping[str, Any]]


def write(
  folder: Path,
  settings: Runs,
  results: Runs,
  metric: str,
  cost: str,
  highest: bool,
) -> list[str]:
  """Writes report.csv and report.png.

  Args:
    folder: for both files.
    settings: of all runs.
    results: of those that are finished.
    metric: dotted name of a result; runs without it have no rank.
    cost: dotted name of a result, or of a setting.
    highest: whether the highest metric is the best, rather than the lowest.

  Returns:
    The ranking as lines of text.

  Raises:
    InputError: no run has a finite metric or cost, or a file cannot be written.
  """
  values = {
    name: dict(numbers({**settings[name], **found}))
    for name, found in results.items()
  }
  for wanted in (metric, cost):
    _check_known(wanted, {key for found in values.values() for key in found})
  pick = {
    name: {key: found.get(key, math.nan) for key in (metric, cost)}
    for name, found in values.items()
  }
  ranked = sorted(
    (name for name in pick if math.isfinite(pick[name][metric])),
    key=lambda name: pick[name][metric],
    reverse=highest,
  )
  rows = [
    {"rank": rank, "run": name, **pick[name], **settings[name]}
    for rank, name in enumerate(ranked, 1)
  ]
  others = settings.keys() - set(ranked)
  rows += [{"run": name, **settings[name]} for name in sorted(others)]
  _write_csv(folder / "report.csv", rows)
  points = [(name, pick[name][cost], pick[name][metric]) for name in ranked]
  drawn = [point for point in points if math.isfinite(point[1])]
  png = plots.tradeoff(drawn, cost, metric, highest)
  outputs.write({folder / "report.png": png})
  lines = [f"{'rank':>4} {metric:>16} {cost:>16}  run"]
  for rank, (name, x, y) in enumerate(points, 1):
    lines.append(f"{rank:4} {plots.brief(y):>16} {plots.brief(x):>16}  {name}")
  return lines


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
  """All finite numbers in nested dicts and lists, with dotted names."""
  if isinstance(value, dict | list):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
      yield from numbers(inner, f"{name}.{key}" if name else str(key))
  elif isinstance(value, int | float) and math.isfinite(value):
    yield name, value


def _check_known(name: str, known: Collection[str]) -> None:
  if name not in known:
    near = difflib.get_close_matches(name, known, 5, 0.4) or sorted(known)[:5]
    raise InputError(
      f"no run has a finite {name}; name another value, such as "
      f"{', '.join(near)}"
    )


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
  fields = dict.fromkeys(field for row in rows for field in row)
  with replacing(path) as temporary, temporary.open("w", newline="") as file:
    writer = csv.DictWriter(file, list(fields))
    writer.writeheader()
    writer.writerows(rows)
