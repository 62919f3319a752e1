"""I2VGen-XL in JAX: `load` gives a pipeline, `interop` the networks."""

from typing import Any


def __getattr__(name: str) -> Any:
  # Loading a pipeline imports everything, which most parts do not need.
  if name == "load":
    from i2vgen_jax.pipeline import load

    return load
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
