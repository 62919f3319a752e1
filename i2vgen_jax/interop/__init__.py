"""Public weights, read and written.

`load_unet`, `load_vae`, `load_text_encoder` and `load_image_encoder` return
`(module, params)`; `open_weights` finds out what a path holds before anything
large is read; `initial_params` returns the weights that a training starts from.

A new weight form is a module in `formats` if its files are of a new kind, names
in the `Part`s of `keys` if its keys are, and in both cases a signature in
`recognise.py`. The same `Part`s serve recognising, reading and writing.
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
