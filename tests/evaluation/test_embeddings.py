"""Similarities of vectors whose angles are known."""

import itertools

import numpy as np
import pytest
from scipy.spatial.distance import cosine

from i2vgen_jax.errors import InputError
from i2vgen_jax.evaluation.embeddings import frame_consistency, similarity


def turned(degrees):
  """Vectors in a plane at these angles, of different lengths."""
  angles = np.deg2rad(degrees)
  lengths = np.arange(1, len(angles) + 1)[:, None]
  return lengths * np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def test_known_angles():
  frames = turned([0.0, 60, 120, 90])
  assert similarity(frames, np.array([3.0, 0])) == pytest.approx(0.25)
  expected = (0.5 + 0.5 + np.sqrt(3) / 2) / 3
  assert frame_consistency(frames) == pytest.approx(expected)
  assert frame_consistency(turned([10.0, 10])) == pytest.approx(1)


def test_values_are_those_of_scipy():
  rng = np.random.default_rng(0)
  frames, other = rng.normal(size=(5, 16)), rng.normal(size=16)
  expected = np.mean([1 - cosine(frame, other) for frame in frames])
  assert similarity(frames, other) == pytest.approx(expected)
  pairs = itertools.pairwise(frames)
  expected = np.mean([1 - cosine(*pair) for pair in pairs])
  assert frame_consistency(frames) == pytest.approx(expected)


def test_one_frame_has_no_neighbour():
  with pytest.raises(InputError, match="1 frames have no neighbours"):
    frame_consistency(turned([0.0]))
