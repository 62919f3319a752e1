"""The only opener of pictures: any usual file to plain 8-bit RGB and back."""

import io
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from data_pipelines.files import check_file
from data_pipelines.quarantine import Unusable
from i2vgen_jax.errors import InputError

# Decoded size above which a picture is taken for a decompression bomb.
MAX_PIXELS = 200_000_000
_SUFFIXES = (
  ".jpg",
  ".jpeg",
  ".png",
  ".webp",
  ".bmp",
  ".tif",
  ".tiff",
  ".avif",
  ".ppm",
)


def is_picture(path: str | Path) -> bool:
  """Whether a name promises a still picture; GIF counts as video."""
  return Path(path).suffix.lower() in _SUFFIXES


def load_image(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
  """Decodes a picture file: upright, opaque, 8-bit RGB.

  The camera's orientation tag is applied, transparency lies on white, gray,
  CMYK, palette and 16-bit pictures become RGB; of several pages the first
  counts.

  Raises:
    InputError: missing, empty, truncated, too large or no picture at all.
      JPEG has no checksum: bytes altered in its middle may pass.
  """
  check_file(path, f"picture {path}")
  return decode_image(Path(path).read_bytes(), str(path))


def decode_image(data: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
  """As `load_image`, from bytes; `name` is for messages only."""
  try:
    with warnings.catch_warnings():
      # Our own limit below is the one that counts, and tags hardly do.
      warnings.simplefilter("ignore")
      picture = Image.open(io.BytesIO(data))
      if picture.width * picture.height > MAX_PIXELS:
        raise Unusable(
          "too-large",
          f"picture {name} is {picture.width}x{picture.height}, more than"
          f" {MAX_PIXELS} pixels; scale it down first",
        )
      return _plain_rgb(picture)
  except Image.DecompressionBombError as error:
    raise Unusable(
      "too-large", f"picture {name} is too large: {error}"
    ) from error
  except Image.UnidentifiedImageError as error:
    raise Unusable(
      "damaged",
      f"{name} is not a picture that can be read; give JPEG, PNG or WebP",
    ) from error
  except (InputError, MemoryError):
    raise
  except Exception as error:  # Pillow's plugins raise whatever there is.
    raise Unusable(
      "damaged", f"picture {name} is damaged ({error}); give an intact file"
    ) from error


def shrink(
  image: UInt8[np.ndarray, "h w 3"], short_side: int
) -> UInt8[np.ndarray, "h2 w2 3"]:
  """Scales down, by area, until the shorter side is at most `short_side`."""
  scale = short_side / min(image.shape[:2])
  if scale >= 1:
    return image
  size = round(image.shape[1] * scale), round(image.shape[0] * scale)
  return np.array(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def encode_jpeg(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
  """JPEG at quality 95 with full-resolution colour."""
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling=0)
  return buffer.getvalue()


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
  """Gray with more than 8 bits; Pillow would clip instead of scale it."""
  values = np.asarray(picture, np.float64)
  if not np.isfinite(values).all():
    raise ValueError("brightness that is no number")
  limit = 65535 if picture.mode.startswith("I") else max(values.max(), 1e-9)
  return Image.fromarray(
    np.rint(np.clip(values / limit, 0, 1) * 255).astype(np.uint8)
  )
