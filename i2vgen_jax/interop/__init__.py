"""The public weights, in and out.

`load_unet`, `load_vae`, `load_text_encoder` and `load_image_encoder` give
`(module, params)`; `open_weights` finds out what a path holds before anything
large is read; `initial_params` gives what a training starts from.
"""

from i2vgen_jax.interop.load import (
  StoredNetwork,
  StoredWeights,
  load_image_encoder,
  load_text_encoder,
  load_unet,
  load_vae,
  open_weights,
)
from i2vgen_jax.interop.start import initial_params

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
