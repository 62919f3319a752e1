"""`i2vgen vbench`: the suite's layout, continuing, and its results."""

import numpy as np
import pytest
from cascade_standin import NUM_FRAMES, REFINED_SIZE
from PIL import Image

from data_pipelines.media import video
from i2vgen_jax.files import write_json
from launch import vbench

PROMPTS = ("a dog runs - fast, camera pans left", "a lake.")


@pytest.fixture
def suite(tmp_path):
  """The list of prompts, and the folder of images."""
  images = tmp_path / "crop"
  images.mkdir()
  rows = []
  for level, prompt in enumerate(PROMPTS):
    name = f"{prompt}.jpg"
    Image.new("RGB", (90, 50), (100 * level,) * 3).save(images / name)
    rows.append(
      {"image_name": name, "prompt_en": prompt, "dimension": ["i2v_subject"]}
    )
  # The same pair, for another dimension.
  rows.append(rows[0] | {"dimension": ["camera_motion"]})
  write_json(tmp_path / "info.json", rows)
  return tmp_path / "info.json", images


def test_videos_are_named_for_the_suite_and_continued(
  run, weights, suite, tmp_path
):
  info, images = suite
  argv = ("vbench", "videos", "--weights", weights, "--num-videos", 2)
  argv = (*argv, "--info", info, "--images", images, "--output", tmp_path / "v")
  status, lines = run(*argv)
  assert status == 0
  assert any("4 of 4 videos are missing" in line for line in lines)
  made = {path.name: path.read_bytes() for path in (tmp_path / "v").iterdir()}
  assert made.keys() == {f"{p}-{n}.mp4" for p in PROMPTS for n in range(2)}
  frames, _ = video.decode_mp4(made["a lake.-1.mp4"])
  assert frames.shape == (NUM_FRAMES, *REFINED_SIZE[::-1], 3)
  # The videos of a prompt have seeds of their own.
  assert made["a lake.-0.mp4"] != made["a lake.-1.mp4"]
  # A missing one is made again as it was; the others are left alone.
  (tmp_path / "v" / "a lake.-1.mp4").unlink()
  (tmp_path / "v" / "a lake.-0.mp4").write_bytes(b"kept")
  status, lines = run(*argv)
  assert any("1 of 4 videos are missing" in line for line in lines)
  again, _ = video.decode_mp4(tmp_path / "v" / "a lake.-1.mp4")
  np.testing.assert_allclose(again.astype(int), frames, atol=2)
  assert (tmp_path / "v" / "a lake.-0.mp4").read_bytes() == b"kept"


def test_unusable_suites_are_refused(refused, suite, tmp_path):
  info, images = suite
  argv = ("vbench", "videos", "--images", images, "--output", tmp_path / "v")
  line = refused(*argv, "--info", tmp_path / "nowhere.json")
  assert "vbench2_i2v_full_info.json" in line
  write_json(info, [{"image_name": "x.jpg", "prompt_en": "x"}])
  assert "no image" in refused(*argv, "--info", info)
  write_json(info, [{"image": "x.jpg"}])
  assert "'image_name' is missing" in refused(*argv, "--info", info)
  names = [f"{prompt}.jpg" for prompt in PROMPTS]
  write_json(info, [{"image_name": n, "prompt_en": "one"} for n in names])
  assert "two images of the prompt 'one'" in refused(*argv, "--info", info)
  write_json(info, [{"image_name": names[0], "prompt_en": "a/b"}])
  assert "cannot be a file name" in refused(*argv, "--info", info)
  assert not (tmp_path / "v").exists()


def test_results_stand_beside_published_ones(run, refused, tmp_path, capsys):
  assert "no *_eval_results.json" in refused("vbench", "results", tmp_path)
  each = [{"video_path": "a-0.mp4", "video_results": 0.5}]
  for name, value in (("i2v_subject", 0.5), ("imaging_quality", 0.25)):
    write_json(tmp_path / f"{name}_eval_results.json", {name: [value, each]})
  lines = [*map(str.split, vbench.table(vbench.read_results(tmp_path)))]
  assert lines[0] == ["yours", "I2VGen-XL", "SVD-XT-1.1", "DynamiCrafter-1024"]
  rows = {name: cells for name, *cells in lines[1:]}
  assert rows["i2v_subject"] == ["50.00", "96.74", "97.51", "96.71"]
  assert rows["dynamic_degree"] == ["24.96", "43.17", "47.40"]
  assert rows["imaging_quality"] == ["25.00"]
  assert run("vbench", "results", tmp_path)[0] == 0
  write_json(tmp_path / "x_eval_results.json", {"i2v_subject": 3})
  assert "x_eval_results.json" in refused("vbench", "results", tmp_path)
