"""Public weights, read and written.

`load_unet`, `load_vae`, `load_text_encoder` and `load_image_encoder` return
`(module, params)`; `open_weights` finds out what a path holds before anything
large is read; `initial_params` returns the weights that a training starts from.

The same `Part`s of `keys` serve recognising, reading and writing;
docs/architecture.md lists what a new weight form needs.
"""

from i2vgen_jax.interop.opening import (
  StoredWeights,
  load_image_encoder,
  load_text_encoder,
  load_unet,
  load_vae,
  open_weights,
)
from i2vgen_jax.interop.start import initial_params
from i2vgen_jax.interop.stored import StoredNetwork

__all__ = [
  "StoredNetwork",
  "StoredWeights",
  "initial_params",
  "load_image_encoder",
  "load_text_encoder",
  "load_unet",
  "load_vae",
  "open_weights",
]
