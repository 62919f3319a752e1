"""`i2vgen_jax.load`: pictures of every kind become videos."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cascade_standin import BASE_SIZE, NUM_FRAMES, REFINED_SIZE
from PIL import Image

import i2vgen_jax
from i2vgen_jax import sharding, stage
from i2vgen_jax.errors import InputError
from i2vgen_jax.kernels import attention

pytestmark = pytest.mark.usefixtures("quick_compiler")

PROMPT = "a red disc moves left"


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
  """The base stage alone, to compile half as much."""
  folder = tmp_path_factory.mktemp("base") / "cascade"
  leave_out = shutil.ignore_patterns("refine")
  return shutil.copytree(weights, folder, ignore=leave_out)


@pytest.fixture(scope="module")
def pipe(folder):
  return i2vgen_jax.load(folder)


@pytest.fixture(scope="module")
def pictures():
  rng = np.random.default_rng(0)
  small = rng.integers(0, 256, (2, 6, 8, 3), np.uint8)
  return [np.asarray(Image.fromarray(x).resize((52, 40))) for x in small]


@pytest.fixture(scope="module")
def alone(pipe, pictures):
  return pipe(pictures[0], PROMPT, seed=3)


def difference(one, other):
  return np.abs(one.astype(int) - other.astype(int)).max()


def test_array(alone):
  width, height = BASE_SIZE
  assert alone.shape == (1, NUM_FRAMES, height, width, 3)
  assert alone.dtype == np.uint8
  assert np.unique(alone).size > 20


def test_transparency_is_laid_on_white_as_on_the_command_line(pipe):
  """The API and the command line open pictures with the same function."""
  rgba = np.zeros((40, 52, 4), np.uint8)
  rgba[:, :26] = (200, 30, 60, 128)
  alpha = rgba[..., 3:] / 255
  on_white = np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha))
  image = Image.fromarray(rgba)
  clip = pipe(image, PROMPT, seed=3)
  expected = pipe(on_white.astype(np.uint8), PROMPT, seed=3)
  assert difference(clip, expected) <= 2


def test_every_kind_of_picture(pipe, pictures, alone, tmp_path):
  path = tmp_path / "photo.png"
  image = Image.fromarray(pictures[0])
  image.save(path)
  for picture in (path, str(path), image, image.convert("RGBA")):
    np.testing.assert_array_equal(pipe(picture, PROMPT, seed=3), alone)


def test_photo_of_a_turned_camera(pipe, pictures, alone, tmp_path):
  path = tmp_path / "photo.png"
  exif = Image.Exif()
  exif[0x0112] = 8  # To be turned a quarter to the left.
  turned = np.rot90(pictures[0], -1)
  Image.fromarray(turned).save(path, exif=exif)
  np.testing.assert_array_equal(pipe(path, PROMPT, seed=3), alone)


def test_what_decides_a_video(pipe, pictures, alone):
  np.testing.assert_array_equal(pipe(pictures[0], PROMPT, seed=3), alone)
  assert difference(pipe(pictures[0], PROMPT, seed=4), alone) > 1
  assert difference(pipe(pictures[1], PROMPT, seed=3), alone) > 1


def test_several_pictures(pipe, pictures, alone):
  clips = pipe(pictures, PROMPT, seed=3)
  assert clips.shape == (2, *alone.shape[1:])
  np.testing.assert_array_equal(clips[:1], alone)
  np.testing.assert_array_equal(clips[1:], pipe(pictures[1], PROMPT, seed=4))
  assert difference(clips[:1], clips[1:]) > 1
  each = pipe(tuple(pictures), [PROMPT, PROMPT], seed=3)
  np.testing.assert_array_equal(each, clips)


def test_cascade(weights, pictures):
  clips = i2vgen_jax.load(weights)(pictures[0], PROMPT, seed=3)
  width, height = REFINED_SIZE
  assert clips.shape == (1, NUM_FRAMES, height, width, 3)
  assert clips.dtype == np.uint8
  assert np.unique(clips).size > 20


def test_half_precision(folder, pictures, alone):
  pipe = i2vgen_jax.load(folder, dtype=jnp.bfloat16)
  for name in ("base", "vae", "text_encoder", "image_encoder"):
    assert pipe.networks[name].module.dtype == jnp.bfloat16
  clips = pipe(pictures[0], PROMPT, seed=3)
  assert clips.shape == alone.shape and clips.dtype == np.uint8
  assert difference(clips, alone) > 0
  error = np.abs(clips.astype(float) - alone).mean()
  assert error < 0.2 * alone.std()


@pytest.mark.parametrize(
  ("data", "fsdp", "frames"),
  [(1, 8, 1), (2, 1, 1), (2, 1, 2), (2, 2, 2), (1, 1, 2)],
)
def test_mesh(folder, pictures, alone, monkeypatch, data, fsdp, frames):
  monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 2**8)
  devices = jax.devices()[: data * fsdp * frames]
  mesh = sharding.make_mesh(data, fsdp, frames, devices=devices)
  pipe = i2vgen_jax.load(folder, mesh=mesh)
  params = pipe.networks["base"].params
  shardings = [leaf.sharding for leaf in jax.tree.leaves(params)]
  assert all(sharding.mesh == mesh for sharding in shardings)
  split = [s for s in shardings if not s.is_fully_replicated]
  assert bool(split) == (fsdp > 1)
  clips = pipe(pictures[0], PROMPT, seed=3)
  assert difference(clips, alone) <= 1


def test_programs_of_a_cpu_are_scheduled_for_memory(
  folder, pictures, monkeypatch
):
  """Results of blocks of queries are not held before their loop begins."""
  monkeypatch.setattr(attention, "MAX_SCORES", 2**16)
  pipe = i2vgen_jax.load(folder, size=(512, 512))

  def temporary_bytes():
    """Of conditioning and start, an evaluation, and the decoder."""
    sizes = []
    monkeypatch.setattr(
      stage,
      "check_fits",
      lambda program, *_: sizes.append(program.memory_analysis()),
    )
    pipe(pictures[0], PROMPT)
    return [size.temp_size_in_bytes for size in sizes]

  scheduled = temporary_bytes()
  monkeypatch.setattr(stage, "_CPU_OPTIONS", {})
  start, evaluation, _ = temporary_bytes()
  assert scheduled[0] < 0.9 * start
  assert scheduled[1] < 0.9 * evaluation


# ---- What is refused, before anything runs ----


@pytest.fixture
def refuses(pipe, monkeypatch):
  """The message of a call that must fail."""

  def ran(*args, **kwargs):
    raise AssertionError("the networks ran")

  monkeypatch.setattr(stage.Stage, "generate", ran)

  def refuses(*args, **kwargs):
    with pytest.raises(InputError) as raised:
      pipe(*args, **kwargs)
    assert "\n" not in str(raised.value)
    return str(raised.value)

  return refuses


def test_bad_files(refuses, tmp_path):
  text = tmp_path / "notes.jpg"
  text.write_text("no picture")
  for path, part in (
    (tmp_path / "absent.jpg", "cannot read picture"),
    (text, "is not a picture"),
    (tmp_path, "is a directory"),
  ):
    line = refuses(path, PROMPT)
    assert part in line and str(path) in line


@pytest.mark.parametrize(
  ("array", "part"),
  [
    (np.zeros((4, 4, 3)), "got float64[4, 4, 3]"),
    (np.zeros((4, 4), np.uint8), "got uint8[4, 4]"),
    (np.zeros((4, 4, 4), np.uint8), "got uint8[4, 4, 4]"),
    (np.zeros((1, 4, 4, 3), np.uint8), "got uint8[1, 4, 4, 3]"),
  ],
)
def test_bad_array(refuses, array, part):
  line = refuses(array, PROMPT)
  assert line == f"a picture given as an array must be uint8[h w 3], {part}"


def test_size_that_does_not_fit(refuses, pictures, folder):
  line = refuses(pictures[0], PROMPT, size=(36, 32))
  assert "size 36x32 does not fit stage base" in line
  assert "the nearest that fits is" in line
  with pytest.raises(InputError, match="size 36x32 does not fit"):
    i2vgen_jax.load(folder, size=(36, 32))


def test_bad_numbers(refuses, pictures):
  image = pictures[0]
  assert "1 inputs but 2 prompts" in refuses(image, [PROMPT, PROMPT])
  assert "0 inputs but 0 prompts" in refuses([], PROMPT)
  assert "num_frames must be at least 1, got 0" in refuses(
    image, PROMPT, num_frames=0
  )
  assert "fps" in refuses(image, PROMPT, fps=0)
  assert "steps" in refuses(image, PROMPT, num_steps=0)
  for seed in (-1, 2**32, [0, 1], []):
    assert "seed must be an integer" in refuses(image, PROMPT, seed=seed)


def test_refine_stage_alone(weights, tmp_path, pictures):
  leave_out = shutil.ignore_patterns("base")
  only = shutil.copytree(weights, tmp_path / "refine", ignore=leave_out)
  pipe = i2vgen_jax.load(only)
  with pytest.raises(InputError, match="a refine stage repairs a clip"):
    pipe(pictures[0], PROMPT)


def test_nothing_there(tmp_path):
  with pytest.raises(InputError, match="no weights at"):
    i2vgen_jax.load(tmp_path / "absent")
