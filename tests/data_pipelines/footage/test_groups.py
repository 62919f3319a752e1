"""Manifests of any length are written in groups, never held in memory."""

import json
import tracemalloc

import pytest

from data_pipelines.footage.groups import Groups, bad_rows, read_group
from data_pipelines.footage.manifest import ManifestRow, read_manifest
from data_pipelines.footage.quarantine import read_drops
from i2vgen_jax.errors import InputError


def write(folder, count, bad=()):
  path = folder / "list.jsonl"
  with path.open("w") as file:
    for number in range(count):
      row = {"path": f"{number}.mp4", "caption": f"number {number}"}
      file.write(("{" if number in bad else json.dumps(row)) + "\n")
  return path


@pytest.mark.parametrize(("count", "size"), [(3, 1), (200, 3), (2000, 16)])
def test_the_groups_hold_the_rows_in_order(tmp_path, count, size):
  path = write(tmp_path, count, bad={0, 2})
  groups = Groups(path)
  assert (groups.num_rows, groups.num_files) == (count, count - 2)
  assert groups.size == size
  groups.write(tmp_path)
  read = [list(read_group(tmp_path, n)) for n in range(groups.count)]
  assert {len(group) for group in read[:-1]} <= {size}
  rows = [row for row in read_manifest(path) if isinstance(row, ManifestRow)]
  assert [row for group in read for row in group] == rows
  bad = read_drops(bad_rows(tmp_path))
  assert [(drop.row, drop.reason) for drop in bad] == [
    (1, "bad-row"),
    (3, "bad-row"),
  ]
  assert not list(tmp_path.glob("*.tmp"))


def test_the_digest_depends_on_the_rows_but_not_on_the_folder(tmp_path):
  for name in "ab":
    (tmp_path / name).mkdir()
  path = write(tmp_path / "a", 5)
  first = Groups(path).digest
  assert Groups(write(tmp_path / "b", 5)).digest == first
  assert Groups(write(tmp_path / "b", 6)).digest != first


def test_a_manifest_that_changes_while_it_is_read_is_an_error(tmp_path):
  groups = Groups(write(tmp_path, 5))
  write(tmp_path, 5, bad={1})
  with pytest.raises(InputError, match="changed while it was read"):
    groups.write(tmp_path)


def test_memory_does_not_grow_with_the_rows(tmp_path):
  def peak(count, name):
    folder = tmp_path / f"{name}-{count}"
    folder.mkdir()
    path = write(folder, count)
    tracemalloc.start()
    Groups(path).write(folder)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most

  def least(count):
    # pathlib interns names. The interpreter's table of interned strings grows
    # by megabytes occasionally, but not in each of three runs.
    return min(peak(count, name) for name in "abc")

  peak(1000, "first")
  assert least(4000) - least(1000) < 3000 * 10


def test_rows_of_one_clip_join_their_captions(tmp_path):
  rows = [
    {"path": "a.mp4", "caption": "one"},
    {"path": "b.mp4", "captions": ["x", "y"]},
    {"path": "a.mp4", "caption": "two", "end": 3},
    {"path": "a.mp4", "captions": ["three", "one"], "start": 0},
    {"path": "b.mp4", "caption": "z"},
    {"path": "a.mp4", "caption": "four", "start": 0.0, "end": "3"},
  ]
  path = tmp_path / "list.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  groups = Groups(path)
  groups.write(tmp_path)
  found = [r for n in range(groups.count) for r in read_group(tmp_path, n)]
  assert [(row.row, row.path, row.captions) for row in found] == [
    (1, "a.mp4", ("one", "three")),
    (2, "b.mp4", ("x", "y", "z")),
    (3, "a.mp4", ("two", "four")),
  ]
