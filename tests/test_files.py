"""Files and folders appear whole or not at all, and damage is reported."""

import json
import os

import pytest

from i2vgen_jax import files
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import (
  check_file,
  read_json,
  remove_temporary,
  replacing,
  replacing_folder,
)


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_two_writers_of_one_file_do_not_share_a_temporary_file(tmp_path):
  path = tmp_path / "a.json"
  with replacing(path) as first:
    first.write_text("whole")
    with replacing(path) as second:
      assert first != second
      second.write_text("whole")
    assert path.read_text() == "whole"
  assert names(tmp_path) == ["a.json"]


def test_an_interrupted_writer_leaves_nothing(tmp_path):
  with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a") as path:
    path.write_text("ha")
    raise KeyboardInterrupt
  with (
    pytest.raises(KeyboardInterrupt),
    replacing_folder(tmp_path / "b") as path,
  ):
    (path / "c").write_text("ha")
    raise KeyboardInterrupt
  assert names(tmp_path) == []


def test_the_first_of_two_folders_stays_unchanged(tmp_path):
  path = tmp_path / "result"
  with replacing_folder(path) as slow:
    (slow / "said").write_text("slow")
    (slow / "other").touch()
    with replacing_folder(path) as fast:
      (fast / "said").write_text("fast")
  assert names(tmp_path) == ["result"] and names(path) == ["said"]
  assert (path / "said").read_text() == "fast"


def test_a_folder_that_cannot_be_renamed_is_an_error(tmp_path):
  (tmp_path / "gone").mkdir()
  with (
    pytest.raises(InputError, match="gone"),
    replacing_folder(tmp_path / "gone" / "result") as path,
  ):
    path.rename(tmp_path / "elsewhere")


def test_a_folder_is_not_created_below_a_missing_one(tmp_path):
  with (
    pytest.raises(InputError, match=r"cannot write .*absent"),
    replacing_folder(tmp_path / "absent" / "result"),
  ):
    pass
  assert names(tmp_path) == []


def test_files_of_killed_writers_are_removed(tmp_path):
  (tmp_path / "a.tfrecord.0123456789ab.tmp").touch()
  (tmp_path / "a.tfrecord").touch()
  remove_temporary(tmp_path)
  assert names(tmp_path) == ["a.tfrecord"]


def test_a_written_file_is_alone_in_its_folder(tmp_path):
  with replacing(tmp_path / "out.mp4") as path:
    path.write_bytes(b"film")
  assert names(tmp_path) == ["out.mp4"]
  assert (tmp_path / "out.mp4").read_bytes() == b"film"


def test_unwritable_paths_are_named(tmp_path):
  with (
    pytest.raises(InputError, match="absent"),
    replacing(tmp_path / "absent" / "out.mp4") as path,
  ):
    path.write_bytes(b"film")
  (tmp_path / "taken").mkdir()
  with (
    pytest.raises(InputError, match="taken"),
    replacing(tmp_path / "taken") as path,
  ):
    path.write_bytes(b"film")
  assert names(tmp_path) == ["taken"]


def test_json_survives_the_round_trip(tmp_path):
  files.write_json(tmp_path / "a.json", {"a": [1, 2.5, None]})
  assert read_json(tmp_path / "a.json") == {"a": [1, 2.5, None]}
  files.write_json_lines(tmp_path / "a.jsonl", iter([{"b": 1}, [2]]))
  lines = (tmp_path / "a.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in lines] == [{"b": 1}, [2]]


@pytest.mark.parametrize(
  ("content", "reason"),
  [
    (None, "No such file"),
    (b"{", "Expecting property name"),
    (b"[1]", "not a JSON object"),
    (b"\xff", "utf-8"),
    (b"[" * 100_000, "recursion"),
  ],
)
def test_unusable_json_is_one_line_with_the_reason(tmp_path, content, reason):
  path = tmp_path / "a.json"
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(InputError, match=rf"a\.json: .*{reason}") as caught:
    read_json(path)
  assert "\n" not in str(caught.value)


def test_check_file_gives_the_reason(tmp_path):
  (tmp_path / "good").write_text("x")
  check_file(tmp_path / "good", "good")
  (tmp_path / "empty").touch()
  os.mkfifo(tmp_path / "pipe")
  for name, reason in (
    ("absent", "missing"),
    ("a\0", "missing"),
    ("empty", "empty"),
    ("pipe", "no-file"),
    (".", "no-file"),
  ):
    with pytest.raises(InputError, match="film") as caught:
      check_file(tmp_path / name, "film")
    assert caught.value.reason == reason


def test_a_lock_keeps_others_out_until_its_end(tmp_path):
  with (
    files.locked(tmp_path),
    pytest.raises(InputError, match="in use by another process"),
    files.locked(tmp_path),
  ):
    pass
  with files.locked(tmp_path):
    pass


def test_errors_under_a_lock_are_left_as_they_are(tmp_path):
  with pytest.raises(OSError, match="elsewhere"), files.locked(tmp_path):
    raise OSError("elsewhere")
