"""Decoded examples in memory."""

import collections
import threading
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8


class Views(NamedTuple):
  """What a step sees of one clip; the names are those of `Batch`."""

  frames: UInt8[np.ndarray, "f h w 3"]
  clip_images: Float[np.ndarray, "s s 3"] | None


class Latents(NamedTuple):
  """What frozen networks made of one clip beforehand, likewise."""

  moments: Float[np.ndarray, "f h w c2"]
  image_embeds: Float[np.ndarray, "e"] | None


Kept = Views | Latents


def num_bytes(item: Kept) -> int:
  """Size in memory."""
  return sum(array.nbytes for array in item if array is not None)


class Cache:
  """Least recently used views up to a number of bytes, for several threads."""

  def __init__(self, max_bytes: int):
    self._items: collections.OrderedDict[Hashable, Kept] = (
      collections.OrderedDict()
    )
    self._room = max_bytes
    self._lock = threading.Lock()

  def get(self, key: Hashable) -> Kept | None:
    """What was put there, if it still is."""
    with self._lock:
      if key in self._items:
        self._items.move_to_end(key)
      return self._items.get(key)

  def put(self, key: Hashable, item: Kept) -> None:
    """Remembers it, and forgets what does not fit any longer."""
    with self._lock:
      if key in self._items:
        return
      self._items[key] = item
      self._room -= num_bytes(item)
      while self._room < 0:
        _, oldest = self._items.popitem(last=False)
        self._room += num_bytes(oldest)
