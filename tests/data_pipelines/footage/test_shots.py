"""Shots against manually marked cuts, and against false cuts."""

import itertools
import json
import weakref
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.footage import shots
from data_pipelines.media import video
from i2vgen_jax.errors import InputError

TRUTH = Path(__file__).parents[1] / "truth"
TOLERANCE = 2


def events(name):
  """Ranges of frames, first to last, in which one shot replaces another."""
  truth = json.loads((TRUTH / f"{name}.json").read_text())
  cuts = [(cut - 1, cut) for cut in truth["cuts"]]
  return cuts + [(slow["first"], slow["last"]) for slow in truth["gradual"]]


def compare(found, name):
  """Counts events, events that no shot spans, gaps, and gaps with an event.

  The part after the last shot contains events too, but claims no cut.
  """
  gaps = [
    (before.stop - TOLERANCE, after.start - 1 + TOLERANCE)
    for before, after in itertools.pairwise(found)
  ]
  true = events(name)
  spanned = [
    event
    for event in true
    if any(shot.start <= sum(event) / 2 <= shot.stop - 1 for shot in found)
  ]
  right = [
    gap for gap in gaps if any(a <= gap[1] and gap[0] <= b for a, b in true)
  ]
  return np.array([len(true), len(true) - len(spanned), len(gaps), len(right)])


def read(path, short_side=180):
  return (frame for _, frame in video.stream(path, short_side=short_side))


@pytest.fixture(scope="module")
def bikes(footage):
  return np.stack(list(read(footage["bikes"])))


def test_exactly_the_cuts_of_bikes_are_found(bikes):
  found = shots.find_shots(iter(bikes), 25)
  num_events, not_spanned, gaps, right = compare(found, "bikes")
  assert num_events == not_spanned == 5
  # The last shot, 8 frames, is too short to be returned.
  assert gaps == right == 4
  assert [shot.start for shot in found] == [2, 32, 78, 139, 189]
  assert [shot.stop for shot in found] == [28, 74, 135, 185, 240]


def test_cuts_do_not_depend_on_the_size(footage, bikes):
  expected = shots.find_shots(bikes, 25)
  assert shots.find_shots(read(footage["bikes"], 96), 25) == expected
  assert shots.find_shots(read(footage["bikes"], None), 25) == expected


@pytest.mark.slow
def test_cuts_of_films_are_found(film):
  counts = {}
  for name, num_frames in (("trailer_bbb", 1323), ("bbb", 14315)):
    found = shots.find_shots(read(film(name)), 24)
    counts[name] = compare(found, name)
    kept = sum(shot.stop - shot.start for shot in found)
    # A third of the trailer is fades and a title on black.
    assert kept > (0.65 if name == "trailer_bbb" else 0.93) * num_frames
  for num_events, not_spanned, gaps, right in (
    *counts.values(),
    sum(counts.values()),
  ):
    assert not_spanned >= 0.95 * num_events
    assert right >= 0.95 * gaps


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("at", [110, 160, 215])
def test_a_flash_is_not_a_cut(bikes, at, length):
  flashed = bikes.copy()
  flashed[at : at + length] = 255
  assert shots.find_shots(flashed, 25) == shots.find_shots(bikes, 25)


@pytest.mark.parametrize("length", [6, 12, 24, 40])
def test_a_dissolve_separates_shots(bikes, length):
  """A dissolve from the fence to the bicycle at the wall."""
  first, second = bikes[139:187], bikes[190:240]
  weight = (np.arange(length) + 1)[:, None, None, None] / (length + 1)
  mixed = first[-length:] * (1 - weight) + second[:length] * weight
  film = np.concatenate(
    [first[:-length], mixed.astype(np.uint8), second[length:]]
  )
  start, stop = 48 - length, 48
  found = shots.find_shots(film, 25)
  inside = [shot for shot in found if shot.start < stop and start < shot.stop]
  blended = sum(min(s.stop, stop) - max(s.start, start) for s in inside)
  assert not any(shot.start <= start and stop <= shot.stop for shot in found)
  # The faint first and last frames of a slow dissolve may remain.
  assert blended <= length / 5


def test_fades_and_black_are_dropped(bikes):
  ramp = np.linspace(1, 0, 20)[:, None, None, None]
  black = np.zeros((10, *bikes.shape[1:]), np.uint8)
  out = (bikes[110:130] * ramp).astype(np.uint8)
  into = (bikes[190:210] * ramp[::-1]).astype(np.uint8)
  film = np.concatenate([bikes[78:110], out, black, into, bikes[210:240]])
  first, second = shots.find_shots(film, 25)
  # The fade is from frame 32 to 82.
  assert (first.start, second.stop) == (2, 110)
  assert 28 <= first.stop <= 34
  assert 80 <= second.start <= 90


def test_a_black_video_has_no_shots():
  assert shots.find_shots(np.zeros((60, 18, 32, 3), np.uint8), 25) == []
  assert shots.find_shots([], 25) == []


def test_shots_shorter_than_half_a_second_are_dropped(bikes):
  assert shots.find_shots(bikes[30:44], 25) == []
  assert shots.find_shots(bikes[30:48], 25) == [shots.Shot(2, 16)]


def test_frames_are_not_kept(bikes):
  made, alive = [], []

  def frames():
    for number in range(120):
      frame = np.roll(bikes[78], number, 1)
      made.append(weakref.ref(frame))
      alive.append(sum(each() is not None for each in made))
      yield frame

  assert len(shots.find_shots(frames(), 25)) == 1
  assert max(alive) < 20


def test_fps_must_be_positive(bikes):
  with pytest.raises(InputError, match="fps must be positive, got 0"):
    shots.find_shots(bikes, 0)
