"""The three public weight variants: their U-Nets, training targets, recipes.

| variant | public name | role |
|---|---|---|
| released | VGen `UNetSD_I2VGen`, diffusers `I2VGenXLUNet` (c) | one stage |
| image_to_video | ModelScope Image-to-Video (a) | early base stage |
| refine | ModelScope Video-to-Video (b) | refine stage |

The values are those of the code that was published with the weights.
"""

import copy
import dataclasses
from typing import Any

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

_UNET = {
  "latent_channels": 4,
  "block_channels": (320, 640, 1280, 1280),
  "layers_per_block": 2,
  "head_dim": 64,
  "input_heads": 8,
  "context_dim": 1024,
  "norm_groups": 32,
  "use_text": True,
  "use_image_embeds": True,
  "use_fps": True,
  "local_image": "none",
  "image_grid": 8,
  "concat_gain": 1.0,
  "height_padding": 1,
}
_SAMPLING = {
  "solver": "ddim",
  "spacing": "ddim",
  "num_steps": 50,
  "guidance_rescale": 0.0,
  "negative_prompt": "",
  "prompt_suffix": "",
  # Standard deviation of the offset in the first noise.
  "noise_offset": 0.0,
  # Noise level at which a refine stage starts (SDEdit).
  "start_timestep": None,
  "decode_chunk": 2,
}


@dataclasses.dataclass(frozen=True)
class Variant:
  """One public variant.

  Attributes:
    component: its place in a cascade folder.
    unet: fields of `I2VGenUNet`, without those of training.
    diffusion: see `stage.Diffusion`.
    sampling: see `stage.Settings`.
  """

  component: str
  unet: dict[str, Any]
  diffusion: dict[str, Any]
  sampling: dict[str, Any]

  def config(self) -> dict[str, Any]:
    """What `config.json` holds for it, free to be changed."""
    return copy.deepcopy(
      {
        "module": self.unet,
        "diffusion": self.diffusion,
        "sampling": self.sampling,
      }
    )


VARIANTS = {
  "released": Variant(
    component="base",
    unet=_UNET | {"local_image": "concat"},
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
      "guidance_scale": 9.0,
      "negative_prompt": _NEGATIVE,
    },
  ),
  "image_to_video": Variant(
    component="base",
    unet=_UNET | {"use_text": False},
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
    | {"use_image_embeds": False, "use_fps": False, "height_padding": 2},
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
      "prompt_suffix": (
        ", cinematic, High Contrast, highly detailed, unreal engine, taken "
        "using a Canon EOS R camera, hyper detailed photo - realistic maximum "
        "detail, 32k, Color Grading, ultra HD, extreme meticulous detailing, "
        "skin pore detailing, hyper sharpness, perfect without deformations, "
        "Unreal Engine 5, 4k render"
      ),
      "start_timestep": 599,
    },
  ),
}


# What tells them apart, whatever their size.
_KIND = (
  "use_text",
  "use_image_embeds",
  "use_fps",
  "local_image",
  "height_padding",
)


def variant_of(module: Any) -> str | None:
  """The variant of whose kind a U-Net is; None if of none."""
  for name, variant in VARIANTS.items():
    if all(getattr(module, k, None) == variant.unet[k] for k in _KIND):
      return name
  return None
