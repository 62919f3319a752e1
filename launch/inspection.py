"""`i2vgen data inspect`: a web page that shows a dataset.

The page contains its pictures.
"""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.footage import survey
from data_pipelines.shards.dataset import SCORES, Kind
from i2vgen_jax.errors import InputError
from launch import contact_sheet, outputs, plots
from launch.contact_sheet import MARGIN, Row
from launch.progress import note
from launch.report_page import Page

_KINDS: dict[Kind, str] = {"text_video": "clips", "text_image": "pictures"}
_WIDTH = 1280
# Largest frame of a clip; a single picture may be twice as large.
_CELL = (_WIDTH - 2 * MARGIN) // survey.FRAMES - 6, 150


def inspect(data_dir: Path, output: Path, count: int, seed: int) -> None:
  """Writes index.html and its pictures.

  Args:
    data_dir: folder that `i2vgen data build` wrote.
    output: folder to write to.
    count: number of clips, and of pictures, to show.
    seed: seed of the random sample.

  Raises:
    InputError: There is no dataset, none of its records can be read, or the
      output cannot be written.
  """
  found = {
    kind: sample
    for kind in _KINDS
    if (sample := survey.sample(data_dir, kind, count, seed))
  }
  _check(data_dir, list(found.values()))
  summary = survey.read_summary(data_dir)
  outputs.make_folder(output)
  page = Page(str(data_dir))
  counts = [f"{s.total:,} {_KINDS[kind]}" for kind, s in found.items()]
  page.add("p", " and ".join(counts))
  for kind, sample in found.items():
    _add_sample(page, kind, sample, seed)
  page.add("h2", "Left out")
  _add_left_out(page, data_dir, summary)
  if summary:
    page.add("h2", "How it was built")
    page.add("pre", json.dumps(summary["identity"], indent=2))
  files = page.files | {"index.html": page.encode()}
  outputs.write({output / name: data for name, data in files.items()})
  note(f"wrote {', '.join(sorted(files))} to {output}")


def _check(data_dir: Path, samples: list[survey.Sample]) -> None:
  if not samples:
    raise InputError(
      f"no dataset in {data_dir}; give the folder that `i2vgen data build`"
      " wrote, which contains text_video or text_image"
    )
  damaged = [line for sample in samples for line in sample.damaged]
  if not any(sample.rows for sample in samples):
    first = f": {damaged[0]}" if damaged else ""
    raise InputError(f"no record of {data_dir} can be read{first}")
  if damaged:
    note(f"{len(damaged)} records cannot be read; the first: {damaged[0]}")


def _add_sample(
  page: Page, kind: Kind, sample: survey.Sample, seed: int
) -> None:
  noun, num_damaged = _KINDS[kind], len(sample.damaged)
  page.add("h2", noun.capitalize())
  if num_damaged:
    text = (
      f"{num_damaged} of the {noun} in the sample cannot be read; the first"
    )
    page.add("p", f"{text}: {sample.damaged[0]}", "alarm")
  if not sample.rows:
    return
  figures = survey.figures(kind, sample.rows)
  measured = {name: values for name, values in figures.items() if len(values)}
  drawn = len(sample.rows) + num_damaged
  text = (
    f"Counted over {drawn:,} of {sample.total:,} {noun}, drawn at random, seed "
    f"{seed}."
  )
  if missing := [name for name in figures if name not in measured]:
    text += f" Not measured: {'; '.join(missing)}."
  page.add("p", text, "note")
  chart = plots.histograms(measured, noun)
  page.plot(f"{noun}-figures.png", chart, f"histograms of the {noun}")
  rows = [
    Row(_captions(row), _facts(row), strip(frames))
    for row, frames in sample.shown
  ]
  sheet = contact_sheet.stack(rows, _WIDTH)
  page.files[f"{noun}.png"] = contact_sheet.encode(sheet, "PNG")
  page.add("h3", f"{len(rows)} {noun}, drawn at random")
  page.parts.append(f'<div class="{noun}">')
  for captions, facts, picture in rows:
    page.parts.append("<figure>")
    for caption in captions:
      page.add("p", caption)
    page.add("p", facts, "facts")
    jpeg = contact_sheet.encode(picture, "JPEG", quality=88)
    page.embed(jpeg, "jpeg", "; ".join(captions))
    page.parts.append("</figure>")
  page.parts.append("</div>")


def strip(frames: np.ndarray) -> Image.Image:
  """uint8[f h w 3], at most `survey.FRAMES` of them, side by side."""
  scale = 1 if len(frames) > 1 else 2
  return contact_sheet.strip(frames, (scale * _CELL[0], scale * _CELL[1]))


def _captions(row: survey.Row) -> list[str]:
  return [c.decode(errors="replace") for c in row["captions"]]


def _facts(row: survey.Row) -> str:
  """The other features in one line, with the scores that were measured."""
  facts = [row["id"].decode()]
  if "fps" in row:
    seconds = row["num_frames"] / row["fps"]
    facts += [f"{seconds:.1f} s", f"{row['fps']:.4g} fps"]
    facts.append(f"{row['num_frames']} frames")
  facts.append(f"{row['width']}x{row['height']}")
  measured = (n for n in SCORES if math.isfinite(row.get(n, math.nan)))
  facts += [f"{name} {plots.brief(row[name])}" for name in measured]
  if source := row["source"].decode(errors="replace"):
    at = f" at {row['start']:.2f} s" if "start" in row else ""
    facts.append(f"from {source}{at}")
  return " · ".join(facts)


def _add_left_out(page: Page, data_dir: Path, summary: dict) -> None:
  if not summary:
    page.add("p", "There is no build.json: the build is unfinished.")
    return
  rows = survey.left_out(data_dir, summary["dropped"])
  if not rows:
    page.add("p", "Nothing: the quarantine is empty.")
    return
  page.add("p", f"{sum(row.count for row in rows):,} files, rows or shots.")
  text = "number of inputs left out for each reason"
  page.plot("left-out.png", plots.bars(rows), text)
  page.table(
    ["count", "reason", "meaning", "example"],
    [
      (r.count, r.reason, r.meaning, r.example or "see quarantine.jsonl")
      for r in rows
    ],
  )
