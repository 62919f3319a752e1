"""Files of a run that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
  """A name to write a file to; at the end it is renamed to `path`."""
  partial = path.with_name(path.name + ".partial")
  yield partial
  os.replace(partial, path)
