"""From a decoded picture to the two views that the networks take.

The only home of the crop rule, the value ranges and CLIP's mean and std.
Everything happens on the host with Pillow's filters, because the public
variants were trained on them.
"""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from i2vgen_jax.errors import InputError

# Channel statistics of the pictures that CLIP was trained on.
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

# A crop that shows less than 1/64 of the picture is refused: the rest would
# have to be enlarged in memory only to be thrown away.
_MAX_EXCESS = 64


def center_crop_wide(
  image: UInt8[np.ndarray, "h w 3"],
  width: int,
  height: int,
  *,
  black_edge: bool = False,
) -> UInt8[np.ndarray, "{height} {width} 3"]:
  """Scales the picture until it just covers width x height, cuts the centre.

  The filter is Pillow's BOX: the area average when shrinking, the nearest
  pixel when enlarging.

  Args:
    image: the decoded picture.
    width: of the crop, in pixels.
    height: of the crop, in pixels.
    black_edge: repeat the public variants bit for bit. They floor the scaled
      size, lose a pixel for many source sizes and then show a black first
      column or row. Off: the scaled size is exact and nothing is black.

  Raises:
    InputError: the picture or the crop is empty, or the picture is too
      elongated for the crop.
  """
  source_height, source_width = image.shape[:2]
  if not image.size or width < 1 or height < 1:
    raise InputError(
      f"cannot crop a {source_width}x{source_height} picture to"
      f" {width}x{height}; both need at least one pixel per side"
    )
  scale = min(source_width / width, source_height / height)
  if source_width * source_height > _MAX_EXCESS * scale**2 * width * height:
    raise InputError(
      f"a {source_width}x{source_height} picture is too elongated for a"
      f" {width}x{height} crop; cut it to a similar shape first"
    )
  if black_edge:
    size = round(source_width // scale), round(source_height // scale)
  else:
    size = round(source_width / scale), round(source_height / scale)
  scaled = Image.fromarray(image).resize(size, Image.Resampling.BOX)
  left, top = (size[0] - width) // 2, (size[1] - height) // 2
  return np.array(scaled.crop((left, top, left + width, top + height)))


def vae_view(
  image: UInt8[np.ndarray, "h w 3"],
  width: int,
  height: int,
  *,
  black_edge: bool = False,
) -> Float[np.ndarray, "{height} {width} 3"]:
  """The picture as the VAE takes it: cropped, float32 in [-1, 1]."""
  crop = center_crop_wide(image, width, height, black_edge=black_edge)
  return (_unit(crop) - 0.5) / 0.5


def clip_view(
  image: UInt8[np.ndarray, "h w 3"],
  video_width: int,
  size: int = 224,
  *,
  black_edge: bool = False,
) -> Float[np.ndarray, "{size} {size} 3"]:
  """The picture as the CLIP image tower takes it: square, normalised float32.

  The square has the width of the video, so that it shows what the frames
  show, and is then shrunk to `size` with Pillow's 8-bit BILINEAR; a narrower
  video is cropped to `size` directly (public variants (a), (c)).
  """
  side = max(video_width, size)
  crop = center_crop_wide(image, side, side, black_edge=black_edge)
  small = Image.fromarray(crop).resize((size, size), Image.Resampling.BILINEAR)
  return (_unit(np.array(small)) - CLIP_MEAN) / CLIP_STD


def views(
  image: UInt8[np.ndarray, "h w 3"],
  width: int,
  height: int,
  clip_size: int = 224,
  *,
  black_edge: bool = False,
) -> tuple[
  Float[np.ndarray, "{height} {width} 3"],
  Float[np.ndarray, "{clip_size} {clip_size} 3"],
]:
  """Both views of one picture: `vae_view` and `clip_view`."""
  return (
    vae_view(image, width, height, black_edge=black_edge),
    clip_view(image, width, clip_size, black_edge=black_edge),
  )


def _unit(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
  return image.astype(np.float32) / 255
