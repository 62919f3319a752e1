"""`i2vgen sample`, from files to files, on a small untrained cascade."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from cascade_standin import NUM_FRAMES
from PIL import Image

from data_pipelines.media import video
from i2vgen_jax.interop import StoredNetwork
from i2vgen_jax.stage import Stage

pytestmark = pytest.mark.usefixtures("quick_compiler")

PROMPT = "a red disc moves left"


@pytest.fixture
def command(weights, photos, tmp_path):
  """A command line that works; a keyword replaces or, as None, drops one."""

  def command(**changes):
    options = {
      "image": photos["square"],
      "prompt": PROMPT,
      "output": tmp_path / "out.mp4",
      "weights": weights,
    }
    options |= changes
    argv = ["sample"]
    for name, value in options.items():
      if value is not None:
        argv += [f"--{name.replace('_', '-')}={value}"]
    return argv

  return command


@pytest.fixture(scope="module")
def made(weights, photos, tmp_path_factory):
  """Runs through the whole cascade, by shape of photo and result."""
  from launch import cli

  folder = tmp_path_factory.mktemp("made")
  for name, size in (
    ("square", "64x64"),
    ("landscape", "96x64"),
    ("portrait", "64x96"),
  ):
    argv = f"--size={size} --output={folder / name}.mp4 --no-progress"
    if name == "landscape":
      argv += " --steps=3 --guidance-scale=1.5"
    options = [f"--image={photos[name]}", f"--prompt={PROMPT}"]
    assert (
      cli.main(["sample", *options, f"--weights={weights}", *argv.split()]) == 0
    )
  return folder


SHAPES = [("square", 64, 64), ("landscape", 96, 64), ("portrait", 64, 96)]


@pytest.mark.parametrize(("name", "width", "height"), SHAPES)
def test_photo_of_any_shape_becomes_a_video(made, name, width, height):
  frames, times = video.decode_mp4(made / f"{name}.mp4")
  assert frames.shape == (NUM_FRAMES, height, width, 3)
  np.testing.assert_allclose(times, np.arange(NUM_FRAMES) / 8, atol=1e-4)


@pytest.mark.parametrize(("name", "width", "height"), SHAPES)
def test_sheet_has_input_base_and_refined(made, name, width, height):
  sheet = Image.open(made / f"{name}.png")
  cell = 160 * height // max(width, height)
  assert 3 * cell < sheet.height < 3 * (cell + 30) + 80
  # Labels, and pictures that are not all alike.
  assert np.asarray(sheet).std() > 20


def test_json_has_every_setting(made, photos, weights):
  report = json.loads((made / "landscape.json").read_text())
  assert report["prompt"] == PROMPT
  assert report["seed"] == 0
  assert report["stage"] == "cascade"
  assert report["tokens_cut"] == {"base": 0, "refine": 0}
  height, width = np.asarray(Image.open(photos["landscape"])).shape[:2]
  assert report["input"]["path"] == str(photos["landscape"])
  assert (report["input"]["width"], report["input"]["height"]) == (
    width,
    height,
  )
  base, refine = (report["settings"][name] for name in ("base", "refine"))
  assert base["size"] == [48, 32] and refine["size"] == [96, 64]
  assert base["num_frames"] == refine["num_frames"] == NUM_FRAMES
  assert base["solver"] == "ddim" and refine["start_timestep"] == 300
  # Settings of the command line apply to the base stage only.
  assert base["guidance_scale"] == 1.5 and base["num_steps"] == 3
  assert refine["guidance_scale"] == 1.0 and refine["num_steps"] == 2
  assert report["weights"]["folder"] == str(weights)
  assert not report["weights"]["bundled"]
  assert set(report["weights"]["config"]) == {
    "vae",
    "text_encoder",
    "image_encoder",
    "base",
    "refine",
  }
  assert report["versions"]["jax"] and report["versions"]["i2vgen-jax"]
  assert set(report["seconds"]) == {"load", "base", "refine", "encode"}


def test_shortened_evaluations_change_the_video_a_little(
  run, command, made, tmp_path
):
  shortcuts = {"reuse_every": 2, "guidance_interval": "300-999"}
  status, _ = run(*command(size="64x64", **shortcuts))
  assert status == 0
  settings = json.loads((tmp_path / "out.json").read_text())["settings"]
  assert settings["base"]["reuse_every"] == 2
  assert settings["base"]["guidance_interval"] == [300, 999]
  assert settings["refine"]["reuse_every"] == 1
  assert (made / "square.mp4").read_bytes() != (
    tmp_path / "out.mp4"
  ).read_bytes()


def test_sixteen_devices_make_the_video_of_one(command, tmp_path):
  """Guidance branches over `data`, frames over `frames`."""
  clips = []
  for layout in (None, "data=2,frames=8"):
    argv = command(num_frames=8, mesh=layout, stage="base")
    environment = os.environ | {
      "XLA_FLAGS": "--xla_force_host_platform_device_count=16",
      "JAX_PLATFORMS": "cpu",
    }
    subprocess.run(
      [sys.executable, "-m", "launch.cli", *argv], check=True, env=environment
    )
    frames, _ = video.decode_mp4(tmp_path / "out.mp4")
    clips.append(frames.astype(int))
  assert clips[0].shape[0] == 8
  # Sums in another order differ by a gray level, H.264 makes a few of it.
  assert np.abs(clips[0] - clips[1]).mean() < 0.5


def test_nothing_else_is_left(made):
  assert sorted(p.name for p in made.iterdir()) == sorted(
    f"{name}.{suffix}"
    for name, *_ in SHAPES
    for suffix in ("mp4", "png", "json")
  )


def test_same_seed_same_video(run, command, made, tmp_path):
  status, _ = run(*command(size="64x64"))
  assert status == 0
  first = (made / "square.mp4").read_bytes()
  assert (tmp_path / "out.mp4").read_bytes() == first
  status, _ = run(*command(size="64x64", seed=1))
  assert status == 0
  assert (tmp_path / "out.mp4").read_bytes() != first


def test_lines_of_a_run(run, command):
  status, lines = run(*command())
  assert status == 0
  for name in ("base", "refine"):
    of_stage = [line for line in lines if line.startswith(f"{name}:")]
    assert "compiling" in of_stage[0]
    assert of_stage[-1].startswith(f"{name}: done in")
    assert len(of_stage) <= 12
  assert lines[-1].startswith("i2vgen: wrote")
  status, lines = run(*command(), "--no-progress")
  assert status == 0
  assert len(lines) == 1


def test_solver_and_negative_prompt_are_of_the_first_stage(
  run, command, tmp_path
):
  status, _ = run(*command(solver="heun", negative_prompt="a blue disc"))
  assert status == 0
  report = json.loads((tmp_path / "out.json").read_text())
  base, refine = (report["settings"][name] for name in ("base", "refine"))
  assert base["solver"] == "heun"
  assert base["negative_prompt"] == "a blue disc"
  assert refine["solver"] == "dpmpp_2m" and refine["negative_prompt"] == ""


def test_base_alone(run, command, tmp_path):
  status, _ = run(*command(stage="base"))
  assert status == 0
  frames, _ = video.decode_mp4(tmp_path / "out.mp4")
  assert frames.shape == (NUM_FRAMES, 32, 32, 3)
  report = json.loads((tmp_path / "out.json").read_text())
  assert list(report["settings"]) == ["base"]


def test_refine_works_over_a_video(run, command, tmp_path):
  """Its first frames, cropped to the shape of the result."""
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
  clip = tmp_path / "low.mp4"
  clip.write_bytes(video.encode_mp4(frames, 8))
  status, _ = run(
    *command(image=clip, stage="refine", num_frames=NUM_FRAMES, seed=3)
  )
  assert status == 0
  made, times = video.decode_mp4(tmp_path / "out.mp4")
  assert made.shape == (NUM_FRAMES, 64, 64, 3)
  assert times[1] == pytest.approx(1 / 8, abs=1e-4)


def test_refine_holds_a_photo_still(run, command, tmp_path):
  status, _ = run(*command(stage="refine"))
  assert status == 0
  report = json.loads((tmp_path / "out.json").read_text())
  assert report["settings"]["refine"]["num_frames"] == NUM_FRAMES
  assert report["input"]["num_frames"] == 1


def test_long_prompt_is_cut_with_a_notice(run, command, tmp_path):
  status, lines = run(*command(prompt="q " * 100, stage="base"))
  assert status == 0
  # One token per letter; 2 of the 32 tokens are the start and end tokens.
  line = "i2vgen: the prompt is too long: its last 70 tokens were cut: q q q"
  assert len([x for x in lines if x.startswith(line)]) == 1
  assert not any("Warning" in line for line in lines)
  report = json.loads((tmp_path / "out.json").read_text())
  assert report["tokens_cut"] == {"base": 70}


def test_bundled_weights_are_named(run, command, weights, monkeypatch):
  monkeypatch.setattr("launch.weights.BUNDLED", weights)
  status, lines = run(*command(weights=None, stage="base"))
  assert status == 0
  assert any("small cascade of this package" in line for line in lines)


# ---- What is refused ----


@pytest.fixture
def no_work(monkeypatch):
  """Errors must be found before a network runs."""

  def fail(*args, **kwargs):
    raise AssertionError("the networks ran")

  monkeypatch.setattr(Stage, "generate", fail)


@pytest.fixture
def refuses(refused, command, no_work, tmp_path):
  """Runs an invalid command, which must write no file; returns the error."""

  def refuses(**changes):
    before = sorted(tmp_path.rglob("*"))
    line = refused(*command(**changes))
    assert sorted(tmp_path.rglob("*")) == before
    return line

  return refuses


@pytest.mark.parametrize(
  ("changes", "part"),
  [
    ({"image": "absent.jpg"}, "cannot read picture absent.jpg"),
    ({"image": None}, "--image"),
    ({"output": None}, "--output"),
    ({"prompt": None}, "prompt is empty"),
    ({"prompt": ""}, "prompt is empty"),
    ({"prompt": " \t\n"}, "prompt is empty"),
    ({"prompt": "&nbsp;"}, "prompt is empty"),
    ({"prompt": "\udcff"}, "UTF-8"),
    ({"num_frames": 0}, "--num-frames: 0 is too small"),
    ({"num_frames": -2}, "--num-frames: -2 is too small"),
    ({"steps": 0}, "--steps: 0 is too small"),
    ({"steps": -3}, "--steps: -3 is too small"),
    ({"steps": "few"}, "'few'"),
    ({"steps": 5000}, "5000 sampling steps"),
    ({"stage": "refine", "steps": 400}, "use 1 to 301"),
    ({"guidance_scale": "nan"}, "--guidance-scale"),
    ({"guidance_scale": "inf"}, "--guidance-scale"),
    ({"guidance_interval": "800-200"}, "got 800 and 200"),
    ({"guidance_interval": "0-1000"}, "got 0 and 1000"),
    ({"guidance_interval": "200"}, "is not LOWEST-HIGHEST"),
    ({"mesh": "frames=0"}, "does not fit 8 devices"),
    ({"mesh": "frames=3"}, "does not fit 8 devices"),
    ({"mesh": "rows=2"}, "with the axes data, fsdp, frames"),
    ({"reuse_every": 0}, "--reuse-every: 0 is too small"),
    ({"fps": 0}, "--fps"),
    ({"seed": -1}, "--seed"),
    ({"size": "64"}, "WIDTHxHEIGHT"),
    ({"size": "0x64"}, "--size"),
    ({"size": "100x64"}, "the nearest that fits is 96x64"),
    ({"size": "4096x8"}, "too elongated"),
    ({"size": "16384x16384", "stage": "base"}, "cannot crop to 16384"),
    ({"stage": "middle"}, "--stage"),
    ({"solver": "euler"}, "--solver"),
    ({"negative_prompt": "\udcff"}, "UTF-8"),
    ({"frames": 3}, "--frames"),
    ({"weights": ""}, "--weights: the path is empty"),
    ({"weights": "http://host/w"}, "--weights: http://host/w is a URL"),
    ({"image": "http://host/x.png"}, "--image: http://host/x.png is a URL"),
    ({"image": ""}, "--image: the path is empty"),
    ({"output": "http://host/x.mp4"}, "--output: http://host/x.mp4 is a URL"),
    ({"weights": "absent"}, "no weights at absent"),
    ({"output": "absent/out.mp4"}, "no folder absent"),
    ({"output": "out.gif"}, "not an .mp4 file"),
  ],
)
def test_bad_argument(refuses, changes, part):
  assert part in refuses(**changes)


@pytest.fixture
def damaged(photos, tmp_path):
  """A folder of files that cannot be decoded."""
  whole = photos["square"].read_bytes()
  contents = {
    "empty.jpg": b"",
    "truncated.jpg": whole[: len(whole) // 2],
    "text.png": b"This is no picture.\n",
    "empty.mp4": b"",
    "text.mp4": b"This is no video.\n" * 100,
  }
  for name, content in contents.items():
    (tmp_path / name).write_bytes(content)
  return tmp_path


@pytest.mark.parametrize("stage", ["cascade", "base", "refine"])
@pytest.mark.parametrize(
  ("name", "part"),
  [
    ("empty.jpg", "is empty (0 bytes)"),
    ("truncated.jpg", "is damaged"),
    ("text.png", "is not a picture"),
    ("empty.mp4", "is empty (0 bytes)"),
    ("text.mp4", ""),
    ("", "is a directory"),
  ],
)
def test_bad_input_file(refuses, damaged, stage, name, part):
  line = refuses(image=damaged / name, stage=stage)
  assert part in line
  assert str(damaged / name) in line


def test_truncated_video(refuses, tmp_path):
  whole = video.encode_mp4(np.zeros((8, 64, 64, 3), np.uint8), 8)
  clip = tmp_path / "clip.mp4"
  clip.write_bytes(whole[: len(whole) // 2])
  assert str(clip) in refuses(image=clip, stage="refine")


def test_video_shorter_than_asked_for(refuses, tmp_path):
  clip = tmp_path / "clip.mp4"
  clip.write_bytes(video.encode_mp4(np.zeros((3, 64, 64, 3), np.uint8), 8))
  line = refuses(image=clip, stage="refine", num_frames=9)
  assert "has 3 frames, fewer than the 9 asked for" in line


def test_input_is_not_overwritten(refuses, photos, tmp_path):
  photo = tmp_path / "out.png"
  shutil.copy(photos["portrait"], photo)
  assert "overwrite the input" in refuses(image=photo)


def test_weights_that_are_not_a_cascade(refuses, photos, tmp_path):
  assert "no weights in" in refuses(weights=tmp_path)
  assert "holds no weights" in refuses(weights=photos["square"])


def test_a_lora_that_is_not_one(refuses, photos, tmp_path):
  assert "pytorch_lora_weights.safetensors" in refuses(lora=tmp_path)
  line = refuses(lora=photos["square"])
  assert "not a safetensors file" in line


def test_weights_of_another_variant(refuses, weights, tmp_path):
  damaged = shutil.copytree(weights, tmp_path / "weights")
  shutil.rmtree(damaged / "base" / "params")
  shutil.copytree(damaged / "refine" / "params", damaged / "base" / "params")
  assert "weights do not fit the network" in refuses(weights=damaged)


@pytest.fixture
def without(weights, tmp_path):
  """A copy of the cascade that lacks some of its folders."""

  def without(*names):
    leave_out = shutil.ignore_patterns(*names)
    return shutil.copytree(weights, tmp_path / "some", ignore=leave_out)

  return without


@pytest.fixture
def no_load(monkeypatch):
  """Missing parts must be found before large weights are read."""

  def fail(*args, **kwargs):
    raise AssertionError("weights were read")

  monkeypatch.setattr(StoredNetwork, "load", fail)


@pytest.mark.parametrize("stage", ["refine", "cascade"])
def test_stage_that_the_weights_lack(refuses, without, no_load, stage):
  line = refuses(weights=without("refine"), stage=stage)
  assert "no refine stage in" in line and "it has base" in line


def test_no_stage_at_all(refuses, without, no_load):
  line = refuses(weights=without("refine", "base"))
  assert "neither base nor refine in" in line


def test_tower_that_the_weights_lack(refuses, without, no_load):
  line = refuses(weights=without("image_encoder"))
  assert "stage base needs image_encoder" in line


def test_tokenizer_that_the_weights_lack(refuses, without, no_load):
  line = refuses(weights=without("tokenizer"), stage="refine")
  assert "no tokenizer in" in line and "vocab.json and merges.txt" in line


def test_weights_of_one_stage_run_it(run, command, without, tmp_path):
  status, _ = run(*command(weights=without("refine")))
  assert status == 0
  report = json.loads((tmp_path / "out.json").read_text())
  assert report["stage"] == "base" and list(report["settings"]) == ["base"]


def test_no_memory_is_one_line(refused, command, monkeypatch, tmp_path):
  def fail(*args, **kwargs):
    raise MemoryError

  monkeypatch.setattr(Stage, "generate", fail)
  line = refused(*command(), "--no-progress")
  assert "not enough memory" in line
  assert not list(tmp_path.iterdir())


def test_a_run_needs_no_training_packages(weights, photos, tmp_path):
  """Where the packages of the extra `data` are not installed at all."""
  absent = ("tensorflow", "tensorflow_datasets", "clu", "grain", "torch")
  script = f"""
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
  @classmethod
  def find_spec(cls, name, *args):
    if name.partition(".")[0] in {absent}:
      return None
    return super().find_spec(name, *args)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
import jax
jax.config.update("jax_disable_most_optimizations", True)
from launch import cli
status = cli.main(sys.argv[1:])
loaded = [n for n in {absent} if n in sys.modules]
sys.exit(status or (str(loaded) if loaded else 0))
"""
  argv = ["sample", f"--image={photos['square']}", f"--prompt={PROMPT}"]
  argv += [f"--weights={weights}", f"--output={tmp_path / 'out.mp4'}"]
  done = subprocess.run(
    [sys.executable, "-c", script, *argv, "--stage=base"],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  of_ours = ("base: ", "i2vgen: ")
  assert all(line.startswith(of_ours) for line in done.stderr.splitlines())
  assert (tmp_path / "out.mp4").stat().st_size > 0
