"""A web page in one file, which can be sent and opened offline."""

import base64
from collections.abc import Sequence
from html import escape

_HEAD = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<style>
body { font: 16px/1.45 sans-serif; color: #202020; background: white;
  max-width: 1280px; margin: 2em auto; padding: 0 1em; }
h2 { margin: 2em 0 .4em; border-bottom: 1px solid #ccc; }
img { max-width: 100%; display: block; }
figure { margin: 0 0 1.6em; }
figure p { margin: 0; }
.pictures, .videos { display: flex; flex-wrap: wrap; gap: 0 1em; }
.pictures figure { width: 300px; }
.videos { margin: 0 0 1.2em; }
.videos figure { width: 320px; margin: .3em 0 0; }
video { width: 100%; display: block; background: #eee; }
.facts, .caption { margin: 0; }
.facts, .note, figcaption { color: #5a5a5a; font-size: 85%; }
.alarm { color: #a00000; }
table { border-collapse: collapse; }
td, th { text-align: left; vertical-align: top; padding: .3em 1em .3em 0;
  border-bottom: 1px solid #ddd; white-space: pre-wrap; }
td:last-child { overflow-wrap: anywhere; }
td.number, th.number { text-align: right; padding-left: 1em; }
pre { white-space: pre-wrap; font-size: 85%; }
</style>"""

Cell = str | int | float | None


class Page:
  """Elements of a web page, and the files that belong to it by name."""

  def __init__(self, title: str):
    self.parts = [_HEAD]
    self.files: dict[str, bytes] = {}
    for tag in ("title", "h1"):
      self.add(tag, title)

  def add(self, tag: str, text: str, kind: str = "") -> None:
    """Adds an element of a CSS class with a text."""
    self.parts.append(f'<{tag} class="{kind}">{escape(text)}</{tag}>')

  def embed(self, picture: bytes, form: str, text: str) -> None:
    """Adds a picture, so that the page needs no other file."""
    source = _inline(picture, f"image/{form}")
    self.parts.append(f'<img src="{source}" alt="{escape(text)}">')

  def plot(self, name: str, picture: bytes, text: str) -> None:
    """Adds a PNG picture that is also a file."""
    self.files[name] = picture
    self.embed(picture, "png", text)

  def video(self, mp4: bytes, text: str) -> None:
    """Adds a silent video that is played again and again."""
    self.parts.append(
      '<video autoplay loop muted playsinline preload="auto"'
      f' aria-label="{escape(text)}" src="{_inline(mp4, "video/mp4")}">'
      "</video>"
    )

  def table(self, names: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Adds a table; columns with numbers are to the right, None is empty."""
    columns = zip(*rows, strict=True)
    kinds = ["number" if any(map(_is_number, c)) else "" for c in columns]
    for tag, cells in [("th", names), *(("td", row) for row in rows)]:
      self.parts.append("<tr>" if tag == "td" else "<table><tr>")
      for cell, kind in zip(cells, kinds, strict=True):
        self.add(tag, _shown(cell), kind)
    self.parts.append("</table>")

  def encode(self) -> bytes:
    """Content of the HTML file."""
    return "\n".join(self.parts).encode()


def _inline(data: bytes, kind: str) -> str:
  return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _is_number(cell: Cell) -> bool:
  return isinstance(cell, int | float)


def _shown(cell: Cell) -> str:
  if cell is None:
    return ""
  if isinstance(cell, float):
    return f"{cell:.3f}"
  return cell if isinstance(cell, str) else f"{cell:,}"
