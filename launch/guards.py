"""Ctrl-C and running out of memory while XLA computes."""

import contextlib
import signal
from collections.abc import Iterator

import jax

from i2vgen_jax.errors import InputError


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
  """Lets Ctrl-C end the process at once; Python alone would wait for XLA."""
  before = signal.getsignal(signal.SIGINT)
  if before is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
  try:
    yield
  finally:
    if before is signal.default_int_handler:
      signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def memory(advice: str) -> Iterator[None]:
  """Raises InputError with the advice when memory runs out."""
  try:
    yield
  except (MemoryError, jax.errors.JaxRuntimeError) as e:
    if isinstance(e, MemoryError) or "RESOURCE_EXHAUSTED" in str(e):
      raise InputError(f"not enough memory; {advice}") from e
    raise
