"""`i2vgen data inspect`: contents of the page and its pictures."""

import base64
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from dataset_standin import counting_clip, write_dataset
from PIL import Image

from data_pipelines.footage import survey
from data_pipelines.footage.quarantine import Drop
from data_pipelines.media import pictures
from data_pipelines.shards.dataset import SCORES, Example
from i2vgen_jax.files import write_json, write_json_lines
from launch import inspection, plots

EVIL = '<script>alert("1")</script> & a fox'


class Page(HTMLParser):
  """Tags, sources of images, and the text between the tags."""

  def __init__(self, path):
    super().__init__()
    self.tags, self.images, self.text = set(), [], ""
    self.feed(path.read_text())

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    if tag == "img":
      self.images.append(dict(attrs)["src"])

  def handle_data(self, data):
    self.text += data


@pytest.fixture
def data_dir(tmp_path):
  """Clips of two shapes, pictures of two, and a quarantine."""
  root = tmp_path / "set"
  scores = {"motion": 0.5, "brightness": 0.25}
  clips = [
    counting_clip(f"c{n}", size, frames, [EVIL, "猫"])
    for n, (size, frames) in enumerate([((48, 32), 9), ((32, 64), 2)])
  ]
  stills = [
    Example(
      pictures.encode_jpeg(np.full((h, w, 3), 90, np.uint8)),
      ["a wall"], f"s{w}", 1, w, h, scores=scores,
    )
    for w, h in ((48, 32), (8, 200))
  ]  # fmt: skip
  write_dataset(root, "text_video", clips)
  write_dataset(root, "text_image", stills)
  drops = [Drop(4, "x.mp4", 1.0, "no-shot", "30 frames <b>")]
  write_json_lines(root / "quarantine.jsonl", [d._asdict() for d in drops])
  told = {"identity": {"seed": 3}, "dropped": {"no-shot": 1234}}
  write_json(root / "build.json", told)
  return root


def test_page_of_a_complete_dataset(run, data_dir, tmp_path):
  output = tmp_path / "look"
  status, [line] = run("data", "inspect", data_dir, "--output", output)
  assert status == 0
  names = {"clips", "pictures"}
  names |= {f"{name}-figures" for name in names} | {"left-out"}
  expected = {f"{name}.png" for name in names} | {"index.html"}
  assert {path.name for path in output.iterdir()} == expected
  assert all(name in line for name in expected)
  for name in expected - {"index.html"}:
    assert Image.open(output / name).width == 1280
  page = Page(output / "index.html")
  # The page runs and fetches nothing.
  assert not page.tags & {"script", "link", "iframe"}
  assert len(page.images) == 4 + 3
  for source in page.images:
    head, _, data = source.partition(",")
    assert head.startswith("data:image/") and head.endswith(";base64")
    Image.open(io.BytesIO(base64.b64decode(data))).verify()
  for text in (
    "2 clips and 2 pictures", EVIL, "猫", "1.1 s", "8 fps", "48x32", "32x64",
    "motion 0.5", "Not measured: motion", "1,234", "no-shot",
    "not a single shot", "row 4 at 1.00 s: 30 frames <b>", '"seed": 3',
  ):  # fmt: skip
    assert text in page.text, text


def test_a_dataset_without_pictures_and_build_json(run, data_dir, tmp_path):
  bare = tmp_path / "bare"
  bare.mkdir()
  (data_dir / "text_video").rename(bare / "text_video")
  output = tmp_path / "look"
  assert run("data", "inspect", bare, "--output", output, "--count=1")[0] == 0
  page = Page(output / "index.html")
  assert "There is no build.json" in page.text and "Pictures" not in page.text
  assert len(page.images) == 2
  assert not (output / "left-out.png").exists()


def test_a_dataset_older_than_a_score(run, data_dir, tmp_path, monkeypatch):
  monkeypatch.setitem(SCORES, "grain", "grain, 0 to 1")
  output = tmp_path / "look"
  assert run("data", "inspect", data_dir, "--output", output)[0] == 0
  assert "grain, 0 to 1" in Page(output / "index.html").text


def test_a_large_dataset_is_sampled(run, data_dir, tmp_path, monkeypatch):
  monkeypatch.setattr(survey, "RECORDS", 1)
  output = tmp_path / "look"
  run("data", "inspect", data_dir, f"--output={output}", "--seed=5")
  text = Page(output / "index.html").text
  assert "over 1 of 2 clips, drawn at random, seed 5" in text


def test_damaged_records(run, refused, data_dir, tmp_path):
  output = tmp_path / "look"
  [shard] = (data_dir / "text_image").rglob("*.tfrecord-*-of-00001")
  argv = ("data", "inspect", data_dir, "--output", output)

  def damage(place):
    data = bytearray(shard.read_bytes())
    data[place] ^= 1
    shard.write_bytes(data)

  damage(30)
  status, lines = run(*argv)
  assert status == 0 and len(lines) == 2
  assert "1 records cannot be read; the first: cannot read" in lines[0]
  assert "text_image-train" in lines[0] and ": damaged record" in lines[0]
  assert "1 of the pictures in the sample cannot" in Page(
    output / "index.html"
  ).text.replace("\n", " ")
  damage(-10)
  assert run(*argv)[0] == 0
  (data_dir / "text_video").rename(tmp_path / "away")
  line = refused(*argv)
  assert "no record of" in line and "damaged record" in line


@pytest.mark.parametrize(
  ("name", "text"), [("build.json", "{"), ("quarantine.jsonl", "[]")]
)
def test_damaged_summaries(refused, data_dir, tmp_path, name, text):
  (data_dir / name).write_text(text)
  output = tmp_path / "look"
  assert name in refused("data", "inspect", data_dir, "--output", output)
  assert not (output / "index.html").exists()


def test_no_dataset(refused, tmp_path):
  assert "no dataset in" in refused("data", "inspect", tmp_path / "nowhere")
  (tmp_path / "text_video" / "1.0.0").mkdir(parents=True)
  line = refused("data", "inspect", tmp_path)
  assert "cannot read" in line and "dataset_info.json" in line
  assert "give a folder such as DATA_DIR/text_video/1.0.0" in line


def test_output_that_cannot_be_created(refused, data_dir, tmp_path):
  (tmp_path / "file").touch()
  argv = ("data", "inspect", data_dir, "--output", tmp_path / "file" / "x")
  assert "choose another place" in refused(*argv)


@pytest.mark.parametrize("size", [(640, 272), (32, 64), (2, 2000), (2000, 2)])
@pytest.mark.parametrize("count", [1, survey.FRAMES])
def test_strips_of_any_shape_fit(size, count):
  width, height = size
  frames = np.zeros((count, height, width, 3), np.uint8)
  made = inspection.strip(frames)
  assert made.width <= 1280 - 2 * 16 + 6 and made.height <= 300


def test_histograms_of_any_numbers():
  values = {
    "same": np.full(5, 3.0),
    "one": np.array([0.0]),
    "wide": np.array([0.0, 1e9, 2e9]),
    "negative": np.array([-2.0, 5.0]),
    "close": np.array([1.0, 1 + 1e-12]),
  }
  picture = Image.open(io.BytesIO(plots.histograms(values, "clips")))
  assert picture.width == 1280 and picture.height > 300


def test_brief_numbers():
  found = [plots.brief(v) for v in (0, 0.01234, 12.345, 1234.5, 5e6)]
  assert json.dumps(found) == '["0", "0.0123", "12.3", "1,234", "5,000,000"]'
