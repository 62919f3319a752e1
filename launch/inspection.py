"""`i2vgen data inspect`: pictures and one page that show a dataset.

The page holds everything it needs, so that it can be sent to somebody or
opened without a network.
"""

import base64
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.footage import survey
from data_pipelines.shards.dataset import SCORES, Kind
from i2vgen_jax.errors import InputError
from launch import outputs, sheets
from launch.progress import note

_KINDS: dict[Kind, str] = {"text_video": "clips", "text_image": "pictures"}
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


def inspect(data_dir: Path, output: Path, num_shown: int, seed: int) -> None:
  """Writes index.html and its pictures.

  Args:
    data_dir: what `i2vgen data build` wrote.
    output: folder to write into.
    num_shown: clips, and pictures, to show.
    seed: of the draw.

  Raises:
    InputError: no dataset there, none of whose records can be read, or a
      folder that cannot be written to.
  """
  samples = {
    kind: survey.sample(data_dir, kind, num_shown, seed) for kind in _KINDS
  }
  found = {kind: s for kind, s in samples.items() if s is not None}
  _check(data_dir, found)
  told = survey.told(data_dir)
  outputs.make_folder(output)
  files: dict[str, bytes] = {}
  parts = [_head(data_dir, found)]
  for kind, sample in found.items():
    parts += _section(kind, sample, seed, files)
  parts += _left_out(data_dir, told, files)
  if told:
    parts += ["<h2>How it was built</h2>", _pre(told["identity"])]
  files["index.html"] = _page(data_dir, parts).encode()
  outputs.write({output / name: data for name, data in files.items()})
  note(f"wrote {', '.join(sorted(files))} to {output}")


def _check(data_dir: Path, found: dict[Kind, survey.Sample]) -> None:
  if not found:
    raise InputError(
      f"no dataset in {data_dir}; give the directory that `i2vgen data build`"
      " wrote, the one above text_video and text_image"
    )
  damaged = [line for sample in found.values() for line in sample.damaged]
  if not any(sample.rows for sample in found.values()):
    first = f": {damaged[0]}" if damaged else ""
    raise InputError(f"no record of {data_dir} can be read{first}")
  if damaged:
    note(f"{len(damaged)} records cannot be read; the first: {damaged[0]}")


def _head(data_dir: Path, found: dict[Kind, survey.Sample]) -> str:
  counts = [f"{s.total:,} {_KINDS[kind]}" for kind, s in found.items()]
  name = html.escape(str(data_dir))
  return f"<h1>{name}</h1><p>{' and '.join(counts)}</p>"


def _section(
  kind: Kind, sample: survey.Sample, seed: int, files: dict[str, bytes]
) -> list[str]:
  """The part of the page about one kind; its pictures go to `files`."""
  noun = _KINDS[kind]
  drawn = len(sample.rows) + len(sample.damaged)
  parts = [f"<h2>{noun.capitalize()}</h2>", _damage(sample, noun)]
  if not sample.rows:
    return parts
  figures = survey.figures(kind, sample.rows)
  measured = {name: v for name, v in figures.items() if len(v)}
  files[f"{noun}-figures.png"] = sheets.histograms(measured, noun)
  what = f"all {drawn:,} {noun}"
  if drawn < sample.total:
    what = f"{drawn:,} of {sample.total:,} {noun}, drawn at random, seed {seed}"
  text = f"Counted over {what}."
  if missing := [name for name in figures if name not in measured]:
    text += f" Not measured: {'; '.join(missing)}."
  strips = [
    (_captions(row), _facts(row), sheets.strip(frames))
    for row, frames in sample.shown
  ]
  files[f"{noun}.png"] = sheets.sheet(strips)
  parts += [
    f'<p class="note">{html.escape(text)}</p>',
    _image(files[f"{noun}-figures.png"], "png", f"histograms of the {noun}"),
    f"<h3>{len(strips)} {noun}, drawn at random</h3>",
    f'<div class="{noun}">',
  ]
  for captions, facts, picture in strips:
    texts = "".join(f"<p>{html.escape(caption)}</p>" for caption in captions)
    image = _image(sheets.jpeg(picture), "jpeg", "; ".join(captions))
    parts.append(
      f"<figure><figcaption>{texts}"
      f'<p class="facts">{html.escape(facts)}</p></figcaption>{image}</figure>'
    )
  return [*parts, "</div>"]


def _damage(sample: survey.Sample, noun: str) -> str:
  if not sample.damaged:
    return ""
  first = html.escape(sample.damaged[0])
  return (
    f'<p class="alarm">{len(sample.damaged)} of the {noun} looked at cannot be'
    f" read; the first: {first}</p>"
  )


def _captions(row: survey.Row) -> list[str]:
  return [c.decode(errors="replace") for c in row["captions"]]


def _facts(row: survey.Row) -> str:
  """Everything else that is known, in one line; scores where measured."""
  facts = [row["id"].decode()]
  if "fps" in row:
    seconds = row["num_frames"] / row["fps"]
    facts += [f"{seconds:.1f} s", f"{row['fps']:.4g} fps"]
    facts.append(f"{row['num_frames']} frames")
  facts.append(f"{row['width']}x{row['height']}")
  facts += [
    f"{name} {sheets.brief(row[name])}"
    for name in SCORES
    if math.isfinite(row[name])
  ]
  if source := row["source"].decode(errors="replace"):
    at = f" at {row['start']:.2f} s" if "start" in row else ""
    facts.append(f"from {source}{at}")
  return " · ".join(facts)


def _left_out(data_dir: Path, told: dict, files: dict[str, bytes]) -> list[str]:
  parts = ["<h2>Left out</h2>"]
  if not told:
    text = "There is no build.json: the build is unfinished, or not ours."
    return [*parts, f"<p>{text}</p>"]
  rows = survey.left_out(data_dir, told["dropped"])
  if not rows:
    return [*parts, "<p>Nothing: the quarantine is empty.</p>"]
  files["left-out.png"] = sheets.bars(rows)
  lines = [
    f'<tr><td class="number">{row.count:,}</td><td>{html.escape(row.reason)}'
    f"</td><td>{html.escape(row.meaning)}</td>"
    f"<td>{html.escape(row.example or 'see quarantine.jsonl')}</td></tr>"
    for row in rows
  ]
  total = sum(row.count for row in rows)
  return [
    *parts,
    f"<p>{total:,} files, rows or shots.</p>",
    _image(files["left-out.png"], "png", "how often each reason occurred"),
    "<table><tr><th>count</th><th>reason</th><th>meaning</th>"
    "<th>one of them</th></tr>",
    *lines,
    "</table>",
  ]


def _pre(value: object) -> str:
  return f"<pre>{html.escape(json.dumps(value, indent=2))}</pre>"


def _image(data: bytes, form: str, text: str) -> str:
  source = f"data:image/{form};base64,{base64.b64encode(data).decode()}"
  return f'<img src="{source}" alt="{html.escape(text)}">'


def _page(data_dir: Path, parts: Sequence[str]) -> str:
  body = "\n".join(part for part in parts if part)
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width">\n'
    f"<title>{html.escape(str(data_dir))}</title>\n"
    f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
  )
