"""Builds are whole, repeatable, and account for every row they are given."""

import hashlib
import json
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from skimage import data

from data_pipelines import build, images, procedural, video
from data_pipelines.dataset import Dataset, dataset_dir
from i2vgen_jax.errors import InputError


def digests(folder):
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).digest()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


@pytest.fixture(scope="module")
def clip():
  scene = procedural.numbered_scene(0, 3, "train")
  return procedural.render(scene, (96, 64), 12)


@pytest.fixture
def media(tmp_path, clip):
  """A folder of two good files and four bad ones."""
  folder = tmp_path / "media"
  folder.mkdir()
  video.write_mp4(folder / "good.mp4", clip, 12)
  Image.fromarray(data.astronaut()).save(folder / "good.png")
  (folder / "empty.mp4").touch()
  (folder / "cut.mp4").write_bytes((folder / "good.mp4").read_bytes()[:1000])
  (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:9999])
  video.write_mp4(folder / "short.mp4", clip[:3], 12)
  return folder


def manifest(folder, rows, name="list.jsonl"):
  path = folder / name
  lines = (r if isinstance(r, str) else json.dumps(r) for r in rows)
  path.write_text("\n".join(lines))
  return path


def quarantine(folder):
  lines = (folder / "quarantine.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_the_procedural_set_holds_what_its_captions_say(procedural_dir):
  clips = Dataset([dataset_dir(procedural_dir, "text_video")])
  stills = Dataset([dataset_dir(procedural_dir, "text_image")])
  for number in (0, 11, 23):
    scene = procedural.numbered_scene(0, number, "train")
    truth = procedural.render(scene, (48, 32), 8).astype(int)
    record = clips[number]
    assert record["captions"][0].decode() == procedural.caption(scene)
    frames, _ = video.decode_mp4(record["video"])
    assert np.abs(frames - truth).mean() < 2
    record = stills[number]
    assert record["captions"][0].decode() == procedural.still_caption(scene)
    still = images.decode_image(record["image"], "x")
    assert np.abs(still - truth).mean((1, 2, 3)).min() < 3


def test_two_builds_give_the_same_bytes(tmp_path):
  for name in ("a", "b"):
    build.build_procedural(
      tmp_path / name, 5, "test", size=(32, 32), seed=3, shard_size=2
    )
  first = digests(tmp_path / "a")
  assert first == digests(tmp_path / "b")
  assert len(first) == 2 * (3 + 3 + 2)
  build.build_procedural(tmp_path / "c", 5, "test", size=(32, 32), seed=4)
  assert not set(first.values()) & {
    digest
    for name, digest in digests(tmp_path / "c").items()
    if "tfrecord" in name
  }


def test_an_interrupted_build_leaves_nothing(tmp_path):
  def interrupt(done, total):
    if done == 3:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    build.build_procedural(
      tmp_path / "out", 5, "train", size=(32, 32), shard_size=2,
      progress=interrupt,
    )  # fmt: skip
  assert not list(tmp_path.iterdir())


def test_an_existing_output_is_not_touched(tmp_path):
  (tmp_path / "out").mkdir()
  with pytest.raises(InputError, match="out exists"):
    build.build_procedural(tmp_path / "out", 1, "train")
  with pytest.raises(InputError, match="at least 1"):
    build.build_procedural(tmp_path / "new", 0, "train")
  assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_every_bad_row_is_accounted_for(media, clip, tmp_path):
  rows = [
    {"path": "good.mp4", "caption": "a thing moves"},
    {"path": "empty.mp4", "caption": "nothing"},
    {"path": "cut.mp4", "caption": "half of it"},
    {"path": "good.png", "caption": "an astronaut"},
    {"path": "cut.png", "caption": "half of her"},
    {"path": "short.mp4", "caption": "too short"},
    {"path": "absent.mp4", "caption": "nobody"},
    {"path": "good.mp4", "caption": "  "},
    {"caption": "no path"},
    "{not json",
    '"only a string"',
  ]
  seen = []
  out = tmp_path / "out"
  built = build.build_from_manifest(
    manifest(media, rows), out, progress=lambda *at: seen.append(at)
  )
  assert built == (1, 1, 9)
  assert seen == [(n, 11) for n in range(1, 12)]
  bad = {entry["row"]: entry["reason"] for entry in quarantine(out)}
  reasons = {
    2: "empty", 3: "damaged", 5: "damaged", 6: "3 frames", 7: "No such file",
    8: "no caption", 9: "no path", 10: "not JSON", 11: "no path",
  }  # fmt: skip
  assert bad.keys() == reasons.keys()
  for row, reason in reasons.items():
    assert reason in bad[row]

  record = Dataset([dataset_dir(out, "text_video")])[0]
  assert record["captions"][0] == b"a thing moves"
  assert record["num_frames"] == 12
  assert record["fps"] == pytest.approx(12)
  frames, _ = video.decode_mp4(record["video"])
  assert np.abs(frames.astype(int) - clip).mean() < 4
  record = Dataset([dataset_dir(out, "text_image")])[0]
  picture = images.decode_image(record["image"], "x").astype(int)
  assert np.abs(picture - data.astronaut()).mean() < 2


def test_a_table_of_real_footage(footage, tmp_path):
  """CSV; the 720-line film is scaled, the narrow one kept."""
  lines = [
    "path,caption",
    f'{footage["bikes"]},"bicycles, in a street"',
    f"{footage['bigbuckbunny']},a rabbit",
  ]
  out = tmp_path / "out"
  built = build.build_from_manifest(
    manifest(tmp_path, lines, "list.csv"), out, short_side=180
  )
  assert built == (2, 0, 0)
  assert quarantine(out) == []
  assert not dataset_dir(out, "text_image").exists()
  clips = Dataset([dataset_dir(out, "text_video")])
  assert clips[0]["captions"][0] == b"bicycles, in a street"
  assert clips[0]["num_frames"] == 250
  assert clips[0]["fps"] == pytest.approx(25, rel=1e-3)
  frames, _ = video.decode_mp4(clips[1]["video"], lambda t: [0, 60])
  original, _ = video.decode_mp4(footage["bigbuckbunny"], lambda t: [0, 60])
  assert frames.shape == (2, 180, 320, 3)
  averaged = original.reshape(2, 180, 4, 320, 4, 3).mean((2, 4))
  assert np.abs(frames - averaged).mean() < 3


def test_odd_sizes_and_uneven_times_are_kept_as_far_as_h264_can(tmp_path, clip):
  import av

  path = tmp_path / "odd.mkv"
  ticks = [0, 40, 100, 120, 200, 260, 300, 340, 420, 440]
  with av.open(str(path), "w") as container:
    stream = container.add_stream("ffv1", rate=25)
    stream.codec_context.time_base = Fraction(1, 1000)
    stream.width, stream.height, stream.pix_fmt = 95, 63, "bgr0"
    for tick, picture in zip(ticks, clip, strict=False):
      picture = np.ascontiguousarray(picture[:63, :95])
      frame = av.VideoFrame.from_ndarray(picture).reformat(format="bgr0")
      frame.pts, frame.time_base = tick, Fraction(1, 1000)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  rows = [{"path": "odd.mkv", "caption": "odd"}]
  build.build_from_manifest(manifest(tmp_path, rows), tmp_path / "out")
  _, given = video.decode_mp4(path)
  record = Dataset([dataset_dir(tmp_path / "out", "text_video")])[0]
  frames, times = video.decode_mp4(record["video"])
  assert frames.shape == (10, 62, 94, 3)
  np.testing.assert_allclose(times, given, atol=1e-3)
  assert len(set(np.diff(given).round(3))) > 1


@pytest.mark.parametrize(
  ("name", "text", "reason"),
  [
    ("absent.jsonl", None, "absent.jsonl"),
    ("list.txt", "{}", "must be"),
    ("list.jsonl", "", "none of the 0 rows"),
    ("list.jsonl", '{"path": "x.mp4", "caption": "y"}', "No such file"),
  ],
)
def test_nothing_usable_is_an_error_and_leaves_nothing(
  tmp_path, name, text, reason
):
  if text is not None:
    (tmp_path / name).write_text(text)
  with pytest.raises(InputError, match=reason):
    build.build_from_manifest(tmp_path / name, tmp_path / "out")
  assert {p.name for p in tmp_path.iterdir()} <= {name}
