"""`i2vgen serve`: a page in the browser on which pictures become videos.

Pictures and videos have routes of their own, because the addresses that Gradio
gives to files are paths of the server.
"""

import base64
import dataclasses
import ipaddress
import socket
from pathlib import Path
from typing import Any

import fastapi
import uvicorn
from fastapi import responses
from fastapi.concurrency import run_in_threadpool

from i2vgen_jax.errors import InputError
from launch import arguments, contact_sheet, page, sample
from launch.arguments import Count, Port, Text
from launch.gallery import Gallery
from launch.progress import note


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(sample.Settings):
  """Makes videos on a page in the browser.

      i2vgen serve --gallery gallery

  Videos are made one after another; a queue shows who is next. Whoever reaches
  the page sees all videos of the gallery; there is no password.

  Attributes:
    gallery: Folder of the videos and their settings; created if it is missing.
    host: Address to listen on. By default only this machine reaches the page;
      with 0.0.0.0 every machine that reaches this one does.
    port: Port to listen on; 0 takes a free one.
    max_upload: Largest size of an uploaded picture, in megabytes.
    max_pixels: Largest number of pixels of an uploaded picture.
  """

  gallery: Path = Path("gallery")
  host: Text = "127.0.0.1"
  port: Port = 7860
  max_upload: Count = 20
  max_pixels: Count = 50_000_000


def main(argv: list[str]) -> None:
  """Serves the page until it is interrupted.

  Raises:
    InputError: an argument, the weights, the folder or the address is unusable.
  """
  args = arguments.parse(Arguments, argv, "i2vgen serve")
  with _listen(args.host, args.port) as listener:
    app = make_app(args)
    host = f"[{args.host}]" if ":" in args.host else args.host
    note(f"the page is http://{host}:{listener.getsockname()[1]}")
    if not _is_loopback(args.host):
      note("every machine that reaches this address can use the page")
    # Pages that are open keep connections; do not wait for them at the end.
    config = uvicorn.Config(
      app, log_level="warning", timeout_graceful_shutdown=1
    )
    uvicorn.Server(config).run([listener])


def _listen(host: str, port: int) -> socket.socket:
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  try:
    return socket.create_server((host, port), family=family)
  except OSError as e:
    raise InputError(
      f"cannot listen on {host}, port {port}: {e.strerror}; choose another "
      "--host or --port"
    ) from e


def _is_loopback(host: str) -> bool:
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == "localhost"


def make_app(args: Arguments) -> fastapi.FastAPI:
  """The page, and the routes of pictures and videos.

  Raises:
    InputError: the weights or the folder is unusable.
  """
  gallery = Gallery(args.gallery, args, args.max_pixels)
  app = fastapi.FastAPI(openapi_url=None)

  @app.post("/pictures")
  async def upload(request: fastapi.Request, name: str) -> dict[str, str]:
    data, title = await request.body(), Path(name).name[-80:]
    try:
      key, small = await run_in_threadpool(gallery.add_picture, data, title)
    except InputError as e:
      return {"shown": page.problem(e)}
    jpeg = base64.b64encode(contact_sheet.encode(small, "JPEG")).decode()
    source = f'src="data:image/jpeg;base64,{jpeg}"'
    shown = f'<img class="preview" alt="The chosen picture" {source}>'
    return {"picture": key, "shown": shown}

  @app.get("/videos/{name}")
  def download(name: str) -> responses.FileResponse:
    if name not in [path.name for path in gallery.folder.glob("*.mp4")]:
      raise fastapi.HTTPException(404)
    return responses.FileResponse(gallery.folder / name)

  @app.post("/gradio_api/upload")
  def refuse() -> None:
    """In place of Gradio's route, which answers with paths of the server."""
    raise fastapi.HTTPException(404)

  limit = args.max_upload * 1_000_000
  large = page.problem(
    f"the file has over {args.max_upload} MB; scale the picture down"
  )
  app.add_middleware(_Limit, limit=limit, answer={"shown": large})
  return page.mount(app, gallery, limit=limit, large=large)


class _Limit:
  """Refuses requests that are too long, or do not say how long they are.

  The server reads no more of a request than the length that it names.
  """

  def __init__(self, app: Any, limit: int, answer: dict[str, str]):
    self._app, self._limit, self._answer = app, limit, answer

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    answer = self._app
    if scope["type"] == "http" and scope["method"] == "POST":
      headers = dict(scope["headers"])
      length = headers.get(b"content-length", b"")
      if b"transfer-encoding" in headers or not length.isdigit():
        answer = responses.Response(status_code=411)
      elif int(length) > self._limit:
        answer = responses.JSONResponse(self._answer, 413)
    await answer(scope, receive, send)
