"""Duplicates, limits, order and memory of the selection."""

import json
import tracemalloc

import numpy as np
import pytest

from data_pipelines.footage import fingerprint, selection
from data_pipelines.footage.clips import Candidate
from data_pipelines.footage.manifest import ManifestRow
from data_pipelines.footage.quarantine import read_drops
from data_pipelines.footage.selection import first_alike, select
from data_pipelines.footage.settings import Limits
from i2vgen_jax.files import write_json_lines


def candidate(row, look=None, kind="text_video", **scores):
  rng = np.random.default_rng(row)
  look = int(rng.integers(2**63)) if look is None else look
  source = ManifestRow(row, f"{row}.mp4", f"/x/{row}.mp4", ("a",))
  return Candidate(source, kind, 0.5, 1.5, 12, look, scores)


def selected(folder, candidates, limits=None, seed=0, parts=2):
  """The selected rows of each kind, in order, and the drops."""
  files = [folder / f"{n}.jsonl" for n in range(parts)]
  for path, some in zip(
    files, np.array_split(np.arange(len(candidates)), parts), strict=True
  ):
    write_json_lines(path, [candidates[n] for n in some])
  left_out = folder / "left-out.jsonl"
  found = select(files, limits or Limits(), seed, left_out)
  rows = {
    kind: [
      selection.read_candidate(files[f], at).source.row
      for f, at in places.tolist()
    ]
    for kind, places in found.items()
  }
  return rows, list(read_drops(left_out))


def flipped(look, count, rng):
  for bit in rng.choice(63, count, replace=False).tolist():
    look ^= 1 << bit
  return look


def test_only_near_copies_are_found():
  rng = np.random.default_rng(0)
  looks = rng.integers(2**63, size=3000).tolist()
  copies = {}
  for number in rng.choice(3000, 300, replace=False).tolist():
    copies[len(looks)] = number
    count = int(rng.integers(fingerprint.SAME + 1))
    looks.append(flipped(looks[number], count, rng))
  rows = np.arange(len(looks), dtype=np.uint64)
  first = first_alike(np.array(looks, np.uint64), rows)
  expected = [copies.get(n, n) for n in range(len(looks))]
  assert first.tolist() == expected


def test_fingerprints_that_differ_in_more_bits_are_kept():
  rng = np.random.default_rng(1)
  look = int(rng.integers(2**63))
  other = flipped(look, fingerprint.SAME + 1, rng)
  both = np.array([look, other], np.uint64)
  assert first_alike(both, np.arange(2, dtype=np.uint64)).tolist() == [0, 1]


def test_clips_of_one_row_may_look_alike(tmp_path):
  piece = candidate(1, 0)
  some = [piece, piece._replace(start=4.0), candidate(2, 0)]
  rows, drops = selected(tmp_path, some)
  assert rows["text_video"] == [1, 1]
  assert [drop.row for drop in drops] == [2]


def test_no_candidates(tmp_path):
  none = np.zeros(0, np.uint64)
  assert first_alike(none, none).tolist() == []
  assert selected(tmp_path, []) == ({"text_video": [], "text_image": []}, [])


def test_the_first_of_two_copies_is_kept(tmp_path):
  some = [candidate(1, 0), candidate(2), candidate(3, 1)]
  rows, drops = selected(tmp_path, some)
  assert sorted(rows["text_video"]) == [1, 2]
  [drop] = drops
  assert (drop.row, drop.reason, drop.start) == (3, "duplicate", 0.5)
  assert "row 1, 1.mp4 at 0.50 s" in drop.detail


def test_a_clip_is_not_a_copy_of_a_picture(tmp_path):
  some = [candidate(1, 0), candidate(2, 0, "text_image")]
  assert selected(tmp_path, some) == (
    {"text_video": [1], "text_image": [2]},
    [],
  )


def test_the_order_depends_on_the_seed_only(tmp_path):
  some = [candidate(row) for row in range(40)]
  rows, _ = selected(tmp_path, some)
  assert sorted(rows["text_video"]) == list(range(40)) != rows["text_video"]
  assert selected(tmp_path, some[::-1], parts=7)[0] == rows
  assert selected(tmp_path, some, seed=1)[0] != rows


@pytest.mark.parametrize(
  ("limits", "reason", "scores"),
  [
    (Limits(min_motion=0.1), "min_motion", {"motion": 0.05}),
    (Limits(max_motion=1), "max_motion", {"motion": 1.5}),
    (Limits(min_sharpness=50), "min_sharpness", {"sharpness": 49.9}),
    (Limits(max_text_share=0.1), "max_text_share", {"text_share": 0.2}),
    (Limits(min_subject_share=0.1), "min_subject_share", {"subject_share": 0}),
    (Limits(min_aesthetics=5), "min_aesthetics", {"aesthetics": 4}),
    (Limits(min_brightness=0.1), "min_brightness", {"brightness": 0.01}),
  ],
)
def test_limits(tmp_path, limits, reason, scores):
  unmeasured = dict.fromkeys(scores, float("nan"))
  some = [candidate(1, **scores), candidate(2), candidate(3, **unmeasured)]
  rows, drops = selected(tmp_path, some, limits)
  assert sorted(rows["text_video"]) == [2, 3]
  assert [drop.reason for drop in drops] == [reason]
  assert json.dumps(drops[0]._asdict())


def test_each_copy_names_the_first_one_of_another_row():
  rng = np.random.default_rng(3)
  kinds = rng.integers(2**63, size=5)
  which = rng.integers(5, size=300)
  looks = np.array(
    [flipped(int(kinds[n]), rng.integers(2), rng) for n in which]
  )
  rows = rng.integers(4, size=300).astype(np.uint64)
  found = first_alike(looks.astype(np.uint64), rows)
  for number in range(300):
    alike = [
      other
      for other in range(number)
      if (int(looks[other]) ^ int(looks[number])).bit_count()
      <= fingerprint.SAME
      and rows[other] != rows[number]
    ]
    assert found[number] == min(alike, default=number)


def test_a_file_listed_many_times_is_not_quadratic():
  looks = np.zeros(20_000, np.uint64)
  first = first_alike(looks, np.arange(20_000, dtype=np.uint64))
  assert (first == 0).all()


def test_memory_per_candidate_is_small(tmp_path):
  def peak(count):
    looks = np.random.default_rng(0).integers(2**63, size=count).tolist()
    path = tmp_path / "candidates.jsonl"
    write_json_lines(path, (candidate(n, looks[n]) for n in range(count)))
    del looks
    tracemalloc.start()
    select([path], Limits(), 0, tmp_path / "left-out.jsonl")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most

  peak(1000)
  assert (peak(6000) - peak(3000)) / 3000 < 150
