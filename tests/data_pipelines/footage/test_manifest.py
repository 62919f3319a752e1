"""Every row of a manifest is parsed, or dropped with a reason."""

import functools
import http.server
import json
import math
import os
import threading
import zipfile

import pytest

from data_pipelines.footage.fetch import local_file
from data_pipelines.footage.manifest import ManifestRow, read_manifest
from data_pipelines.footage.quarantine import Drop
from i2vgen_jax.errors import InputError


def write(path, rows):
  lines = (r if isinstance(r, str) else json.dumps(r) for r in rows)
  path.write_text("\n".join(lines))
  return path


def test_jsonl(tmp_path):
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
    ManifestRow(1, "a.mp4", str(tmp_path / "a.mp4"), ("a dog",), 0.0, math.inf),
    ManifestRow(2, "sub/b.png", str(tmp_path / "sub/b.png"), ("one", "two")),
    ManifestRow(3, "/x/c.mov", "/x/c.mov", ("c",), 1.5, 4.0),
    ManifestRow(4, "gs://bucket/d.mp4", "gs://bucket/d.mp4", ("d",)),
  ]
  assert [row.is_picture for row in read_manifest(path)] == [0, 1, 0, 0]


def test_csv(tmp_path):
  path = write(
    tmp_path / "list.csv",
    ["path,caption,start", 'a.mp4,"one, two",', "b.mp4,bee,2.5"],
  )
  first, second = read_manifest(path)
  assert first.captions == ("one, two",) and first.start == 0
  assert second.start == 2.5


def test_folder(tmp_path):
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
    ({"path": "a.mp4", "captions": ["x", 5]}, "bad-row"),
    ({"path": "a.mp4", "captions": ["", None, "\t"]}, "no-caption"),
    ({"path": "a.mp4", "caption": 5}, "bad-row"),
    ({"path": "a.mp4", "caption": {"en": "x"}}, "bad-row"),
    ({"path": "a.mp4", "caption": "x" * 20_000}, "bad-row"),
    ({"path": "a.mp4", "caption": "x" * (2 << 20)}, "bad-row"),
    ({"path": "a.mp4", "caption": "\ud800"}, "bad-row"),
    ({"path": "\udcff.mp4", "caption": "x"}, "bad-row"),
    ({"path": "a\0.mp4", "caption": "x"}, "bad-row"),
    ({"path": " ", "caption": "x"}, "bad-row"),
    ({"path": ["a.mp4"], "caption": "x"}, "bad-row"),
    ([{"path": "a.mp4", "caption": "x"}], "bad-row"),
    ('{"path": "a.mp4", "capt', "bad-row"),
    ("[" * 100_000, "bad-row"),
    (
      '{"path": "a.mp4", "caption": "x", "start": 1' + "0" * 400 + "}",
      "bad-row",
    ),
    (
      '{"path": "a.mp4", "caption": "x", "start": 1' + "0" * 9999 + "}",
      "bad-row",
    ),
    ({"path": "a.mp4", "caption": "x", "start": "soon"}, "bad-row"),
    ({"path": "a.mp4", "caption": "x", "start": 3, "end": 2}, "bad-row"),
    ({"path": "a.mp4", "caption": "x", "start": math.nan}, "bad-row"),
    ({"path": "a.mp4", "caption": "x", "start": math.inf}, "bad-row"),
    ({"path": "a.mp4", "caption": "x", "start": -1}, "bad-row"),
    ({"path": "a.mp4", "caption": "x", "start": 2, "end": 2}, "bad-row"),
    ({"path": "a.mp4", "caption": "x", "end": math.nan}, "bad-row"),
    ({"path": "a.mp4", "caption": "x", "start": True}, "bad-row"),
    ({"path": "a.mp4", "caption": "x", "start": [1]}, "bad-row"),
  ],
)
def test_an_unusable_row_is_dropped(tmp_path, row, reason):
  good = {"path": "b.mp4", "caption": "b"}
  path = write(tmp_path / "list.jsonl", [row, good])
  drop, source = read_manifest(path)
  assert isinstance(drop, Drop) and isinstance(source, ManifestRow)
  assert (drop.row, drop.reason) == (1, reason)
  assert drop.detail.isprintable() and len(drop.detail) < 200
  assert source.row == 2


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("bom.jsonl", '\ufeff{"path": "a.mp4", "caption": "b"}\n'.encode()),
    ("crlf.jsonl", b'{"path": "a.mp4", "caption": "b"}\r\n\r\n'),
    ("blank.jsonl", b'\n  \n{"path": "a.mp4", "caption": "b"}'),
    ("other.jsonl", b'{"path": "a.mp4", "caption": "b", "x": [1], "y": null}'),
    ("null.jsonl", b'{"path": "a.mp4", "captions": null, "caption": "b"}'),
    ("bom.csv", "\ufeffpath,caption\na.mp4,b\n".encode()),
    ("crlf.csv", b"path, caption\r\na.mp4,b\r\n\r\n"),
    ("other.csv", b"x,path,caption,end\n\n1,a.mp4,b,\n"),
    ("blank.csv", b"\n \npath,caption\n  \na.mp4,b\n\n"),
    ("stripped.csv", b'path , caption\n a.mp4\t, "b" \n'),
    ("unnamed.csv", b"path,caption,,\na.mp4,b,,\n"),
    ("list.csv", b'path,captions\na.mp4,"[""b""]"\n'),
  ],
)
def test_lists_of_other_programs_are_read(tmp_path, name, content):
  (tmp_path / name).write_bytes(content)
  location = str(tmp_path / "a.mp4")
  assert list(read_manifest(tmp_path / name)) == [
    ManifestRow(1, "a.mp4", location, ("b",))
  ]


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("latin.jsonl", b'{"path": "a.mp4", "caption": "caf\xe9"}\n'),
    ("binary.jsonl", bytes(range(256)).replace(b"\n", b"").replace(b"\r", b"")),
    ("zeros.jsonl", bytes(100)),
    ("latin.csv", b"path,caption\na.mp4,caf\xe9\n"),
    ("long.csv", b"path,caption\na.mp4," + b"x" * 200_000),
    ("open.csv", b'path,caption\na.mp4,"never closed' + b"x" * 200_000),
  ],
)
def test_an_undecodable_row_is_one_drop(tmp_path, name, content):
  path = tmp_path / name
  good = "b.mp4,b" if path.suffix == ".csv" else '{"path": "b", "caption": "b"}'
  path.write_bytes(content.rstrip(b"\n") + b"\n" + good.encode())
  drop, source = read_manifest(path)
  assert (drop.row, drop.reason) == (1, "bad-row")
  assert drop.detail.isprintable()
  assert source.row == 2


def csv_rows(tmp_path, text):
  """Captions of the rows that can be used, "bad-row" for the others."""
  path = tmp_path / "list.csv"
  path.write_bytes(text.encode())
  rows = list(read_manifest(path))
  assert [row.row for row in rows] == list(range(1, len(rows) + 1))
  for row in rows:
    assert isinstance(row, ManifestRow) or row.detail.isprintable()
  return [getattr(row, "captions", row[3]) for row in rows]


@pytest.mark.parametrize(
  ("rows", "captions"),
  [
    ('0,"ok"\n2,"open quote\n3,lost\n', [("ok",), "bad-row", ("lost",)]),
    ('0,"open\n1,x\n2,"y, z"\n3,w', ["bad-row", ("x",), ("y, z",), ("w",)]),
    ('0,"open\r\n1,""\r\n2,y\r\n', ["bad-row", "no-caption", ("y",)]),
    ('0,"open\n1,x\n2,"open\n3,y', ["bad-row", ("x",), "bad-row", ("y",)]),
    ('"0,open\n1,x\n"2","y"\n', ["bad-row", ("x",), ("y",)]),
    ('0,x\n1,"open', [("x",), "bad-row"]),
    ('0,"a "b" c"\n1,x\n', ["bad-row", ("x",)]),
    ('0,"one\n\ntwo, three"\n1,x\n', [("one\n\ntwo, three",), ("x",)]),
    ('"0","say ""hi"""\n1,5" disk\n', [('say "hi"',), ('5" disk',)]),
    ("0,a, b, c\n1\n2,x\n", ["bad-row", "bad-row", ("x",)]),
    ('0,"a\nb",c\n1,x\n', ["bad-row", ("x",)]),
    ('0,"[""one"",""two""]"\n1,["x"]\n', [("one", "two"), ("x",)]),
    (
      "0,\"['one', 'two']\"\n1,[music] plays\n",
      ["bad-row", ("[music] plays",)],
    ),
    ('0,"open\n' + "1,x\n" * 5000, ["bad-row"] + [("x",)] * 5000),
  ],
)
def test_csv_cells(tmp_path, rows, captions):
  assert csv_rows(tmp_path, "path,captions\n" + rows) == captions


def test_quotes_take_linear_time(tmp_path):
  rows = 'x","y\n' * 20_000
  assert set(csv_rows(tmp_path, 'path,caption\n"' + rows)) == {"bad-row"}
  rows = '0,"\n1,""\n' * 5000 + "0," + " " * 200_000 + '"a" b\n'
  assert len(csv_rows(tmp_path, "path,caption\n" + rows)) > 5000


@pytest.mark.parametrize(
  ("header", "said"),
  [
    ("path,caption, caption ", "2 columns named 'caption'"),
    ("path,x,caption,x", "2 columns named 'x'"),
    ('path,"caption', "cannot read the columns"),
  ],
)
def test_an_ambiguous_header_is_refused(tmp_path, header, said):
  path = tmp_path / "list.csv"
  path.write_text(f"{header}\na,b,c\n")
  with pytest.raises(InputError, match=said):
    list(read_manifest(path))


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("semicolons.csv", b"path;caption\na.mp4;b\n"),
    ("wide.csv", "path,caption\na.mp4,b\n".encode("utf-16")),
    ("binary.csv", bytes(range(256))),
    ("long.csv", b"x" * 200_000 + b"\na.mp4,b\n"),
  ],
)
def test_csv_without_a_path_column_is_refused(tmp_path, name, content):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(InputError, match="no column path"):
    list(read_manifest(tmp_path / name))


def test_a_pipe_is_refused(tmp_path):
  os.mkfifo(tmp_path / "list.jsonl")
  with pytest.raises(InputError, match="pipe"):
    list(read_manifest(tmp_path / "list.jsonl"))


def test_unusable_entries_of_a_folder_are_dropped(tmp_path):
  folder = tmp_path / "media"
  (folder / "a.mp4").mkdir(parents=True)
  (folder / "a.mp4" / "b.mp4").touch()
  (folder / "link").symlink_to(folder)
  (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
  (folder / "latin.mp4").touch()
  (folder / "latin.txt").write_bytes(b"caf\xe9")
  (folder / os.fsdecode(b"\xff.mp4")).touch()
  (folder / "pipe.mp4").touch()
  os.mkfifo(folder / "pipe.txt")
  found = [(row.path, row.reason) for row in read_manifest(folder)]
  assert found == [
    ("a.mp4/b.mp4", "no-caption"),
    ("latin.mp4", "bad-row"),
    (None, "no-file"),
    ("loop.mp4", "no-caption"),
    ("pipe.mp4", "no-caption"),
    ("\udcff.mp4", "bad-row"),
  ]


@pytest.mark.parametrize("name", ["empty.csv", "empty.jsonl"])
def test_an_empty_list_is_refused(tmp_path, name):
  (tmp_path / name).touch()
  with pytest.raises(InputError, match=f"{name} is empty"):
    list(read_manifest(tmp_path / name))


@pytest.mark.parametrize("name", ["absent.jsonl", "list.txt", "absent"])
def test_a_missing_list_is_refused(tmp_path, name):
  with pytest.raises(InputError, match=name):
    list(read_manifest(tmp_path / name))


def test_a_uri_is_copied_and_removed(tmp_path):
  (tmp_path / "a.bin").write_bytes(b"12")
  with local_file(str(tmp_path / "a.bin"), seconds=60) as file:
    assert file == tmp_path / "a.bin"
  with (
    pytest.raises(InputError, match="cannot fetch") as raised,
    local_file("nowhere://bucket/a.mp4", seconds=60),
  ):
    pass
  assert raised.value.reason == "missing"


def test_a_file_uri_is_a_local_path(tmp_path):
  good = [f"file://{tmp_path}/a%20b.mp4", f"FILE://localhost{tmp_path}/a b.mp4"]
  bad = ["file://a.mp4", "file://host/a.mp4", "file:///a%00.mp4", "file:///%FF"]
  rows = [{"path": path, "caption": "x"} for path in good + bad]
  found = list(read_manifest(write(tmp_path / "list.jsonl", rows)))
  assert [row.location for row in found[:2]] == [f"{tmp_path}/a b.mp4"] * 2
  assert [row.path for row in found] == good + bad
  assert [row.reason for row in found[2:]] == ["bad-row"] * 4


class Silent(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *_):
    pass


def test_uris_are_fetched(tmp_path):
  (tmp_path / "a b.bin").write_bytes(b"12")
  with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
    file.writestr("c.bin", b"34")
  handler = functools.partial(Silent, directory=tmp_path)
  with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    web = f"http://localhost:{server.server_port}"
    for uri, content in (
      (f"{web}/a%20b.bin", b"12"),
      (f"zip://c.bin::{tmp_path}/a.zip", b"34"),
    ):
      with local_file(uri, seconds=60) as file:
        assert file.read_bytes() == content
      assert not file.exists()
    for uri, said in (
      (f"{web}/absent.bin", "404"),
      ("s3://bucket/a.mp4", "s3fs"),
      ("nowhere://bucket/a.mp4", "nowhere"),
    ):
      with (
        pytest.raises(InputError, match="supported are paths, file://") as e,
        local_file(uri, seconds=60),
      ):
        pass
      assert str(e.value).startswith(f"cannot fetch {uri}: ")
      assert said in str(e.value) and "\n" not in str(e.value)
    server.shutdown()
