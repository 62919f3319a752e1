"""Windows fit their clips and say their true rate."""

import numpy as np
import pytest

from data_pipelines.sampling import Bucket, Window, draw_window, nearest_frames


@pytest.mark.parametrize("available", [8, 9, 15, 30, 100])
@pytest.mark.parametrize("native_fps", [8.0, 24.0, 29.97])
@pytest.mark.parametrize("fps", [4, 8, 16])
def test_windows_lie_inside_the_clip(available, native_fps, fps):
  bucket = Bucket(8, fps, 1.0)
  starts = set()
  for seed in range(50):
    window = draw_window(
      available, native_fps, bucket, np.random.default_rng(seed)
    )
    frames = window.start + window.stride * np.arange(8)
    assert frames[0] >= 0 and frames[-1] < available
    starts.add(window.start)
    assert window.fps == pytest.approx(native_fps / window.stride)
    # Nearest to the rate asked for, or the longest stride that fits.
    if abs(window.stride - native_fps / fps) > 0.5 and window.stride > 1:
      assert 7 * (window.stride + 1) + 1 > available
  slack = available - 7 * window.stride - 1
  assert (len(starts) > 1) == (slack > 0)
  assert max(starts) <= slack


def test_frames_are_chosen_by_time():
  times = np.array([0.0, 0.1, 0.2, 0.5, 0.6, 0.7, 0.8])
  window = Window(start=1, stride=2, num_frames=3, fps=5.0)
  # Wanted: 0.1, 0.3 and 0.5 seconds into the clip at 10 frames a second.
  assert nearest_frames(times, window, 10.0) == [1, 2, 3]
  assert nearest_frames(times + 4.0, window, 10.0) == [1, 2, 3]


def test_single_frames_come_from_anywhere_and_keep_their_label():
  bucket = Bucket(1, 1, 1.0)
  windows = [
    draw_window(5, 24.0, bucket, np.random.default_rng(seed))
    for seed in range(60)
  ]
  assert {window.start for window in windows} == set(range(5))
  assert {window[1:] for window in windows} == {(1, 1, 1)}
