"""Windows fit their clips and have the true frame rate."""

import numpy as np
import pytest

from data_pipelines.loading.buckets import Bucket, Window, make_buckets
from i2vgen_jax.errors import InputError

SIZE = (16, 16)


@pytest.mark.parametrize("available", [8, 9, 15, 30, 100])
@pytest.mark.parametrize("native_fps", [8.0, 24.0, 29.97])
@pytest.mark.parametrize("fps", [4, 8, 16])
def test_windows_lie_inside_the_clip(available, native_fps, fps):
  bucket = Bucket(8, fps, 1.0, SIZE)
  starts = set()
  for seed in range(50):
    rng = np.random.default_rng(seed)
    window = bucket.draw_window(available, native_fps, rng)
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
  assert window.nearest_frames(times, 10.0) == [1, 2, 3]
  assert window.nearest_frames(times + 4.0, 10.0) == [1, 2, 3]


def test_single_frames_have_any_position_and_the_fps_of_the_bucket():
  bucket = Bucket(1, 1, 1.0, SIZE)
  windows = [
    bucket.draw_window(5, 24.0, np.random.default_rng(seed))
    for seed in range(60)
  ]
  assert {window.start for window in windows} == set(range(5))
  assert {window[1:] for window in windows} == {(1, 1, 1)}


def test_frames_after_the_window_do_not_matter():
  """Decoding may stop at the first frame after the window."""
  rng = np.random.default_rng(0)
  for _ in range(200):
    times = np.cumsum(rng.uniform(0.01, 0.3, 40))
    window = Bucket(6, 4.0, 1.0, SIZE).draw_window(30, 8.0, rng)
    last = window.seconds(8.0)[-1]
    stop = int((times - times[0] <= last).sum()) + 1
    expected = window.nearest_frames(times, 8.0)
    assert window.nearest_frames(times[:stop], 8.0) == expected


def index(*clips):
  return np.array([(0, 0, *clip) for clip in clips], np.int64)


def test_shapes_are_compared_as_factors():
  clips = index((9, 20, 10), (9, 10, 20), (9, 13, 10), (9, 15, 10), (7, 20, 10))
  (wide,) = make_buckets([(8, 8.0, 1.0)], (448, 224))
  taken = wide.fits([0.5, 1.0, 2.0], clips)
  # 1.3 is nearer to 1 than to 2, 1.5 nearer to 2: 2 / 1.5 < 1.5 / 1.
  assert taken.tolist() == [True, False, False, True, False]
  assert wide.fits([2.0], clips).tolist() == [True] * 4 + [False]


def test_buckets_have_the_default_size_or_their_own():
  plain, own = make_buckets([(8, 8.0, 1.0), (4, 4, 2, (24, 40))], (32, 16))
  assert plain == Bucket(8, 8.0, 1.0, (32, 16))
  assert own == Bucket(4, 4, 2, (24, 40))
  assert own.ratio == 0.6
  assert str(own) == "4 frames, 4 fps, 24x40"


@pytest.mark.parametrize(
  "buckets",
  [
    (),
    ((8, 8.0, 0.0),),
    ((0, 8.0, 1.0),),
    ((8, 8.0),),
    ((8, 8.0, 1.0, 32),),
    ((8, 8.0, 1.0, (32, 0)),),
    ((8, 8.0, 1.0, (32,)),),
    ((8, 8.0, 1.0, 32, 16),),
    (8, 8.0, 1.0),
  ],
)
def test_invalid_buckets_are_rejected(buckets):
  with pytest.raises(InputError, match="cannot draw from buckets"):
    make_buckets(buckets, (32, 16))
