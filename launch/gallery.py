"""A folder of videos, and the cascade that adds to it for `i2vgen serve`."""

import dataclasses
import re
import secrets
import threading
import time
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_pipelines.media import video
from i2vgen_jax import preprocessing
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import check_writable
from launch import outputs, sample
from launch.input_clip import InputClip
from launch.progress import ProgressBar

_UPLOADS = 64  # pictures that are kept
_LONGEST = 1000  # characters of a prompt
_PREVIEW = 512, 512


class Gallery:
  """Uploaded pictures, and the videos that are made of them.

  Its methods may be called from any thread.

  Attributes:
    folder: has of each video the files of `i2vgen sample`, the clips of the
      stages before the last as NAME.STAGE.mp4, and the picture as NAME.input.
  """

  def __init__(self, folder: Path, settings: sample.Settings, max_pixels: int):
    """Loads the cascade.

    Args:
      folder: created if it is missing.
      settings: those of all videos.
      max_pixels: larger pictures are refused.

    Raises:
      InputError: the folder cannot be written, or the settings are unusable.
    """
    outputs.make_folder(folder)
    check_writable(folder / "video.mp4")
    self.folder, self._max_pixels = folder, max_pixels
    self._settings = {
      field.name: getattr(settings, field.name)
      for field in dataclasses.fields(sample.Settings)
    }
    self._cascade, self._plan = sample.open_plan(settings)
    self._uploads: dict[str, tuple[str, bytes]] = {}
    # Decoded pictures and runs take much memory: one at a time.
    self._decoding, self._running = threading.Lock(), threading.Lock()

  def add_picture(self, data: bytes, title: str) -> tuple[str, Image.Image]:
    """Keeps an uploaded file until many others have followed.

    Args:
      data: content of the file.
      title: its name, for messages.

    Returns:
      The key to use it by, and a small copy.

    Raises:
      InputError: it is not a picture, is damaged, or has too many pixels.
    """
    if not data:
      raise InputError(f"{title} is empty (0 bytes); give another file")
    with self._decoding:
      small = Image.fromarray(self._decode(data, title))
      small.thumbnail(_PREVIEW)
      key = secrets.token_hex(8)
      self._uploads[key] = title, data
      while len(self._uploads) > _UPLOADS:
        del self._uploads[next(iter(self._uploads))]
    return key, small

  def make(
    self, key: str | None, prompt: str, seed: float | None, line: ProgressBar
  ) -> tuple[str, list[str]]:
    """Makes a video and writes its files.

    Args:
      key: of the picture.
      prompt: what happens in the video.
      seed: an integer; the same one gives the same video.
      line: shows the steps; an exception that it raises ends the run.

    Returns:
      The name of the video, and what the user should know about the prompt.

    Raises:
      InputError: an argument is unusable, or memory or disk are full.
    """
    title, data = self._uploads.get(key, (None, b""))
    if title is None:
      raise InputError("there is no picture; choose one")
    if len(prompt) > _LONGEST:
      raise InputError(f"the prompt has over {_LONGEST} characters; shorten it")
    if seed is None or not 0 <= seed < 2**32 or seed % 1:
      raise InputError(f"the seed must be an integer from 0 to {2**32 - 1}")
    problems = sample.check_prompt(self._cascade, self._plan, prompt)
    name = time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(4)
    suffix = re.search(r"(\.\w{1,5})?$", title, re.ASCII)[0]
    args = sample.Arguments(
      **self._settings,
      image=self.folder / f"{name}.input{suffix}",
      output=self.folder / f"{name}.mp4",
      prompt=prompt,
      seed=int(seed),
    )
    seconds: dict[str, float] = {}
    with self._running:
      source = InputClip(self._decode(data, title)[None])
      made = self._cascade, self._plan, source, args
      clips = sample.generate(*made, line, seconds)
      files = sample.encode(*made, clips, seconds) | {args.image: data}
    *others, _ = self._plan.values()
    for stage in others:
      path = self.folder / f"{name}.{stage.name}.mp4"
      files[path] = video.encode_mp4(clips[stage.name], stage.sampling.fps)
    outputs.write(files)
    return name, problems

  def _decode(self, data: bytes, title: str) -> UInt8[np.ndarray, "h w 3"]:
    return preprocessing.load_picture(data, title, self._max_pixels)
