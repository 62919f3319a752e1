"""Outlines and patterns of the procedural world as functions of x and y.

Outlines are signed distances, patterns are tones in [0, 1]. Both have edges
about one pixel wide at any resolution.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Field = Float[np.ndarray, "..."]


def edge(distance: Field, pixel: float) -> Field:
  """Coverage of a pixel by the half-plane on the negative side."""
  return np.clip(0.5 - distance / pixel, 0, 1)


def _box(x: Field, y: Field, x0, x1, y0, y1) -> Field:
  dx = np.abs(x - (x0 + x1) / 2) - (x1 - x0) / 2
  dy = np.abs(y - (y0 + y1) / 2) - (y1 - y0) / 2
  return np.maximum(dx, dy)


def _wedge(x: Field, y: Field, back, tip, half_width) -> Field:
  """Isosceles triangle from a base at x = back to a point at x = tip."""
  length = tip - back
  slant = np.hypot(length, half_width)
  side = ((x - tip) * half_width + np.abs(y) * length) / slant
  return np.maximum(side, back - x)


def bar(x: Field, y: Field) -> Field:
  return _box(x, y, -0.93, 0.93, -0.34, 0.34)


def triangle(x: Field, y: Field) -> Field:
  return _wedge(x, y, -0.5, 1.0, 0.7)


def arrow(x: Field, y: Field) -> Field:
  shaft = _box(x, y, -0.95, 0.05, -0.28, 0.28)
  return np.minimum(_wedge(x, y, 0.0, 1.0, 0.75), shaft)


def dome(x: Field, y: Field) -> Field:
  return np.maximum(np.hypot(x + 0.39, y) - 0.92, -0.39 - x)


def hook(x: Field, y: Field) -> Field:
  stem = _box(x, y, -0.49, 0.11, -0.87, 0.61)
  return np.minimum(stem, _box(x, y, -0.49, 0.76, 0.01, 0.61))


def tee(x: Field, y: Field) -> Field:
  top = _box(x, y, -0.75, 0.75, -0.6, -0.05)
  return np.minimum(top, _box(x, y, -0.3, 0.3, -0.6, 0.95))


def disc(x: Field, y: Field) -> Field:
  return np.hypot(x, y) - 0.9


def ring(x: Field, y: Field) -> Field:
  return np.abs(np.hypot(x, y) - 0.74) - 0.22


# Signed distance to each outline, inside a circle of radius 1 around its
# centre of mass, so that a rotation does not move the centre of mass.
SHAPES: dict[str, Callable[[Field, Field], Field]] = {
  outline.__name__: outline
  for outline in (bar, triangle, arrow, dome, hook, tee, disc, ring)
}


def _bands(across: Field, wavelength: float, pixel: float) -> Field:
  """Bands that cover half of each wavelength, with edges one pixel wide."""
  away = np.abs(across / wavelength % 1 - 0.5) - 0.25
  return edge(away * wavelength, pixel)


def stripes(x: Field, y: Field, wavelength: float, pixel: float) -> Field:
  return _bands(x, wavelength, pixel)


def checks(x: Field, y: Field, wavelength: float, pixel: float) -> Field:
  across, down = (_bands(at, wavelength, pixel) for at in (x, y))
  return across + down - 2 * across * down


def dots(x: Field, y: Field, wavelength: float, pixel: float) -> Field:
  x, y = (at - wavelength * np.round(at / wavelength) for at in (x, y))
  return edge(np.hypot(x, y) - 0.3 * wavelength, pixel)


def waves(x: Field, y: Field, wavelength: float, pixel: float) -> Field:
  bent = 0.06 * np.sin(2 * np.pi * y / 0.5)
  return _bands(x + bent, wavelength, 1.2 * pixel)


def rings(x: Field, y: Field, wavelength: float, pixel: float) -> Field:
  return _bands(np.hypot(x, y), wavelength, pixel)


def clouds(x: Field, y: Field, wavelength: float, pixel: float) -> Field:
  total = np.zeros_like(x)
  for k in range(5):
    turn = 2.4 * k  # near the golden angle, so that directions never coincide
    along = x * np.cos(turn) + y * np.sin(turn)
    total += np.cos(2 * np.pi * along / (wavelength * (1 + 0.2 * k)) + k)
  return 0.5 + 0.5 * np.tanh(0.6 * total)


def gradient(x: Field, y: Field, wavelength: float, pixel: float) -> Field:
  return 0.5 + 0.5 * np.sin(0.5 * np.pi * x / wavelength)


# Tone at (x, y), for a wavelength and the size of a pixel.
GROUNDS: dict[str, Callable[[Field, Field, float, float], Field]] = {
  pattern.__name__: pattern
  for pattern in (stripes, checks, dots, waves, rings, clouds, gradient)
}
