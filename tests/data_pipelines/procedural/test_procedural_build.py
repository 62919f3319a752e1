"""Procedural builds are complete, repeatable and resumable."""

import hashlib

import numpy as np
import pytest

from data_pipelines.media import video
from data_pipelines.procedural import camera, world
from data_pipelines.procedural.build import build_procedural, numbered_clip
from data_pipelines.procedural.photographs import Photographs
from data_pipelines.shards.dataset import Dataset, dataset_dir
from i2vgen_jax import preprocessing
from i2vgen_jax.errors import InputError


def digests(folder):
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).digest()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


def test_records_match_their_captions(procedural_dir):
  clips = Dataset([dataset_dir(procedural_dir, "text_video")])
  stills = Dataset([dataset_dir(procedural_dir, "text_image")])
  for number in (0, 11, 23):
    scene = world.numbered_scene(0, number, "train")
    truth = world.render(scene, (48, 32), 8).astype(int)
    record = clips[number]
    assert record["captions"][0].decode() == world.caption(scene)
    frames, _ = video.decode_mp4(record["video"])
    assert np.abs(frames - truth).mean() < 2
    record = stills[number]
    assert record["captions"][0].decode() == world.still_caption(scene)
    still = preprocessing.load_picture(record["image"], "x")
    assert np.abs(still - truth).mean((1, 2, 3)).min() < 3


def test_two_builds_give_the_same_bytes(tmp_path):
  for name in ("a", "b"):
    build_procedural(
      tmp_path / name, 5, "test", size=(32, 32), seed=3, shard_size=2
    )
  first = digests(tmp_path / "a")
  assert first == digests(tmp_path / "b")
  assert len(first) == 2 * (3 + 3 + 2) + 2
  build_procedural(tmp_path / "c", 5, "test", size=(32, 32), seed=4)
  assert not set(first.values()) & {
    digest
    for name, digest in digests(tmp_path / "c").items()
    if "tfrecord" in name
  }


def test_an_interrupted_build_is_resumed(tmp_path):
  def interrupt(what, done, total):
    if done == 4:
      raise KeyboardInterrupt

  arguments = {"size": (32, 32), "shard_size": 2}
  with pytest.raises(KeyboardInterrupt):
    build_procedural(
      tmp_path / "a", 5, "train", **arguments, progress=interrupt
    )
  build_procedural(tmp_path / "a", 5, "train", **arguments)
  build_procedural(tmp_path / "b", 5, "train", **arguments)
  assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_a_finished_build_does_nothing(tmp_path):
  first = build_procedural(tmp_path / "a", 2, "train", size=(32, 32))
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
  again = build_procedural(tmp_path / "a", 2, "train", size=(32, 32))
  assert again == first == (2, 2, {})
  assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
  with pytest.raises(InputError, match="other settings"):
    build_procedural(tmp_path / "a", 3, "train", size=(32, 32))


def test_an_existing_output_is_not_changed(tmp_path):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "mine.txt").touch()
  with pytest.raises(InputError, match="out exists"):
    build_procedural(tmp_path / "out", 1, "train")
  (tmp_path / "out" / "mine.txt").rename(tmp_path / "out" / "build.json")
  with pytest.raises(InputError, match=r"cannot read .*build\.json"):
    build_procedural(tmp_path / "out", 1, "train")
  (tmp_path / "out" / "build.json").write_text('{"mine": 1}')
  with pytest.raises(InputError, match="another list"):
    build_procedural(tmp_path / "out", 1, "train")
  (tmp_path / "out" / "build.json").write_text("[]")
  with pytest.raises(InputError, match="not a JSON object"):
    build_procedural(tmp_path / "out", 1, "train")
  with pytest.raises(InputError, match="exists already"):
    build_procedural(tmp_path / "out" / "build.json", 1, "train")
  with pytest.raises(InputError, match="at least 1"):
    build_procedural(tmp_path / "new", 0, "train")
  assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_camera_build_shows_photographs_of_its_split(photographs, tmp_path):
  pool = Photographs(photographs, "test")
  arguments = {"shows": "camera", "photographs": photographs, "size": (48, 32)}
  build_procedural(tmp_path / "a", 3, "test", **arguments)
  clips = Dataset([dataset_dir(tmp_path / "a", "text_video")])
  for number in range(3):
    clip = numbered_clip("camera", pool, 0, number, "test", size=(48, 32))
    assert clips[number]["captions"][0].decode() == clip.caption
    frames, _ = video.decode_mp4(clips[number]["video"])
    assert np.abs(frames - clip.frames.astype(int)).mean() < 6
    assert clip.motion in camera.MOVES


def test_half_of_the_objects_move_over_photographs(photographs):
  pool = Photographs(photographs, "train")
  clips = [
    numbered_clip("objects", pool, 0, number, "train", size=(48, 32))
    for number in range(6)
  ]
  over = [clip.caption.endswith("over a photograph") for clip in clips]
  assert over == [False, True] * 3
  plain = numbered_clip("objects", None, 0, 0, "train", size=(48, 32))
  np.testing.assert_array_equal(plain.frames, clips[0].frames)


def test_a_photograph_is_in_one_split(photographs):
  sides = [Photographs(photographs, split).paths for split in ("train", "test")]
  assert all(sides)
  assert not set(sides[0]) & set(sides[1])


def test_a_camera_needs_photographs(tmp_path):
  with pytest.raises(InputError, match="needs photographs"):
    build_procedural(tmp_path / "out", 1, "train", shows="camera")
  assert not (tmp_path / "out").exists()
  (tmp_path / "empty").mkdir()
  with pytest.raises(InputError, match="no photographs for the split train"):
    build_procedural(
      tmp_path / "out", 1, "train", photographs=tmp_path / "empty"
    )
