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
from i2vgen_jax.stage import Diffusion, Sampling

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


# Fields that config.json lacks: those of training and of every flax module, and
# the settings that imitate one sampler of the public code.
_NOT_STORED = (
  *("dropout", "remat", "remat_policy"),
  *("dtype", "param_dtype", "parent", "name"),
  *("to_clean", "reference_start", "black_edge"),
)


@dataclasses.dataclass(frozen=True)
class Variant:
  """One public variant.

  Attributes:
    component: name of its network in a cascade folder.
    unet: its U-Net.
    diffusion: what it was trained to.
    sampling: how its public code samples.
  """

  component: str
  unet: I2VGenUNet
  diffusion: Diffusion
  sampling: Sampling

  def config(self) -> dict[str, Any]:
    """The content of its `config.json`; a copy that may be changed."""
    return {
      "module": _stored_fields(self.unet),
      "diffusion": _stored_fields(self.diffusion),
      "sampling": _stored_fields(self.sampling),
    }


def _stored_fields(settings: Any) -> dict[str, Any]:
  names = [field.name for field in dataclasses.fields(settings)]
  return {k: getattr(settings, k) for k in names if k not in _NOT_STORED}


VARIANTS = {
  "released": Variant(
    component="base",
    unet=I2VGenUNet(),
    diffusion=Diffusion("cosine", True, prediction_type="v"),
    sampling=Sampling(
      size=(1280, 704), num_frames=16, fps=16.0, negative_prompt=_NEGATIVE
    ),
  ),
  "image_to_video": Variant(
    component="base",
    unet=I2VGenUNet(use_text=False, local_image="none"),
    diffusion=Diffusion("linear_sd", False, prediction_type="v"),
    sampling=Sampling(
      size=(448, 256),
      num_frames=32,
      fps=8.0,
      guidance_scale=3.0,
      noise_offset=0.1,
      decode_chunk=8,
    ),
  ),
  "refine": Variant(
    component="refine",
    unet=I2VGenUNet(
      use_image_embeds=False,
      use_fps=False,
      local_image="none",
      height_padding=2,
    ),
    diffusion=Diffusion("logsnr_cosine_interp", True, prediction_type="v"),
    sampling=Sampling(
      size=(1280, 720),
      num_frames=32,
      fps=8.0,
      solver="dpmpp_2m_sde",
      spacing="trailing",
      num_steps=30,
      guidance_scale=7.5,
      guidance_rescale=0.2,
      negative_prompt=_REFINE_NEGATIVE,
      prompt_suffix=_REFINE_SUFFIX,
      start_timestep=599,
    ),
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
    public = variant.unet
    if all(getattr(module, k, None) == getattr(public, k) for k in _KIND):
      return name
  return None
