"""The public weights, in and out.

`load_unet`, `load_vae`, `load_text_encoder` and `load_image_encoder` give
`(module, params)`; `load_cascade` gives all that makes a video,
`open_cascade` says first what there is;
`initial_params` gives what a training starts from.
"""

from i2vgen_jax.interop.load import (
  Opened,
  load_cascade,
  load_image_encoder,
  load_text_encoder,
  load_unet,
  load_vae,
  open_cascade,
)
from i2vgen_jax.interop.start import initial_params

__all__ = [
  "Opened",
  "initial_params",
  "load_cascade",
  "load_image_encoder",
  "load_text_encoder",
  "load_unet",
  "load_vae",
  "open_cascade",
]
