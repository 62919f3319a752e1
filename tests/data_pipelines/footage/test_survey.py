"""Samples of datasets are bounded and repeatable, and skip damage."""

import json

import numpy as np
import pytest
from dataset_standin import counting_clip, write_dataset

from data_pipelines.footage import survey
from data_pipelines.footage.quarantine import Drop
from data_pipelines.shards.dataset import Example
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import write_json_lines


@pytest.fixture
def clips(tmp_path):
  """A data_dir of 6 clips of 11 frames, in shards of 4."""
  texts = ["one two three", "four"]
  made = [counting_clip(f"c{n}", (48, 32), 11, texts) for n in range(6)]
  write_dataset(tmp_path, "text_video", made)
  return tmp_path


def test_the_draw_is_bounded_and_depends_on_the_seed(clips, monkeypatch):
  def ids(seed):
    rows = survey.sample(clips, "text_video", 0, seed).rows
    return [row["id"] for row in rows]

  assert len(set(ids(0))) == 6
  monkeypatch.setattr(survey, "RECORDS", 3)
  assert len(set(ids(0))) == 3
  assert ids(0) == ids(0) and len({tuple(ids(n)) for n in range(5)}) > 1
  sample = survey.sample(clips, "text_video", 2, 0)
  assert sample.total == 6 and len(sample.shown) == 2
  assert "video" not in sample.rows[0]


def test_frames_are_spread_from_the_first_to_the_last(clips):
  [(row, frames), *_] = survey.sample(clips, "text_video", 1, 0).shown
  assert row["captions"] == [b"one two three", b"four"]
  shades = frames[:, 16, 8].mean(-1)
  np.testing.assert_allclose(shades, [0, 40, 80, 120, 160, 200], atol=3)


def test_a_picture_has_a_single_frame(procedural_dir):
  [(row, frames)] = survey.sample(procedural_dir, "text_image", 1, 0).shown
  assert frames.shape == (1, 32, 48, 3)
  assert np.isnan(row["motion"])


def test_a_missing_kind(clips):
  assert survey.sample(clips, "text_image", 1, 0) is None


def test_a_damaged_record_is_reported_and_skipped(clips):
  shard = sorted(clips.rglob("*.tfrecord-00000-of-00002"))[0]
  data = bytearray(shard.read_bytes())
  data[40] ^= 1
  shard.write_bytes(data)
  sample = survey.sample(clips, "text_video", 6, 0)
  assert len(sample.rows) == len(sample.shown) == 5
  [line] = sample.damaged
  assert "damaged record" in line and shard.name in line


def test_undecodable_media_is_reported(tmp_path):
  clip = Example(b"no video", ["x"], "odd", 4, 48, 32, 8)
  write_dataset(tmp_path, "text_video", [clip])
  sample = survey.sample(tmp_path, "text_video", 1, 0)
  assert not sample.rows and "odd" in sample.damaged[0]


def test_figures(tmp_path):
  scores = {"motion": 0.25, "sharpness": 90.0}
  made = [
    Example(b"", ["a b c", "d"], "x", 12, 48, 32, 8, scores=scores),
    Example(b"", ["e f"], "y", 48, 32, 64, 24),
  ]
  write_dataset(tmp_path, "text_video", made)
  rows = sorted(
    survey.sample(tmp_path, "text_video", 0, 0).rows, key=lambda r: r["id"]
  )
  found = survey.figures("text_video", rows)
  expected = {
    "duration, seconds": [1.5, 2],
    "frames per second": [8, 24],
    "shorter side, pixels": [32, 32],
    "width to height": [1.5, 0.5],
    "words in a caption": [3, 1, 2],
    "motion, shorter sides per second": [0.25],
    "sharpness, variance": [90],
    "brightness, 0 to 1": [],
    "share of overlaid text": [],
    "share of the main subject": [],
    "aesthetics": [],
  }
  assert {name: v.tolist() for name, v in found.items()} == expected


def test_left_out_by_reason(tmp_path, monkeypatch):
  drops = [
    Drop(1, "a.mp4", 2.5, "no-shot", "black"),
    Drop(2, "b.mp4", None, "missing", "gone"),
    Drop(3, "c.mp4", None, "empty", "nothing"),
  ]
  write_json_lines(tmp_path / "quarantine.jsonl", [d._asdict() for d in drops])
  dropped = {"empty": 1, "missing": 7, "no-shot": 3}
  rows = survey.left_out(tmp_path, dropped)
  assert [(row.reason, row.count) for row in rows] == [
    ("missing", 7),
    ("no-shot", 3),
    ("empty", 1),
  ]
  assert rows[0].meaning == "the file does not exist or cannot be read"
  assert rows[1].example == "row 1 at 2.50 s: black"
  monkeypatch.setattr(survey, "_LINES", 2)
  assert survey.left_out(tmp_path, dropped)[2].example is None


def test_damaged_and_missing_files(tmp_path):
  assert survey.read_summary(tmp_path) == {}
  [row] = survey.left_out(tmp_path, {"empty": 1})
  assert row.example is None
  (tmp_path / "build.json").write_text(json.dumps({"identity": 1}))
  with pytest.raises(
    InputError, match=r"cannot read .*build\.json: 'dropped' is missing"
  ):
    survey.read_summary(tmp_path)
  (tmp_path / "quarantine.jsonl").write_text("{")
  with pytest.raises(InputError, match=r"cannot read .*quarantine\.jsonl"):
    survey.left_out(tmp_path, {"empty": 1})
