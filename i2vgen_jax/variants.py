"""The three public weight variants: their U-Nets, training targets, recipes.

| variant | public name | role |
|---|---|---|
| released | VGen `UNetSD_I2VGen`, diffusers `I2VGenXLUNet` (c) | one stage |
| image_to_video | ModelScope Image-to-Video (a) | early base stage |
| refine | ModelScope Video-to-Video (b) | refine stage |

The values are those of the code that was published with the weights. Only what
differs from the defaults of `I2VGenUNet` and `Sampling` is listed.
"""

import dataclasses
from typing import Any

from i2vgen_jax.models.unet import I2VGenUNet
from i2vgen_jax.stage import Sampling

_NEGATIVE = (
  "Distorted, discontinuous, Ugly, blurry, low resolution, motionless, "
  "static, disfigured, disconnected limbs, Ugly faces, incomplete arms"
)
_REFINE_NEGATIVE = (
  "worst quality, normal quality, low quality, low res, blurry, text, "
  "watermark, logo, banner, extra digits, cropped, jpeg artifacts, "
  "signature, username, error, sketch ,duplicate, ugly, monochrome, horror, "
  "geometry, mutation, disgusting"
)
_REFINE_SUFFIX = (
  ", cinematic, High Contrast, highly detailed, unreal engine, taken "
  "using a Canon EOS R camera, hyper detailed photo - realistic maximum "
  "detail, 32k, Color Grading, ultra HD, extreme meticulous detailing, "
  "skin pore detailing, hyper sharpness, perfect without deformations, "
  "Unreal Engine 5, 4k render"
)


def _defaults(cls: type, without: tuple[str, ...]) -> dict[str, Any]:
  """Defaults of the fields of a dataclass, except those in `without`."""
  return {
    field.name: field.default
    for field in dataclasses.fields(cls)
    if field.default is not dataclasses.MISSING and field.name not in without
  }


# Without the fields of training and of every flax module.
_UNET = _defaults(
  I2VGenUNet, ("dropout", "remat", "dtype", "param_dtype", "parent", "name")
)
# Without the settings that imitate one sampler of the public code.
_SAMPLING = _defaults(Sampling, ("to_clean", "reference_start", "black_edge"))


@dataclasses.dataclass(frozen=True)
class Variant:
  """One public variant.

  Attributes:
    component: name of its network in a cascade folder.
    unet: fields of `I2VGenUNet`, without those of training.
    diffusion: see `stage.Diffusion`.
    sampling: see `stage.Sampling`.
  """

  component: str
  unet: dict[str, Any]
  diffusion: dict[str, Any]
  sampling: dict[str, Any]

  def config(self) -> dict[str, Any]:
    """The content of its `config.json`; a copy that may be changed."""
    return {
      "module": dict(self.unet),
      "diffusion": dict(self.diffusion),
      "sampling": dict(self.sampling),
    }


VARIANTS = {
  "released": Variant(
    component="base",
    unet=_UNET,
    diffusion={
      "schedule": "cosine",
      "zero_terminal_snr": True,
      "prediction_type": "v",
    },
    sampling=_SAMPLING
    | {
      "size": (1280, 704),
      "num_frames": 16,
      "fps": 16.0,
      "negative_prompt": _NEGATIVE,
    },
  ),
  "image_to_video": Variant(
    component="base",
    unet=_UNET | {"use_text": False, "local_image": "none"},
    diffusion={
      "schedule": "linear_sd",
      "zero_terminal_snr": False,
      "prediction_type": "v",
    },
    sampling=_SAMPLING
    | {
      "size": (448, 256),
      "num_frames": 32,
      "fps": 8.0,
      "guidance_scale": 3.0,
      "noise_offset": 0.1,
      "decode_chunk": 8,
    },
  ),
  "refine": Variant(
    component="refine",
    unet=_UNET
    | {
      "use_image_embeds": False,
      "use_fps": False,
      "local_image": "none",
      "height_padding": 2,
    },
    diffusion={
      "schedule": "logsnr_cosine_interp",
      "zero_terminal_snr": True,
      "prediction_type": "v",
    },
    sampling=_SAMPLING
    | {
      "size": (1280, 720),
      "num_frames": 32,
      "fps": 8.0,
      "solver": "dpmpp_2m_sde",
      "spacing": "trailing",
      "num_steps": 30,
      "guidance_scale": 7.5,
      "guidance_rescale": 0.2,
      "negative_prompt": _REFINE_NEGATIVE,
      "prompt_suffix": _REFINE_SUFFIX,
      "start_timestep": 599,
    },
  ),
}


# Fields that tell the variants apart at any size.
_KIND = (
  "use_text",
  "use_image_embeds",
  "use_fps",
  "local_image",
  "height_padding",
)


def variant_of(module: Any) -> str | None:
  """The variant that a U-Net is of, at any size; None if it is of none."""
  for name, variant in VARIANTS.items():
    if all(getattr(module, k, None) == variant.unet[k] for k in _KIND):
      return name
  return None
