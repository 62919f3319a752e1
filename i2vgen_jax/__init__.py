"""I2VGen-XL in JAX: `load` gives a cascade, `interop` single networks."""

from typing import Any


def __getattr__(name: str) -> Any:
  # Loading a cascade imports everything, which most parts do not need.
  if name == "load":
    from i2vgen_jax.cascade import Cascade

    return Cascade.load
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
