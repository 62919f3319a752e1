"""The public weights, in and out.

`load_unet`, `load_vae`, `load_text_encoder` and `load_image_encoder` give
`(module, params)`; `load_cascade` gives all that makes a video.
"""

from i2vgen_jax.interop.load import (
  load_cascade,
  load_image_encoder,
  load_text_encoder,
  load_unet,
  load_vae,
)

__all__ = [
  "load_cascade",
  "load_image_encoder",
  "load_text_encoder",
  "load_unet",
  "load_vae",
]
