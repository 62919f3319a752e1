"""`i2vgen data inspect`: a web page that shows a dataset.

The page contains its pictures, so that it can be sent and opened offline.
"""

import base64
import json
import math
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.footage import survey
from data_pipelines.shards.dataset import SCORES, Kind
from i2vgen_jax.errors import InputError
from launch import contact_sheet, outputs, plots
from launch.contact_sheet import MARGIN, Row
from launch.progress import note

_KINDS: dict[Kind, str] = {"text_video": "clips", "text_image": "pictures"}
_WIDTH = 1280
# Largest frame of a clip; a single picture may be twice as large.
_CELL = (_WIDTH - 2 * MARGIN) // survey.FRAMES - 6, 150
_STYLE = """
body { font: 16px/1.45 sans-serif; color: #202020; background: white;
  max-width: 1280px; margin: 2em auto; padding: 0 1em; }
h2 { margin: 2em 0 .4em; border-bottom: 1px solid #ccc; }
img { max-width: 100%; display: block; }
figure { margin: 0 0 1.6em; }
figcaption p { margin: 0; }
.pictures { display: flex; flex-wrap: wrap; gap: 0 1em; }
.pictures figure { width: 300px; }
.facts, .note { color: #5a5a5a; font-size: 85%; }
.alarm { color: #a00000; }
table { border-collapse: collapse; }
td, th { text-align: left; vertical-align: top; padding: .3em 1em .3em 0;
  border-bottom: 1px solid #ddd; }
td:last-child { overflow-wrap: anywhere; }
td.number { text-align: right; }
pre { white-space: pre-wrap; font-size: 85%; }
"""


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
  samples = {
    kind: survey.sample(data_dir, kind, count, seed) for kind in _KINDS
  }
  found = {kind: s for kind, s in samples.items() if s is not None}
  _check(data_dir, found)
  summary = survey.told(data_dir)
  outputs.make_folder(output)
  files: dict[str, bytes] = {}
  counts = [f"{s.total:,} {_KINDS[kind]}" for kind, s in found.items()]
  parts = [
    f"<h1>{escape(str(data_dir))}</h1>",
    f"<p>{' and '.join(counts)}</p>",
  ]
  for kind, sample in found.items():
    parts += _section(kind, sample, seed, files)
  parts += ["<h2>Left out</h2>", *_left_out(data_dir, summary, files)]
  if summary:
    settings = escape(json.dumps(summary["identity"], indent=2))
    parts += ["<h2>How it was built</h2>", f"<pre>{settings}</pre>"]
  files["index.html"] = _page(str(data_dir), parts)
  outputs.write({output / name: data for name, data in files.items()})
  note(f"wrote {', '.join(sorted(files))} to {output}")


def _check(data_dir: Path, found: dict[Kind, survey.Sample]) -> None:
  if not found:
    raise InputError(
      f"no dataset in {data_dir}; give the folder that `i2vgen data build`"
      " wrote, which contains text_video or text_image"
    )
  damaged = [line for sample in found.values() for line in sample.damaged]
  if not any(sample.rows for sample in found.values()):
    first = f": {damaged[0]}" if damaged else ""
    raise InputError(f"no record of {data_dir} can be read{first}")
  if damaged:
    note(f"{len(damaged)} records cannot be read; the first: {damaged[0]}")


def _section(
  kind: Kind, sample: survey.Sample, seed: int, files: dict[str, bytes]
) -> list[str]:
  """HTML about one kind; adds its pictures to `files`."""
  noun = _KINDS[kind]
  parts = [f"<h2>{noun.capitalize()}</h2>"]
  if sample.damaged:
    text = (
      f"{len(sample.damaged)} of the {noun} in the sample cannot be read; the"
      f" first: {sample.damaged[0]}"
    )
    parts.append(f'<p class="alarm">{escape(text)}</p>')
  if sample.rows:
    parts += _statistics(kind, sample, seed, files)
    parts += _samples(kind, sample, files)
  return parts


def _statistics(
  kind: Kind, sample: survey.Sample, seed: int, files: dict[str, bytes]
) -> list[str]:
  noun, drawn = _KINDS[kind], len(sample.rows) + len(sample.damaged)
  figures = survey.figures(kind, sample.rows)
  measured = {name: values for name, values in figures.items() if len(values)}
  chart = files[f"{noun}-figures.png"] = plots.histograms(measured, noun)
  text = f"Counted over all {drawn:,} {noun}."
  if drawn < sample.total:
    text = (
      f"Counted over {drawn:,} of {sample.total:,} {noun}, drawn at random,"
      f" seed {seed}."
    )
  if missing := [name for name in figures if name not in measured]:
    text += f" Not measured: {'; '.join(missing)}."
  return [
    f'<p class="note">{escape(text)}</p>',
    _image(chart, "png", f"histograms of the {noun}"),
  ]


def _samples(
  kind: Kind, sample: survey.Sample, files: dict[str, bytes]
) -> list[str]:
  noun = _KINDS[kind]
  rows = [
    Row(_captions(row), _facts(row), strip(frames))
    for row, frames in sample.shown
  ]
  sheet = contact_sheet.stack(rows, _WIDTH)
  files[f"{noun}.png"] = contact_sheet.encode_png(sheet)
  figures = []
  for captions, facts, picture in rows:
    texts = "".join(f"<p>{escape(caption)}</p>" for caption in captions)
    texts += f'<p class="facts">{escape(facts)}</p>'
    jpeg = contact_sheet.encode_jpeg(picture)
    image = _image(jpeg, "jpeg", "; ".join(captions))
    figures.append(f"<figure><figcaption>{texts}</figcaption>{image}</figure>")
  return [
    f"<h3>{len(rows)} {noun}, drawn at random</h3>",
    f'<div class="{noun}">',
    *figures,
    "</div>",
  ]


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
  scores = {name: row[name] for name in SCORES if math.isfinite(row[name])}
  facts += [f"{name} {plots.brief(score)}" for name, score in scores.items()]
  if source := row["source"].decode(errors="replace"):
    at = f" at {row['start']:.2f} s" if "start" in row else ""
    facts.append(f"from {source}{at}")
  return " · ".join(facts)


def _left_out(
  data_dir: Path, summary: dict, files: dict[str, bytes]
) -> list[str]:
  if not summary:
    return ["<p>There is no build.json: the build is unfinished.</p>"]
  rows = survey.left_out(data_dir, summary["dropped"])
  if not rows:
    return ["<p>Nothing: the quarantine is empty.</p>"]
  chart = files["left-out.png"] = plots.bars(rows)
  lines = []
  for row in rows:
    example = row.example or "see quarantine.jsonl"
    cells = "".join(
      f"<td>{escape(text)}</td>" for text in (row.reason, row.meaning, example)
    )
    lines.append(f'<tr><td class="number">{row.count:,}</td>{cells}</tr>')
  total = sum(row.count for row in rows)
  return [
    f"<p>{total:,} files, rows or shots.</p>",
    _image(chart, "png", "number of inputs left out for each reason"),
    "<table><tr><th>count</th><th>reason</th><th>meaning</th>"
    "<th>example</th></tr>",
    *lines,
    "</table>",
  ]


def _image(data: bytes, form: str, text: str) -> str:
  source = f"data:image/{form};base64,{base64.b64encode(data).decode()}"
  return f'<img src="{source}" alt="{escape(text)}">'


def _page(title: str, parts: list[str]) -> bytes:
  body = "\n".join(parts)
  page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""
  return page.encode()
