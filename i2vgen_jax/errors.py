"""The one exception for unusable input, and the boundaries that raise it.

Code that parses or computes raises plain exceptions with the fact alone; the
function that knows the file wraps the call in `reading` or `writing`, which
add the place and what to do.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path


class InputError(ValueError):
  """Something given from outside is unusable: a file, a size, a key, a text.

  The message is one line that says what is wrong, where, and what to do.
  The command line prints it and exits with status 2.

  Attributes:
    reason: one word that a dataset build counts left-out inputs by; a key of
      `data_pipelines.footage.quarantine.REASONS`.
  """

  def __init__(self, message: str, reason: str = "damaged"):
    # Both are in args, so that the exception can be pickled.
    super().__init__(message, reason)

  @property
  def reason(self) -> str:
    return self.args[1]

  def __str__(self) -> str:
    return self.args[0]


@contextlib.contextmanager
def enough_memory(advice: str) -> Iterator[None]:
  """Turns running out of host or device memory into an InputError."""
  try:
    yield
  except (MemoryError, RuntimeError) as e:
    # XLA's error is a RuntimeError with this word in it.
    if isinstance(e, MemoryError) or "RESOURCE_EXHAUSTED" in str(e):
      raise InputError(f"not enough memory; {advice}") from e
    raise


# What parsers raise for damaged content. JSONDecodeError and
# UnicodeDecodeError are ValueErrors.
_DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError)


@contextlib.contextmanager
def reading(
  path: str | Path, advice: str = "check the path, or copy the file again"
) -> Iterator[None]:
  """Turns failures to read or parse `path` into one InputError.

  An InputError raised inside passes through unchanged.
  """
  try:
    yield
  except InputError:
    raise
  except _DAMAGE as e:
    raise InputError(f"cannot read {path}: {_said(e)}; {advice}") from e


@contextlib.contextmanager
def writing(
  path: str | Path, advice: str = "choose another place"
) -> Iterator[None]:
  """Turns operating system errors while writing `path` into an InputError."""
  try:
    yield
  except OSError as e:
    raise InputError(f"cannot write {path}: {_said(e)}; {advice}") from e


def _said(error: BaseException) -> str:
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  if isinstance(error, KeyError):
    return f"{error} is missing"
  return " ".join(str(error).split()) or type(error).__name__
