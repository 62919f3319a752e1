"""Fingerprints of copies are close, those of other shots are not."""

import itertools

import cv2
import numpy as np
import pytest
from skimage import data

from data_pipelines.footage import fingerprint
from data_pipelines.footage.fingerprint import SAME
from data_pipelines.media import video
from i2vgen_jax.errors import InputError

SHOTS = [(2, 28), (32, 74), (78, 135), (139, 185), (189, 240)]


def distance(first, second):
  return (first ^ second).bit_count()


@pytest.fixture(scope="module")
def clips(footage):
  """Eight frames of each shot of bikes.mp4, and of one of Big Buck Bunny."""
  bikes, _ = video.decode_mp4(footage["bikes"])
  stream = video.stream(footage["bigbuckbunny"], short_side=360)
  bunny = np.stack([frame for _, frame in stream])
  stretches = [bikes[start:stop] for start, stop in SHOTS] + [bunny]
  return [
    stretch[np.linspace(0, len(stretch) - 1, 8).round().astype(int)]
    for stretch in stretches
  ]


def encoded(clip, scale, crf):
  size = [round(side * scale / 2) * 2 for side in clip.shape[2:0:-1]]
  resized = np.stack([cv2.resize(frame, size) for frame in clip])
  return video.decode_mp4(video.encode_mp4(resized, 8, crf=crf))[0]


@pytest.mark.parametrize(
  "copy",
  [
    lambda clip: encoded(clip, 1, 40),
    lambda clip: encoded(clip, 0.5, 35),
    lambda clip: encoded(clip, 1.4, 23),
    lambda clip: np.minimum(clip.astype(int) + 20, 255).astype(np.uint8),
    lambda clip: (clip * 0.85).astype(np.uint8),
  ],
  ids=["crf 40", "half size", "larger", "brighter", "darker"],
)
def test_copies_are_close(clips, copy):
  for clip in clips:
    original = fingerprint.fingerprint(clip)
    changed = fingerprint.fingerprint(copy(clip))
    assert distance(original, changed) <= SAME


def test_other_shots_are_distant(clips):
  prints = [fingerprint.fingerprint(clip) for clip in clips]
  distances = [distance(a, b) for a, b in itertools.combinations(prints, 2)]
  assert min(distances) > 3 * SAME


def test_motion_distinguishes_clips_of_one_place(clips):
  """One street with an object passing to either side, and without it."""
  ground = np.repeat(clips[2][-1:], 8, 0)
  left, right = ground.copy(), ground.copy()
  for number in range(8):
    left[number, 20 * number : 20 * number + 80, 40:160] = 250
    right[number, 200 - 20 * number : 260 - 20 * number, 440:560] = 250
  prints = [fingerprint.fingerprint(clip) for clip in (left, right, ground)]
  for a, b in itertools.combinations(prints, 2):
    assert distance(a, b) > SAME


def test_fingerprints_are_stable_across_builds(clips):
  prints = [fingerprint.fingerprint(clip) for clip in clips]
  assert prints == [fingerprint.fingerprint(clip) for clip in clips]
  photo = np.stack([data.chelsea(), data.chelsea()[:, ::-1]])
  stored = 0x281100289420515A
  # Rounding may differ between machines.
  assert distance(fingerprint.fingerprint(photo), stored) <= 2


def test_a_clip_without_frames_is_refused():
  with pytest.raises(InputError, match="0 frames"):
    fingerprint.fingerprint(np.zeros((0, 8, 8, 3), np.uint8))
