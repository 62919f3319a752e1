"""The page of `i2vgen serve`: a form, the result and the gallery."""

import html
import json
import threading
import urllib.parse
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr

from i2vgen_jax.errors import InputError
from i2vgen_jax.files import read_json
from launch.gallery import Gallery
from launch.progress import ProgressBar

_WAITING = 100  # runs in the queue
_SHOWN = 50  # videos on the page
_CAPTIONS = {"base": "Base", "refine": "Refined"}
# Not the paths of the weights, the picture and the output.
_SETTINGS = "prompt seed stage settings tokens_cut seconds device versions"
_PROGRESS = gr.Progress()  # Gradio replaces it by that of the run.
_ASSETS = Path(__file__).parent / "assets"
_PICKER = """
<div class="picker"><b>Picture</b><br>Choose a file or drop it here
<input type="file" accept="image/*" aria-label="Picture"></div>
${value.shown}
"""


def mount(
  app: fastapi.FastAPI, gallery: Gallery, **limits: Any
) -> fastapi.FastAPI:
  """Adds the page to an application.

  Args:
    app: has the routes /pictures and /videos.
    gallery: makes and keeps the videos.
    **limits: for `upload.js`: `limit` in bytes, and the message `large`.
  """
  return gr.mount_gradio_app(
    app,
    _blocks(gallery, limits),
    path="/",
    # Of an exception that is a bug the page does not show the text.
    show_error=False,
    run_history=False,
    footer_links=[],
    css_paths=_ASSETS / "page.css",
    # Fonts of the system: the page loads nothing from elsewhere.
    theme=gr.themes.Default(
      font=["system-ui", "sans-serif"], font_mono=["monospace"]
    ),
  )


def _blocks(gallery: Gallery, limits: dict[str, Any]) -> gr.Blocks:
  # By session; that of a run that has ended vanishes.
  stops = weakref.WeakValueDictionary()

  def make(
    picture: dict[str, str],
    prompt: str,
    seed: float | None,
    request: gr.Request,
    progress: gr.Progress = _PROGRESS,
  ) -> tuple[Any, Any, Any]:
    stop = stops[request.session_hash] = threading.Event()
    line = _Steps(progress, stop)
    try:
      key = picture.get("picture")
      name, problems = gallery.make(key, prompt, seed, line)
    except _Cancelled:
      return gr.skip(), gr.skip(), gr.skip()
    except InputError as e:
      text = str(e).replace(f"{gallery.folder}/", "")
      return problem(text), gr.skip(), gr.skip()
    notes = "".join(f"<p>{html.escape(f'Note: {p}')}</p>" for p in problems)
    result = _article(gallery.folder / f"{name}.json", "autoplay")
    return notes, result, _articles(gallery.folder)

  def cancel(request: gr.Request) -> str:
    if stop := stops.get(request.session_hash):
      stop.set()
    return "<p>Cancelled.</p>"

  with gr.Blocks(title="I2VGen-XL", analytics_enabled=False) as blocks:
    gr.Markdown("# I2VGen-XL\nMakes a video from a picture and a sentence.")
    with gr.Row():
      with gr.Column(scale=1):
        picker = gr.HTML(
          {"shown": ""},
          html_template=_PICKER,
          js_on_load=(_ASSETS / "upload.js").read_text(),
          failed=problem("the upload failed; try again"),
          **limits,
        )
        prompt = gr.Textbox(
          label="Prompt", placeholder="the camera zooms in slowly"
        )
        seed = gr.Number(0, label="Seed")
        with gr.Row():
          start = gr.Button("Make the video", variant="primary")
          end = gr.Button("Cancel")
        message = gr.HTML(elem_classes="message")
      with gr.Column(scale=2):
        result = gr.HTML(
          "<p>The videos of both stages appear here.</p>",
          elem_classes="result",
          min_height=200,
        )
    gr.Markdown("## Gallery")
    shelf = gr.HTML()
    for event in (picker.change, start.click):
      event(None, outputs=message, js="() => ''")
    run = start.click(
      make,
      [picker, prompt, seed],
      [message, result, shelf],
      show_progress_on=result,
      concurrency_limit=1,
    )
    # Gradio takes a run that waits from the queue, but lets others go on.
    end.click(cancel, outputs=message, queue=False, cancels=run)
    blocks.load(lambda: _articles(gallery.folder), outputs=shelf)
  return blocks.queue(max_size=_WAITING)


class _Cancelled(Exception):
  """The video that is being made is no longer wanted."""


class _Steps(ProgressBar):
  """Shows the steps on the page, and ends the run once `stop` is set."""

  def __init__(self, show: Callable[..., Any], stop: threading.Event):
    super().__init__()
    self.silent = True
    self._show, self._stop = show, stop

  def begin(self, job: str, total: int, first: str = "") -> None:
    super().begin(job, total)
    self._show((0, total), desc=f"{_CAPTIONS[job]}: {first}", unit="steps")

  def update(self, done: int) -> None:
    if self._stop.is_set():
      raise _Cancelled
    self._show((done, self._total), desc=_CAPTIONS[self._job], unit="steps")


# ---- HTML ----


def problem(text: object) -> str:
  """An error, for the user."""
  return f'<p class="problem" role="alert">{html.escape(str(text))}</p>'


def _articles(folder: Path) -> str:
  """The latest videos of a folder."""
  paths = [p for p in folder.glob("*.json") if p.with_suffix(".mp4").exists()]
  paths.sort(key=lambda path: path.stat().st_mtime, reverse=True)
  shown = [_article(path) for path in paths[:_SHOWN]] or [
    "<p>No videos yet.</p>"
  ]
  if more := paths[_SHOWN:]:
    shown.append(f"<p>{len(more)} older videos are in the folder.</p>")
  return f'<div class="gallery">{"".join(shown)}</div>'


def _article(path: Path, options: str = "") -> str:
  """The clips of a video, links to their files, and the settings.

  Args:
    path: of the settings.
    options: attributes of the clips.
  """
  try:
    report = read_json(path)
    *others, last = report["settings"]
    clips = {name: path.with_suffix(f".{name}.mp4") for name in others}
    clips[last] = path.with_suffix(".mp4")
    figures = "".join(
      _figure(clip, name, report["settings"][name]["size"], options)
      for name, clip in clips.items()
      if clip.exists()
    )
    prompt, seed = html.escape(report["prompt"] or ""), int(report["seed"])
    settings = {name: report[name] for name in _SETTINGS.split()}
  except (InputError, KeyError, TypeError, ValueError):
    return problem(f"the settings of {path.stem} cannot be read")
  text = html.escape(json.dumps(settings, indent=2))
  return (
    f'<article><div class="clips">{figures}</div><p><b>{prompt}</b></p>'
    f"<details><summary>Seed {seed}, all settings</summary><pre>{text}</pre>"
    "</details></article>"
  )


def _figure(clip: Path, stage: str, size: list[int], options: str) -> str:
  address = f"videos/{urllib.parse.quote(clip.name)}"
  width, height = map(int, size)
  return (
    f'<figure><video src="{address}" controls loop muted playsinline {options}>'
    f"</video><figcaption>{_CAPTIONS[stage]}, {width}x{height} "
    f'<a href="{address}" download>Download</a></figcaption></figure>'
  )
