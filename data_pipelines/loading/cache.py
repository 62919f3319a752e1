"""Decoded examples in memory."""

import collections
import threading
from collections.abc import Callable, Hashable

import numpy as np

# Row of a batch, or its pixels or latents alone, by the names in `Batch`.
Arrays = dict[str, np.ndarray | np.generic | None]


class Cache:
  """The most recently used items up to a number of bytes; thread-safe."""

  def __init__(self, max_bytes: int):
    self._items = collections.OrderedDict[Hashable, Arrays]()
    self._room = max_bytes
    self._lock = threading.Lock()

  def get(self, key: Hashable, load: Callable[[], Arrays]) -> Arrays:
    """The item of that key, loaded if it is not there.

    Adding it removes the least recently used items beyond the size.
    """
    with self._lock:
      if key in self._items:
        self._items.move_to_end(key)
        return self._items[key]
    item = load()  # by several threads at once
    with self._lock:
      if key not in self._items:
        self._items[key] = item
        self._room -= _num_bytes(item)
      while self._room < 0:
        _, oldest = self._items.popitem(last=False)
        self._room += _num_bytes(oldest)
    return item


def _num_bytes(item: Arrays) -> int:
  return sum(array.nbytes for array in item.values() if array is not None)
