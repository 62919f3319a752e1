"""Decoding of pictures, and the inputs of the networks computed from them.

Pictures are opened, cropped and normalised only here, on the host and with
Pillow's filters, because the public variants were trained with them.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from i2vgen_jax.errors import InputError
from i2vgen_jax.files import check_file

Picture = str | Path | bytes | Image.Image | np.ndarray

# Pillow considers larger pictures decompression bombs.
MAX_PIXELS = 178_956_970

# Channel statistics of the pictures that CLIP was trained on.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# A crop that shows less than 1/64 of the picture is refused: the rest would be
# enlarged in memory only to be discarded.
_MAX_EXCESS = 64


def load_picture(
  source: Picture, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "h w 3"]:
  """Decodes a picture: upright, opaque, 8-bit RGB.

  The orientation tag of the camera is applied, transparency is composited on
  white, and gray, CMYK, palette, 16-bit and float pictures are converted to
  RGB. Of several pages the first is used.

  Args:
    source: a path, the bytes of a file, a PIL image, or uint8[h w 3].
    name: name of the picture in messages; the path by default.
    max_pixels: larger pictures are refused before they are decoded.

  Raises:
    InputError: the picture is missing, empty, truncated or too large, or is not
      a picture. JPEG has no checksum: altered bytes may remain undetected.
  """
  if isinstance(source, np.ndarray):
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
      raise InputError(
        "a picture given as an array must be uint8[h w 3], got "
        f"{source.dtype}{list(source.shape)}"
      )
    return source
  if isinstance(source, str | Path):
    name = name or str(source)
    check_file(source, f"picture {name}")
    source = Path(source).read_bytes()
  name = name or "given in memory"
  try:
    with warnings.catch_warnings():
      # The limit below replaces Pillow's; warnings about tags do not matter.
      warnings.simplefilter("ignore")
      if isinstance(source, bytes):
        source = Image.open(io.BytesIO(source))
      if source.width * source.height > max_pixels:
        raise InputError(
          f"picture {name} is {source.width}x{source.height}, more than"
          f" {max_pixels} pixels; scale it down first",
          "too-large",
        )
      return _plain_rgb(source)
  except Image.DecompressionBombError as e:
    raise InputError(f"picture {name} is too large: {e}", "too-large") from e
  except Image.UnidentifiedImageError as e:
    raise InputError(
      f"{name} is not a picture that can be read; give JPEG, PNG or WebP"
    ) from e
  except (InputError, MemoryError):
    raise
  except Exception as e:  # Pillow's plugins raise exceptions of any type.
    raise InputError(
      f"picture {name} is damaged ({e}); give an intact file"
    ) from e


def _plain_rgb(picture: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
  picture.load()
  picture = ImageOps.exif_transpose(picture)
  if picture.mode.startswith("I") or picture.mode == "F":
    picture = _eight_bit(picture)
  if picture.has_transparency_data:
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture)
  return np.array(picture.convert("RGB"))


def _eight_bit(picture: Image.Image) -> Image.Image:
  """Gray scaled to 8 bits; Pillow would clip it."""
  values = np.asarray(picture, np.float64)
  if not np.isfinite(values).all():
    raise ValueError("not all pixels are finite numbers")
  limit = 65535 if picture.mode.startswith("I") else max(values.max(), 1e-9)
  return Image.fromarray(
    np.rint(np.clip(values / limit, 0, 1) * 255).astype(np.uint8)
  )


def center_crop_wide(
  image: UInt8[np.ndarray, "h w 3"],
  width: int,
  height: int,
  *,
  black_edge: bool = False,
) -> UInt8[np.ndarray, "{height} {width} 3"]:
  """Scales the picture to just cover width x height, and crops the centre.

  The filter is Pillow's BOX: area average when shrinking, nearest neighbour
  when enlarging. A picture of that scale is not copied: the crop is a view.

  Args:
    image: the decoded picture.
    width: of the crop, in pixels.
    height: of the crop, in pixels.
    black_edge: reproduce the public variants exactly, which round the scaled
      size down. For many source sizes it is then a pixel too small, and the
      first column or row of the crop is black.

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
  if width * height > MAX_PIXELS:
    raise InputError(
      f"cannot crop to {width}x{height}, more than {MAX_PIXELS} pixels; choose"
      " a smaller size"
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
  left, top = (size[0] - width) // 2, (size[1] - height) // 2
  if size == (source_width, source_height) and not black_edge:
    return image[top : top + height, left : left + width]
  scaled = Image.fromarray(image).resize(size, Image.Resampling.BOX)
  return np.array(scaled.crop((left, top, left + width, top + height)))


def clip_view(
  image: UInt8[np.ndarray, "h w 3"],
  video_width: int,
  size: int = 224,
  *,
  black_edge: bool = False,
) -> Float[np.ndarray, "{size} {size} 3"]:
  """The input of CLIP's image tower: square, normalised, float32.

  The picture is cropped to a square as wide as the video, to show the same
  content, and shrunk to `size` with Pillow's 8-bit BILINEAR filter. For a video
  narrower than `size` it is cropped to `size` (public variants (a), (c)).
  """
  side = max(video_width, size)
  crop = center_crop_wide(image, side, side, black_edge=black_edge)
  small = Image.fromarray(crop).resize((size, size), Image.Resampling.BILINEAR)
  unit = np.array(small).astype(np.float32) / 255
  return (unit - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
