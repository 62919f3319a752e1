"""`i2vgen evaluate` as a command: what it writes, prints and refuses."""

import base64
import json
import re
from unittest import mock

import numpy as np
import pytest
import torch
from cascade_standin import NUM_FRAMES, REFINED_SIZE, write_cascade
from dataset_standin import counting_clip, write_dataset
from PIL import Image
from safetensors.numpy import save_file
from skimage import data

from data_pipelines.media import video
from data_pipelines.media.pictures import encode_jpeg
from data_pipelines.shards.dataset import Example
from launch import evaluate
from launch.evaluation.measures import METRICS
from launch.evaluation.report import Section
from launch.evaluation.towers import Towers

ALONE = {
  "frame_consistency", "text_similarity", "steadiness", "motion",
  "camera_travel", "camera_zoom", "camera_roll", "camera_fit",
}  # fmt: skip
OF_PICTURE = {"first_frame_psnr", "first_frame_ssim", "image_similarity"}
DISTANCES = {"spatial_distance", "temporal_distance"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  """A folder of pictures, each with its prompt."""
  folder = tmp_path_factory.mktemp("pictures")
  for name in ("coffee", "chelsea", "rocket"):
    Image.fromarray(getattr(data, name)()).save(folder / f"{name}.jpg")
    (folder / f"{name}.txt").write_text(f"the {name} <moves> & shines\n")
  return folder


@pytest.fixture(scope="module")
def lpips_weights(tmp_path_factory):
  """A file of LPIPS with random weights."""
  rng = np.random.default_rng(0)
  shapes = (
    (0, (64, 3, 11, 11)), (3, (192, 64, 5, 5)), (6, (384, 192, 3, 3)),
    (8, (256, 384, 3, 3)), (10, (256, 256, 3, 3)),
  )  # fmt: skip
  state = {}
  for n, (number, shape) in enumerate(shapes):
    layer, width = f"net.slice{n + 1}.{number}", shape[0]
    state[f"{layer}.weight"] = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape)
    state[f"{layer}.bias"] = np.zeros(width)
    state[f"lin{n}.model.1.weight"] = rng.uniform(0, 1, (1, width, 1, 1))
  path = tmp_path_factory.mktemp("lpips") / "alex.safetensors"
  save_file({k: v.astype(np.float32) for k, v in state.items()}, path)
  return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  root = tmp_path_factory.mktemp("dataset")
  clips = [
    counting_clip(f"c{n}", (96, 64), frames, [f"clip {n}", "second caption"])
    for n, frames in enumerate((8, 5, 1, 6))
  ]
  return write_dataset(root, "text_video", clips)


def read(folder):
  figures = json.loads((folder / "figures.json").read_text())
  return figures, (folder / "report.html").read_text()


def videos(page):
  """The frames of each video in a page."""
  found = re.findall(r'src="data:video/mp4;base64,([^"]*)"', page)
  return [video.decode_mp4(base64.b64decode(text))[0] for text in found]


def test_worlds_are_the_default(run, weights, photographs, tmp_path):
  status, _ = run(
    *("evaluate", "--weights", weights, "--num-clips", 2),
    *("--photographs", photographs, "--output", tmp_path / "made"),
  )
  assert status == 0
  figures, page = read(tmp_path / "made")
  chance = {"objects": 1 / 12, "camera": 1 / 15}
  for shows, expected in chance.items():
    assert figures[shows]["clips"] == 2
    assert figures[shows]["motion_chance"] == pytest.approx(expected)
    assert len(figures[shows]["first_frame_psnr_autoencoder"]) == 2
    assert f"World: {shows}" in page
  assert page.count("share of clips that move as the prompt says") == 2 * 6
  assert figures["settings"]["inputs"]["num_clips"] == 2
  made = videos(page)
  assert len(made) == 2 * 2 * 3
  assert {clip.shape for clip in made} == {(NUM_FRAMES, *REFINED_SIZE[::-1], 3)}
  assert page.count("data:image/png") == 2
  # It runs and fetches nothing.
  assert not re.search(r'<script|<link|https?://|src="(?!data:)', page)


def test_pictures_with_prompts(run, weights, pictures, lpips_weights, tmp_path):
  of_frames, of_text = (
    mock.patch.object(
      Towers, method.__name__, autospec=True, side_effect=method
    )
    for method in (Towers.of_frames, Towers.of_text)
  )
  with of_frames as of_frames, of_text as of_text:
    status, _ = run(
      *("evaluate", "--weights", weights, "--pictures", pictures),
      *("--output", tmp_path, "--batch-size", 2, "--lpips", lpips_weights),
    )
  assert status == 0
  # Of each stage the frames and the picture; the prompt for both.
  assert of_frames.call_count == 3 * 2 * 2
  assert of_text.call_count == 3
  figures, page = read(tmp_path)
  assert figures["means"].keys() == ALONE | OF_PICTURE | {"first_frame_lpips"}
  assert all(0 < x < 9 for x in figures["means"]["first_frame_lpips"].values())
  assert "losses" not in figures
  rows = {row["name"]: row for row in figures["clips"]}
  assert rows.keys() == {"coffee.jpg", "chelsea.jpg", "rocket.jpg"}
  assert sorted(row["seed"] for row in rows.values()) == [0, 1, 2]
  for column in ("base", "refined"):
    values = [row[column]["steadiness"] for row in rows.values()]
    expected = pytest.approx(np.mean(values))
    assert figures["means"]["steadiness"][column] == expected
  assert "the coffee &lt;moves&gt; &amp; shines" in page
  assert len(videos(page)) == 3 * 2
  for name in figures["means"]:
    assert METRICS[name] in page


def test_one_stage_and_towers_of_other_weights(
  run, weights, pictures, tmp_path
):
  argv = ("evaluate", "--weights", weights, "--pictures", pictures)
  argv = (*argv, "--stage", "base", "--num-clips", 1, "--steps", 1, "--output")
  status, lines = run(*argv, tmp_path / "own")
  assert status == 0
  assert any("1 of 3 inputs are drawn" in line for line in lines)
  own, _ = read(tmp_path / "own")
  assert [*own["settings"]["settings"]] == ["base"]
  assert own["settings"]["settings"]["base"]["num_steps"] == 1
  assert own["means"]["motion"].keys() == {"base"}
  run(*argv, tmp_path / "with", "--clip", write_cascade(tmp_path / "c", seed=1))
  other, _ = read(tmp_path / "with")
  assert own["means"]["steadiness"] == other["means"]["steadiness"]
  assert own["means"]["image_similarity"] != other["means"]["image_similarity"]


def test_dataset_has_real_clips_beside(
  run, weights, dataset, tmp_path, monkeypatch
):
  (tmp_path / "my_network.py").write_text(
    "import numpy as np\n"
    "def brightness(frames):\n"
    "  assert frames.dtype == np.uint8 and frames.ndim == 4\n"
    "  return frames.mean(axis=(1, 2, 3))\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  status, lines = run(
    *("evaluate", "--weights", weights, "--dataset", dataset),
    *("--features", "my_network:brightness", "--output", tmp_path / "made"),
  )
  assert status == 0
  assert any("1 of 4 clips have fewer than 2 frames" in line for line in lines)
  figures, page = read(tmp_path / "made")
  distances = DISTANCES | {"frechet_distance"}
  assert figures["means"].keys() == ALONE | OF_PICTURE | distances
  for name, columns in figures["means"].items():
    real = {"real"} if name in ALONE else set()
    assert columns.keys() == {"base", "refined"} | real, name
  assert [row["prompt"] for row in figures["clips"]] == [
    "clip 0", "clip 1", "clip 3",
  ]  # fmt: skip
  assert figures["losses"].keys() == {"base", "refined"}
  assert [*figures["losses"]["refined"]] == ["7"]
  loss = figures["losses"]["base"]["300"]
  row = f"loss at timestep 300</td>.*>{loss:.3f}</td>.*></td>.*></td>"
  assert re.search(row, page.replace("\n", ""))
  assert page.count("data:image/png") == 2
  shown = videos(page)
  assert len(shown) == 3 * 3
  # A step of 20 levels between the frames of the real clip.
  real = shown[2].astype(int)
  assert np.median(real[1] - real[0]) == pytest.approx(20, abs=3)


def test_the_loss_is_of_the_clips_that_are_made(run, weights, tmp_path):
  clips = {
    f"c{n}": counting_clip(f"c{n}", (96, 64), NUM_FRAMES, ["x"], fps=4 + n)
    for n in range(5)
  }

  def evaluate(name, clips):
    dataset = write_dataset(tmp_path / name, "text_video", clips)
    status, _ = run(
      *("evaluate", "--weights", weights, "--dataset", dataset),
      *("--stage", "base", "--steps", 1, "--num-clips", 1),
      *("--output", tmp_path / name),
    )
    assert status == 0
    figures, _ = read(tmp_path / name)
    [row] = figures["clips"]
    return row["name"], figures["losses"]

  drawn, losses = evaluate("all", [*clips.values()])
  assert evaluate("one", [clips[drawn]]) == (drawn, losses)
  other = next(name for name in clips if name != drawn)
  assert evaluate("other", [clips[other]]) != (other, losses)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--pictures", "x", "--dataset", "y"], "exclude each other"),
    (["--pictures", "x", "--photographs", "y"], "procedural worlds"),
    (["--clip", "x"], "--clip is for --pictures or --dataset"),
    (["--lpips", "x"], "--lpips is for --pictures or --dataset"),
    (["--pictures", "x", "--features", "a:b"], "compare with real clips"),
    (["--pictures", "x", "--i3d", "y"], "compare with real clips"),
    (["--dataset", "x", "--i3d", "y", "--features", "a:b"], "exclude each"),
  ],
)
def test_flags_without_effect_are_refused(refused, tmp_path, flags, message):
  line = refused("evaluate", *flags, "--output", tmp_path / "made")
  assert message in line
  assert not (tmp_path / "made").exists()


def test_stages_that_do_not_suit_are_refused(
  refused, weights, pictures, tmp_path
):
  argv = ("evaluate", "--weights", weights, "--output", tmp_path)
  line = refused(*argv, "--stage", "base")
  assert "need both stages of a cascade, and the base stage is used" in line
  line = refused(*argv, "--stage", "refine", "--pictures", pictures)
  assert "a refine stage alone makes no video of a picture" in line
  line = refused(*argv, "--num-frames", 1, "--pictures", pictures)
  assert "one frame is no video" in line


def test_features_need_several_real_clips(refused, weights, tmp_path):
  argv = ("evaluate", "--weights", weights, "--features", "math:sqrt")
  argv = (*argv, "--output", tmp_path / "made", "--dataset")
  jpeg = encode_jpeg(np.zeros((32, 48, 3), np.uint8))
  stills = [Example(jpeg, ["x"], f"s{n}", 1, 48, 32) for n in range(2)]
  stills = write_dataset(tmp_path, "text_image", stills)
  line = refused(*argv, stills)
  assert "--features compare two or more real clips" in line


def test_network_of_videos_is_tried_on_a_real_clip_first(
  run, weights, dataset, tmp_path
):
  class Small(torch.nn.Module):
    def forward(
      self, x, rescale: bool = True, resize: bool = True,
      return_features: bool = False,
    ):  # fmt: skip
      return torch.nn.functional.avg_pool3d(x, 9).flatten(1)

  torch.jit.script(Small()).save(str(tmp_path / "i3d.pt"))
  status, lines = run(
    *("evaluate", "--weights", weights, "--dataset", dataset),
    *("--i3d", tmp_path / "i3d.pt", "--output", tmp_path / "made"),
  )
  assert status == 2
  assert "i3d.pt does not take a clip of 2 frames of 64x64" in lines[-1]


def test_bad_output_is_refused_first(refused, weights, tmp_path):
  (tmp_path / "file").write_text("")
  line = refused(
    *("evaluate", "--weights", weights, "--output", tmp_path / "file")
  )
  assert str(tmp_path / "file") in line


def test_table_has_every_figure():
  figures = {"clips": 3, "first_frame_psnr": [42.0, 40.25]}
  figures["by_name"] = {"grows": "1 of 2"}
  names = ["figure", "value", "95 % reach"]
  rows = [*evaluate.rows(figures)]
  section = Section("World", names, rows, [], {}, {}, [])
  lines = [line.split() for line in evaluate.table(section)]
  assert lines == [
    ["World"],
    ["figure", "value", "95", "%", "reach"],
    ["clips", "3"],
    ["first", "frame", "psnr", "42.000", "40.250"],
    ["by", "name"],
    ["grows", "1", "of", "2"],
  ]
