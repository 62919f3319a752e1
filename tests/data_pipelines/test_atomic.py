"""What is written by several, or not to its end, is never seen in part."""

import pytest

from data_pipelines.atomic import appearing, appearing_folder, sweep


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_two_writers_do_not_write_into_each_other(tmp_path):
  path = tmp_path / "a.json"
  with appearing(path) as first:
    first.write_text("whole")
    with appearing(path) as second:
      assert first != second
      second.write_text("whole")
    assert path.read_text() == "whole"
  assert names(tmp_path) == ["a.json"]


def test_what_fails_leaves_nothing(tmp_path):
  with pytest.raises(KeyboardInterrupt), appearing(tmp_path / "a") as path:
    path.write_text("ha")
    raise KeyboardInterrupt
  with (
    pytest.raises(KeyboardInterrupt),
    appearing_folder(tmp_path / "b") as path,
  ):
    (path / "c").write_text("ha")
    raise KeyboardInterrupt
  assert names(tmp_path) == []


def test_of_two_folders_the_first_stays_as_it_is(tmp_path):
  path = tmp_path / "result"
  with appearing_folder(path) as slow:
    (slow / "said").write_text("slow")
    (slow / "other").touch()
    with appearing_folder(path) as fast:
      (fast / "said").write_text("fast")
  assert names(tmp_path) == ["result"] and names(path) == ["said"]
  assert (path / "said").read_text() == "fast"


def test_a_folder_that_cannot_appear_is_told(tmp_path):
  (tmp_path / "gone").mkdir()
  with (
    pytest.raises(OSError, match="gone"),
    appearing_folder(tmp_path / "gone" / "result") as path,
  ):
    path.rename(tmp_path / "elsewhere")


def test_what_the_killed_left_is_swept_away(tmp_path):
  (tmp_path / "a.tfrecord.0123456789ab.tmp").touch()
  (tmp_path / "a.tfrecord").touch()
  sweep(tmp_path)
  assert names(tmp_path) == ["a.tfrecord"]
