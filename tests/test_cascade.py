"""Both stages on random weights: what steers them, and what they refuse."""

import dataclasses
import shutil

import cascade_standin
import jax
import numpy as np
import pytest
from cascade_standin import BASE_SIZE, NUM_FRAMES, REFINED_SIZE

from i2vgen_jax import programs
from i2vgen_jax.cascade import Cascade
from i2vgen_jax.errors import InputError
from i2vgen_jax.models import build

PROMPT = "a red disc moves left"


@pytest.fixture(scope="module", autouse=True)
def quick_compiler():
  with cascade_standin.quick_compiler():
    yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return cascade_standin.write_cascade(tmp_path_factory.mktemp("cascade"))


@pytest.fixture(scope="module")
def cascade(folder):
  return Cascade.load(folder)


@pytest.fixture
def copy(folder, tmp_path):
  """A cascade folder to spoil."""
  return shutil.copytree(folder, tmp_path / "cascade")


def picture(seed):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)


def shape(size, num_frames=NUM_FRAMES):
  return (1, num_frames, size[1], size[0], 3)


def changed(clip, other):
  """Whether two clips differ by more than rounding."""
  return np.abs(clip.astype(int) - other).max() > 4


# ---- What they make ----


@pytest.fixture(scope="module")
def base_clip(cascade):
  return cascade.run_base([picture(0)], [PROMPT])


@pytest.fixture(scope="module")
def refined_clip(cascade, base_clip):
  return cascade.run_refine(base_clip, [PROMPT])


def test_base_alone(base_clip):
  assert base_clip.shape == shape(BASE_SIZE)
  assert base_clip.dtype == np.uint8
  assert base_clip.std() > 5


def test_refine_over_the_base_clip(refined_clip):
  assert refined_clip.shape == shape(REFINED_SIZE)
  assert refined_clip.dtype == np.uint8


def test_refine_alone_sees_the_clip(cascade, refined_clip):
  rng = np.random.default_rng(1)
  clip = rng.integers(0, 256, shape(BASE_SIZE), dtype=np.uint8)
  made = cascade.run_refine(clip, [PROMPT])
  assert made.shape == refined_clip.shape
  assert changed(made, refined_clip)


@pytest.mark.parametrize("stage", ["base", "refine"])
def test_same_seed_same_bytes(cascade, base_clip, refined_clip, stage):
  if stage == "base":
    again = cascade.run_base([picture(0)], [PROMPT])
    other = cascade.run_base([picture(0)], [PROMPT], seed=1)
    first = base_clip
  else:
    again = cascade.run_refine(base_clip, [PROMPT])
    other = cascade.run_refine(base_clip, [PROMPT], seed=1)
    first = refined_clip
  np.testing.assert_array_equal(again, first)
  assert changed(other, first)


def test_picture_and_prompt_steer(cascade, base_clip, refined_clip):
  assert changed(cascade.run_base([picture(1)], [PROMPT]), base_clip)
  assert (cascade.run_base([picture(0)], ["up"]) != base_clip).any()
  assert (cascade.run_refine(base_clip, ["up"]) != refined_clip).any()


def test_rows_are_independent(cascade, base_clip):
  """A row depends on its place in the batch, never on the other rows."""

  def run(*seeds):
    prompts = [f"{PROMPT} {seed}" if seed else PROMPT for seed in seeds]
    return cascade.run_base([picture(seed) for seed in seeds], prompts)

  both = run(0, 1)
  # One and two rows are two programs, which may round differently.
  assert not changed(both[0], base_clip[0])
  np.testing.assert_array_equal(both[1], run(2, 1)[1])
  assert changed(both[0], both[1])


def test_rows_of_refine_are_independent(cascade, base_clip, refined_clip):
  both = np.concatenate([base_clip, 255 - base_clip])
  made = cascade.run_refine(both, [PROMPT, "up"])
  assert not changed(made[0], refined_clip[0])
  assert changed(made[1], refined_clip[0])


def test_one_frame(cascade):
  settings = dataclasses.replace(cascade.settings("base"), num_frames=1)
  clip = cascade.run_base([picture(0)], [PROMPT], settings=settings)
  assert clip.shape == shape(BASE_SIZE, 1)


def test_progress_counts_the_evaluations(cascade):
  done = []
  settings = cascade.settings("base")
  number = cascade.check("base", settings)
  cascade.run_base([picture(0)], [PROMPT], progress=done.append)
  assert sorted(done) == list(range(1, number + 1))
  assert number == settings.num_steps


def test_stages_of_one_seed_draw_other_noise(cascade, monkeypatch):
  """Else the refine stage would undo what the base stage was given."""
  keys = []

  def record(*args, **_):
    keys.append(args[-1])
    return np.zeros(shape(BASE_SIZE), np.uint8)

  for name in ("base", "refine"):
    monkeypatch.setattr(programs, name, record)
  cascade.run_base([picture(0)], [PROMPT])
  cascade.run_refine(np.zeros(shape(BASE_SIZE), np.uint8), [PROMPT])
  assert keys[0] != keys[1]


# ---- Sizes ----


def test_base_size_keeps_the_shape(cascade):
  assert cascade.base_size(REFINED_SIZE) == BASE_SIZE
  assert cascade.base_size((128, 64)) == (64, 32)
  assert cascade.base_size((8, 8)) == (8, 8)


def with_fields(cascade, name, **fields):
  network = getattr(cascade, name)
  network = dataclasses.replace(network, module=network.module.clone(**fields))
  return dataclasses.replace(cascade, **{name: network})


@pytest.mark.parametrize("padding", [1, 2])
@pytest.mark.parametrize("size", [(60, 33), (1, 100), (1280, 700), (-8, 64)])
def test_refused_size_names_one_that_fits(cascade, size, padding):
  cascade = with_fields(cascade, "refine", height_padding=padding)
  settings = cascade.settings("refine")
  with pytest.raises(InputError, match=f"size {size[0]}x{size[1]}") as error:
    cascade.check("refine", dataclasses.replace(settings, size=size))
  near = str(error.value).rpartition(" ")[2].split("x")
  near = tuple(int(side) for side in near)
  cascade.check("refine", dataclasses.replace(settings, size=near))
  assert abs(near[0] - max(size[0], 8)) + abs(near[1] - size[1]) <= 16


def test_full_refine_unet_takes_its_own_sizes(cascade):
  """Variant (b) has four levels: rows of latents are 8 n + 2."""
  cascade = with_fields(
    cascade, "refine", height_padding=2, block_channels=(8,) * 4
  )
  settings = dataclasses.replace(cascade.settings("refine"), size=(1280, 720))
  cascade.check("refine", settings)
  with pytest.raises(InputError, match="the nearest that fits is 1280x720"):
    cascade.check("refine", dataclasses.replace(settings, size=(1280, 704)))


# ---- Settings ----


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"num_frames": 0}, "0 frames"),
    ({"num_frames": -2}, "-2 frames"),
    ({"num_steps": 0}, "0 sampling steps"),
    ({"num_steps": -3}, "-3 sampling steps"),
    ({"num_steps": 1001}, "use 1 to 1000"),
    ({"guidance_scale": float("nan")}, "guidance scale nan"),
    ({"guidance_scale": float("inf")}, "guidance scale inf"),
    ({"fps": 0.0}, "0.0 fps"),
    ({"solver": "euler"}, "'euler'"),
    ({"spacing": "wide"}, "'wide'"),
  ],
)
def test_impossible_settings_are_refused(cascade, change, message):
  settings = cascade.settings("base")
  if "num_steps" in change:
    settings = dataclasses.replace(settings, solver="dpmpp_2m")
  settings = dataclasses.replace(settings, **change)
  with pytest.raises(InputError, match=message):
    cascade.run_base([picture(0)], [PROMPT], settings=settings)


def test_one_prompt_per_picture(cascade):
  with pytest.raises(InputError, match="1 inputs but 2 prompts"):
    cascade.run_base([picture(0)], [PROMPT, PROMPT])
  with pytest.raises(InputError, match="0 inputs"):
    cascade.run_base([], [])


# ---- Folders ----


def test_no_folder(tmp_path):
  with pytest.raises(InputError, match="no cascade folder"):
    Cascade.load(tmp_path / "absent")


def test_folder_of_something_else(tmp_path):
  with pytest.raises(InputError, match="no vae"):
    Cascade.load(tmp_path)


@pytest.mark.parametrize(
  ("part", "message"),
  [
    ("vae", "no vae"),
    ("tokenizer", "tokenizer"),
    ("base/config.json", "no base in"),
  ],
)
def test_missing_part_is_named(copy, part, message):
  path = copy / part
  path.unlink() if path.is_file() else shutil.rmtree(path)
  with pytest.raises(InputError, match=message):
    Cascade.load(copy)


@pytest.mark.parametrize("tower", ["text_encoder", "image_encoder"])
def test_missing_tower_is_named(cascade, tower):
  cascade = dataclasses.replace(cascade, **{tower: None})
  with pytest.raises(InputError, match=f"stage base needs {tower}"):
    cascade.run_base([picture(0)], [PROMPT])


def test_one_stage_is_enough(copy):
  shutil.rmtree(copy / "base")
  cascade = Cascade.load(copy)
  cascade.check("refine", cascade.settings("refine"))
  with pytest.raises(InputError, match="no base stage"):
    cascade.settings("base")
  shutil.rmtree(copy / "refine")
  with pytest.raises(InputError, match="neither base nor refine"):
    Cascade.load(copy)


# Orbax closes its event loop while other reads are still under way.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("part", [0, 0.5])
def test_truncated_weights_are_refused(copy, cascade, part):
  """Whichever file it hits: refused in one line, or not needed at all."""
  folder = copy / "text_encoder"
  refused = 0
  for path in sorted(p for p in folder.rglob("*") if p.is_file()):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    try:
      params = build.load(folder).params
    except InputError as e:
      assert "damaged" in str(e) or "cannot read" in str(e)
      refused += 1
    else:
      whole = cascade.text_encoder.params
      jax.tree.map(np.testing.assert_array_equal, params, whole)
    path.write_bytes(data)
  assert refused >= 4


def test_no_weights_at_all(copy):
  shutil.rmtree(copy / "vae" / "params")
  with pytest.raises(InputError, match="weights missing or damaged"):
    Cascade.load(copy)


def test_config_that_is_no_json(copy):
  path = copy / "vae" / "config.json"
  path.write_text(path.read_text()[:40])
  with pytest.raises(InputError, match="cannot read"):
    Cascade.load(copy)


def _drop(*keys):
  def change(config):
    for key in keys[:-1]:
      config = config[key]
    del config[keys[-1]]

  return change


def _put(value, *keys):
  def change(config):
    for key in keys[:-1]:
      config = config[key]
    config[keys[-1]] = value

  return change


@pytest.mark.parametrize(
  ("part", "change", "message"),
  [
    ("vae", _drop("scaling_factor"), "scaling_factor"),
    ("base", _drop("sampling"), "sampling"),
    ("base", _drop("diffusion"), "diffusion"),
    ("base", _drop("sampling", "size"), "'size'"),
    ("base", _drop("diffusion", "schedule"), "'schedule'"),
    ("base", _put(1, "sampling", "eta"), "'eta'"),
    ("base", _put(1, "module", "depth"), "'depth'"),
    ("base", _put([8, 8, 8], "module", "block_channels"), "another variant"),
    ("vae", _put(4, "module", "latent_channels"), "another variant"),
  ],
)
def test_config_that_does_not_go_with_the_rest(copy, part, change, message):
  cascade_standin.rewrite_config(copy / part, change)
  with pytest.raises(InputError, match=message):
    Cascade.load(copy)


@pytest.mark.parametrize(
  ("source", "target"),
  [("refine", "base"), ("base", "refine"), ("vae", "base")],
)
def test_weights_of_another_variant(copy, source, target):
  shutil.rmtree(copy / target / "params")
  shutil.copytree(copy / source / "params", copy / target / "params")
  with pytest.raises(InputError, match="weights of another variant"):
    build.load(copy / target)


@pytest.mark.parametrize("name", ["base", "refine"])
def test_a_stage_in_place_of_the_other(cascade, name):
  other = {"base": cascade.refine, "refine": cascade.base}[name]
  cascade = dataclasses.replace(cascade, **{name: other})
  with pytest.raises(InputError, match="weights of another variant"):
    cascade.check(name, cascade.settings(name))


@pytest.mark.parametrize(
  ("tower", "field"),
  [
    ("vae", "latent_channels"),
    ("text_encoder", "width"),
    ("image_encoder", "projection_dim"),
  ],
)
def test_towers_of_another_width(cascade, tower, field):
  cascade = with_fields(cascade, tower, **{field: 24})
  with pytest.raises(InputError, match=f"{tower} has {field} 24"):
    cascade.check("base", cascade.settings("base"))
