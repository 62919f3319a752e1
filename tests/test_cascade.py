"""Both stages on random weights: what steers them, and what they refuse."""

import dataclasses
import shutil

import cascade_standin
import jax
import jaxtyping
import numpy as np
import pytest
from cascade_standin import BASE_SIZE, NUM_FRAMES, REFINED_SIZE

from i2vgen_jax import autoencoding, interop, stage
from i2vgen_jax.cascade import Cascade
from i2vgen_jax.errors import InputError
from i2vgen_jax.tokenizer import PromptWarning

pytestmark = pytest.mark.usefixtures("quick_compiler")

PROMPT = "a red disc moves left"


@pytest.fixture(scope="module")
def cascade(weights):
  return Cascade.load(weights)


@pytest.fixture
def copy(weights, tmp_path):
  """A cascade folder to spoil."""
  return shutil.copytree(weights, tmp_path / "cascade")


@pytest.fixture
def unchecked():
  """Users run without the annotation checks of the tests."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


def picture(seed):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)


def shape(size, num_frames=NUM_FRAMES):
  return (1, num_frames, size[1], size[0], 3)


def changed(clip, other):
  """Whether two clips differ by more than rounding."""
  return np.abs(clip.astype(int) - other).max() > 4


# ---- What they make ----


def run(cascade, name, inputs, prompts=(PROMPT,), changes=None, **kwargs):
  """Runs one stage, with changed sampling settings."""
  stage = cascade.stage(name).with_sampling(**changes or {})
  return cascade.run(stage, inputs, prompts, **kwargs)


@pytest.fixture(scope="module")
def base_clip(cascade):
  return run(cascade, "base", [picture(0)])


@pytest.fixture(scope="module")
def refined_clip(cascade, base_clip):
  return run(cascade, "refine", base_clip)


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
  made = run(cascade, "refine", clip)
  assert made.shape == refined_clip.shape
  assert changed(made, refined_clip)


def test_cut_words_are_a_warning(cascade):
  with pytest.warns(PromptWarning, match=r"last 5 tokens were cut: moves$"):
    run(cascade, "base", [picture(0)], ["q " * 30 + "moves"])


@pytest.mark.parametrize("name", ["base", "refine"])
def test_same_seed_same_bytes(cascade, base_clip, refined_clip, name):
  if name == "base":
    inputs, first = [picture(0)], base_clip
  else:
    inputs, first = base_clip, refined_clip
  again = run(cascade, name, inputs)
  other = run(cascade, name, inputs, seed=1)
  np.testing.assert_array_equal(again, first)
  assert changed(other, first)


def test_picture_and_prompt_steer(cascade, base_clip, refined_clip):
  assert changed(run(cascade, "base", [picture(1)]), base_clip)
  assert (run(cascade, "base", [picture(0)], ["up"]) != base_clip).any()
  assert (run(cascade, "refine", base_clip, ["up"]) != refined_clip).any()


def test_a_clip_depends_on_its_own_input_and_seed_alone(cascade, base_clip):
  """`seed + i` is the seed of row i, whatever the other rows are."""
  prompts = [PROMPT, f"{PROMPT} 1"]
  both = run(cascade, "base", [picture(0), picture(1)], prompts)
  # One and two rows are two programs, which may round differently.
  assert not changed(both[0], base_clip[0])
  others = [f"{PROMPT} 2", f"{PROMPT} 1"]
  again = run(cascade, "base", [picture(2), picture(1)], others)
  np.testing.assert_array_equal(both[1], again[1])
  alone = run(cascade, "base", [picture(1)], prompts[1:], seed=1)
  assert not changed(both[1], alone[0])
  assert changed(both[0], both[1])


def test_each_input_can_have_a_seed_of_its_own(cascade, base_clip):
  pictures = [picture(0), picture(0)]
  one, other = run(cascade, "base", pictures, [PROMPT] * 2, seed=[7, 0])
  assert not changed(other, base_clip[0])
  assert changed(one, other)


@pytest.mark.parametrize("seed", [-1, 2**32, [0, 1], [2**32]])
def test_impossible_seed_is_refused(cascade, seed):
  with pytest.raises(InputError, match=r"seed must be an integer from 0"):
    run(cascade, "base", [picture(0)], seed=seed)


def test_rows_of_refine_are_independent(cascade, base_clip, refined_clip):
  both = np.concatenate([base_clip, 255 - base_clip])
  made = run(cascade, "refine", both, [PROMPT, "up"])
  assert not changed(made[0], refined_clip[0])
  assert changed(made[1], refined_clip[0])


def test_one_frame(cascade):
  clip = run(cascade, "base", [picture(0)], changes={"num_frames": 1})
  assert clip.shape == shape(BASE_SIZE, 1)


def test_progress_counts_the_evaluations(cascade):
  done = []
  run(cascade, "base", [picture(0)], progress=done.append)
  number = cascade.stage("base").solver.num_evaluations
  assert sorted(done) == list(range(1, number + 1))
  assert number == cascade.stage("base").sampling.num_steps


def test_stages_of_one_seed_draw_other_noise(cascade, monkeypatch):
  """Otherwise the refine stage would undo the noise of the base stage."""
  keys = []

  def record(*args, **_):
    keys.append(args[-1])
    return np.zeros(shape(BASE_SIZE), np.uint8)

  monkeypatch.setattr(stage.Stage, "generate", record)
  run(cascade, "base", [picture(0)])
  run(cascade, "refine", np.zeros(shape(BASE_SIZE), np.uint8))
  assert keys[0] != keys[1]


def test_other_arguments_compile_nothing(cascade):
  """fps, scale, prompts and steps are arguments of the programs."""
  # Without guidance there is no evaluation of the negative prompt.
  guided = {"guidance_scale": 1.5, "num_steps": 3}
  latents = run(cascade, "base", [picture(0)], changes=guided, decode=False)
  events = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: events.append(name)
  )
  sampling = cascade.stage("base").sampling
  for changes in (
    {"fps": sampling.fps + 3},
    {"guidance_scale": 5.5},
    {"negative_prompt": "blurry"},
    {"num_steps": 8},
  ):
    changes = guided | changes
    made = run(cascade, "base", [picture(0)], changes=changes, decode=False)
    assert not np.allclose(made, latents)
  compilation = "/jax/core/compile/backend_compile_duration"
  assert compilation not in events
  longer = {"num_frames": sampling.num_frames + 3}
  run(cascade, "base", [picture(0)], changes=longer, decode=False)
  jax.monitoring.clear_event_listeners()
  assert compilation in events


@pytest.mark.parametrize(
  "changes",
  [{"reuse_every": 2}, {"guidance_interval": (500, 999), "reuse_every": 3}],
)
def test_shortened_evaluations_give_nearly_the_same_latents(cascade, changes):
  steps = {"num_steps": 12}
  made = [
    run(cascade, "base", [picture(0)], changes=steps | more, decode=False)
    for more in ({}, changes)
  ]
  error = np.abs(made[0] - made[1]).max()
  assert 0 < error < 0.2 * made[0].std()


def test_generate_equals_the_scan_of_sample(cascade, monkeypatch):
  """Training draws its pictures by the scan, in one program."""
  base = cascade.stage("base").with_sampling(reuse_every=2, num_steps=5)
  started = []
  start = stage._start

  class Recorded:
    __call__ = start.__call__

    def trace(self, *args, **kwargs):
      started.append((args, kwargs))
      return start.trace(*args, **kwargs)

  monkeypatch.setattr(stage, "_start", Recorded())
  made = cascade.run(base, [picture(0)], ["red"], decode=False)
  [((params, rngs, _), inputs)] = started
  inputs = {k: v for k, v in inputs.items() if k not in ("stage", "guided")}
  keys = jax.vmap(jax.random.split)(rngs)
  latent = made.shape[2:]
  given = base.encode(
    params,
    autoencoding.to_unit_range(inputs["frames"]),
    stage.initial_noise(keys[:, 0], (1, *latent)),
  )
  cond = base.condition(
    params,
    token_ids=inputs["token_ids"],
    clip_images=inputs["clip_images"],
    image_latents=given[:, 0],
    fps=np.full(1, base.sampling.fps, np.float32),
  )
  null_cond = base.unconditional(params, cond, inputs["negative_ids"])
  scanned = jax.jit(
    lambda: base.sample(
      params,
      cond,
      null_cond,
      keys[:, 1],
      made.shape,
      guidance_scale=base.sampling.guidance_scale,
    )
  )()
  np.testing.assert_allclose(made, scanned, rtol=1e-3, atol=1e-3)


def test_towers_stay_in_host_memory_beside_a_chip(
  cascade, weights, monkeypatch
):
  with monkeypatch.context() as patch:
    patch.setattr(jax, "default_backend", lambda: "gpu")
    beside_chip = Cascade.load(weights, np.float32)
  kinds = {
    name: {type(leaf) for leaf in jax.tree.leaves(network.params)}
    for name, network in beside_chip.networks.items()
  }
  for tower in ("vae", "text_encoder", "image_encoder"):
    assert kinds[tower] == {np.ndarray}
  assert np.ndarray not in kinds["base"] | kinds["refine"]
  np.testing.assert_array_equal(
    run(beside_chip, "base", [picture(0)]), run(cascade, "base", [picture(0)])
  )


# ---- Sizes ----


def test_base_size_keeps_the_shape(cascade):
  def base_size(size):
    return cascade.plan(size=size)["base"].sampling.size

  assert base_size(REFINED_SIZE) == BASE_SIZE
  assert base_size((128, 64)) == (64, 32)
  assert base_size((8, 8)) == (8, 8)


def with_fields(cascade, name, part="unet", **fields):
  """Stage `name` with other fields of one of its modules."""
  made = cascade.stage(name)
  module = getattr(made, part).clone(**fields)
  return dataclasses.replace(made, **{part: module})


@pytest.mark.parametrize("padding", [1, 2])
@pytest.mark.parametrize("size", [(60, 33), (1, 100), (1280, 700), (-8, 64)])
def test_refused_size_names_one_that_fits(cascade, size, padding):
  refine = with_fields(cascade, "refine", height_padding=padding)
  with pytest.raises(InputError, match=f"size {size[0]}x{size[1]}") as error:
    refine.with_sampling(size=size)
  near = str(error.value).rpartition(" ")[2].split("x")
  near = tuple(int(side) for side in near)
  refine.with_sampling(size=near)
  assert abs(near[0] - max(size[0], 8)) + abs(near[1] - size[1]) <= 16


def test_full_refine_unet_takes_its_own_sizes(cascade):
  """Variant (b) has four levels: rows of latents are 8 n + 2."""
  refine = cascade.stage("refine").with_sampling(size=(1280, 720))
  unet = refine.unet.clone(height_padding=2, block_channels=(8,) * 4)
  refine = dataclasses.replace(refine, unet=unet)
  with pytest.raises(InputError, match="the nearest that fits is 1280x720"):
    refine.with_sampling(size=(1280, 704))


# ---- Settings ----


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
    ({"num_frames": -2}, "got -2"),
    ({"num_steps": 0}, "0 sampling steps"),
    ({"num_steps": -3}, "-3 sampling steps"),
    ({"num_steps": 1001}, "use 1 to 1000"),
    (
      {"guidance_scale": float("nan")},
      "must be finite, got nan",
    ),
    ({"guidance_scale": float("inf")}, "got inf"),
    ({"fps": 0.0}, "fps must be above 0 and finite, got 0.0"),
    ({"num_frames": "4"}, "num_frames must be int, got '4'"),
    ({"num_steps": 2.5}, "num_steps must be int, got 2.5"),
    ({"fps": "8"}, "fps must be float, got '8'"),
    ({"size": (128,)}, r"size must be \(width, height\) in pixels, got \(128"),
    ({"size": [64, 64]}, "size must be"),
    ({"negative_prompt": None}, "negative_prompt must be str, got None"),
    ({"to_clean": 1}, "to_clean must be bool, got 1"),
    ({"solver": "euler"}, "'euler'"),
    ({"spacing": "wide"}, "'wide'"),
  ],
)
def test_impossible_settings_are_refused(cascade, unchecked, change, message):
  if "num_steps" in change:
    change = change | {"solver": "dpmpp_2m"}
  with pytest.raises(InputError, match=message):
    cascade.stage("base").with_sampling(**change)


def test_one_prompt_per_picture(cascade, unchecked):
  with pytest.raises(InputError, match="1 inputs but 2 prompts"):
    run(cascade, "base", [picture(0)], [PROMPT, PROMPT])
  with pytest.raises(InputError, match="0 inputs"):
    run(cascade, "base", [], [])
  with pytest.raises(InputError, match="prompts must be text, got None"):
    run(cascade, "base", [picture(0)], [None])


# ---- Folders ----


def test_no_folder(tmp_path):
  with pytest.raises(InputError, match="no weights at"):
    Cascade.load(tmp_path / "absent")


def test_folder_of_something_else(tmp_path):
  with pytest.raises(InputError, match="no weights in"):
    Cascade.load(tmp_path)


@pytest.mark.parametrize(
  ("part", "message"),
  [
    ("vae", "stage base needs vae"),
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
def test_missing_tower_is_named(copy, tower):
  shutil.rmtree(copy / tower)
  with pytest.raises(InputError, match=f"stage base needs {tower}"):
    Cascade.load(copy, stages=["base"])


def test_one_stage_is_enough(copy):
  shutil.rmtree(copy / "base")
  cascade = Cascade.load(copy)
  assert list(cascade.stages) == ["refine"]
  with pytest.raises(InputError, match="no base stage"):
    cascade.stage("base")
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
      _, params = interop.load_text_encoder(folder)
    except InputError as e:
      assert "damaged" in str(e) or "cannot read" in str(e)
      refused += 1
    else:
      whole = cascade.networks["text_encoder"].params
      jax.tree.map(np.testing.assert_array_equal, params, whole)
    path.write_bytes(data)
  assert refused >= 4


def test_no_weights_at_all(copy):
  shutil.rmtree(copy / "vae" / "params")
  with pytest.raises(InputError, match="stage base needs vae"):
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
    ("base", _put([64], "sampling", "size"), "size must be"),
    ("base", _put("8", "sampling", "fps"), "fps must be float, got '8'"),
    ("base", _put([1], "sampling"), "sampling"),
    ("vae", _put(None, "scaling_factor"), "scaling_factor"),
    ("base", _put(1, "module", "depth"), "'depth'"),
    ("base", _put([8, 8, 8], "module", "block_channels"), "do not fit"),
    ("vae", _put(4, "module", "latent_channels"), "another variant"),
  ],
)
def test_config_that_does_not_go_with_the_rest(
  copy, unchecked, part, change, message
):
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
  with pytest.raises(InputError, match="weights do not fit the network"):
    interop.load_unet(copy / target)


@pytest.mark.parametrize("name", ["base", "refine"])
def test_a_stage_in_place_of_the_other(cascade, name):
  other = {"base": "refine", "refine": "base"}[name]
  with pytest.raises(InputError, match="weights of another variant"):
    dataclasses.replace(cascade.stage(other), name=name)


@pytest.mark.parametrize(
  ("tower", "field"),
  [
    ("vae", "latent_channels"),
    ("text_encoder", "width"),
    ("image_encoder", "projection_dim"),
  ],
)
def test_towers_of_another_width(cascade, tower, field):
  with pytest.raises(InputError, match=f"{tower} has {field} 40"):
    with_fields(cascade, "base", tower, **{field: 40})
