"""Still pictures: their file names, scaling and encoding."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_SUFFIXES = (
  ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".ppm",
)  # fmt: skip


def is_picture(path: str | Path) -> bool:
  """Whether a file name is that of a still picture; GIF counts as video."""
  return Path(path).suffix.lower() in _SUFFIXES


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
