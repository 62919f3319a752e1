"""Every row of every list becomes a source or a drop with its reason."""

import json
import math

import pytest

from data_pipelines.manifest import Source, local_file, read_manifest
from data_pipelines.quarantine import Drop, Unusable
from i2vgen_jax.errors import InputError


def write(path, rows):
  lines = (r if isinstance(r, str) else json.dumps(r) for r in rows)
  path.write_text("\n".join(lines))
  return path


def test_a_list_of_objects(tmp_path):
  path = write(
    tmp_path / "list.jsonl",
    [
      {"path": "a.mp4", "caption": " a dog "},
      "",
      {"path": "sub/b.png", "captions": ["one", " ", "two"]},
      {"path": "/x/c.mov", "caption": "c", "start": 1.5, "end": "4"},
      {"path": "gs://bucket/d.mp4", "caption": "d"},
    ],
  )
  assert list(read_manifest(path)) == [
    Source(1, "a.mp4", str(tmp_path / "a.mp4"), ("a dog",), 0.0, math.inf),
    Source(2, "sub/b.png", str(tmp_path / "sub/b.png"), ("one", "two")),
    Source(3, "/x/c.mov", "/x/c.mov", ("c",), 1.5, 4.0),
    Source(4, "gs://bucket/d.mp4", "gs://bucket/d.mp4", ("d",)),
  ]
  assert [row.is_picture for row in read_manifest(path)] == [0, 1, 0, 0]


def test_a_table(tmp_path):
  path = write(
    tmp_path / "list.csv",
    ["path,caption,start", 'a.mp4,"one, two",', "b.mp4,bee,2.5"],
  )
  first, second = read_manifest(path)
  assert first.captions == ("one, two",) and first.start == 0
  assert second.start == 2.5


def test_a_folder(tmp_path):
  (tmp_path / "sub").mkdir()
  for name in ("b.mp4", "sub/a.JPG", "mute.webm", "notes.pdf"):
    (tmp_path / name).touch()
  (tmp_path / "b.txt").write_text("a bee\n\nit flies\n")
  (tmp_path / "sub" / "a.txt").write_text("a photo")
  bee, mute, photo = read_manifest(tmp_path)
  assert (bee.path, bee.captions) == ("b.mp4", ("a bee", "it flies"))
  assert photo.path == "sub/a.JPG" and photo.is_picture
  assert mute == Drop(2, "mute.webm", None, "no-caption", mute.detail)


@pytest.mark.parametrize(
  ("row", "reason"),
  [
    ("{not json", "bad-row"),
    ('"a string"', "bad-row"),
    ({"caption": "no path"}, "bad-row"),
    ({"path": 3, "caption": "x"}, "bad-row"),
    ({"path": "a.mp4"}, "no-caption"),
    ({"path": "a.mp4", "caption": "  "}, "no-caption"),
    ({"path": "a.mp4", "captions": []}, "no-caption"),
    ({"path": "a.mp4", "captions": ["x", 5]}, "no-caption"),
    ({"path": "a.mp4", "caption": "x", "start": "soon"}, "bad-row"),
    ({"path": "a.mp4", "caption": "x", "start": 3, "end": 2}, "bad-row"),
    ({"path": "a.mp4", "caption": "x", "start": math.nan}, "bad-row"),
  ],
)
def test_a_row_that_cannot_be_used(tmp_path, row, reason):
  good = {"path": "b.mp4", "caption": "b"}
  path = write(tmp_path / "list.jsonl", [row, good])
  drop, source = read_manifest(path)
  assert isinstance(drop, Drop) and isinstance(source, Source)
  assert (drop.row, drop.reason) == (1, reason)
  assert source.row == 2


@pytest.mark.parametrize("name", ["absent.jsonl", "list.txt", "absent"])
def test_no_list(tmp_path, name):
  with pytest.raises(InputError, match=name):
    list(read_manifest(tmp_path / name))


def test_a_uri_is_copied_and_removed(tmp_path):
  (tmp_path / "a.bin").write_bytes(b"12")
  with local_file(str(tmp_path / "a.bin")) as file:
    assert file == tmp_path / "a.bin"
  with (
    pytest.raises(Unusable, match="cannot fetch") as raised,
    local_file("nowhere://bucket/a.mp4"),
  ):
    pass
  assert raised.value.reason == "missing"
