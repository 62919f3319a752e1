"""Every config builds what it describes, at full size too.

The folder golden_configs has the values of every config, so that a review sees
which of them a change of defaults reaches. After a wanted change, run

    python tests/test_configs.py

and commit what it writes.
"""

from pathlib import Path

import jax
import pytest
from cascade_standin import CONFIGS as PATH
from cascade_standin import get_config
from flax.traverse_util import flatten_dict

from i2vgen_jax.models import build
from i2vgen_jax.models.vae import AutoencoderKL
from i2vgen_jax.stage import Stage, read_settings

DENOISERS = (
  "base",
  "refine",
  "released",
  "image_to_video",
  "released_tuned",
  "released_lora",
  "tiny",
  "tiny_refine",
  "tiny_lora",
)
OTHERS = ("tiny_vae", "tiny_clip")
GOLDEN = Path(__file__).parent / "golden_configs"


def abstract_params(name, group):
  module = build.make_module(name, group.to_dict(), PATH)
  return build.abstract_params(module)


def golden_path(arg):
  return GOLDEN / f"{arg}.txt"


def values(arg):
  """A line for each key of a config, sorted."""
  leaves = flatten_dict(get_config(arg).to_dict(), sep=".")
  return "".join(f"{key} = {value!r}\n" for key, value in leaves.items())


def sizes(tree):
  return [leaf.size for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize(
  ("arg", "parameters", "arrays"),
  [
    ("released", 1_420_469_224, 1511),
    ("image_to_video", 1_419_843_396, 1488),
    ("refine", 1_411_233_860, 1480),
    # The paper's base: image_to_video and the content path, which is as large
    # as the parts of the released model that it is made of.
    ("base", 1_419_843_396 + 3_492 + 610_528, 1488 + 6 + 6),
  ],
)
def test_full_size(arg, parameters, arrays):
  found = sizes(abstract_params("base", get_config(arg).unet))
  assert (sum(found), len(found)) == (parameters, arrays)


@pytest.mark.parametrize("arg", ["tiny", "tiny_refine"])
def test_small_denoisers(arg):
  assert sum(sizes(abstract_params("base", get_config(arg).unet))) < 9e6


@pytest.mark.parametrize(
  ("arg", "group", "name"),
  [
    ("tiny_vae", "vae", "vae"),
    ("tiny_clip", "text_encoder", "text_encoder"),
    ("tiny_clip", "image_encoder", "image_encoder"),
  ],
)
def test_small_towers(arg, group, name):
  assert sum(sizes(abstract_params(name, get_config(arg)[group]))) < 4e6


@pytest.mark.parametrize("arg", DENOISERS)
def test_stage_samples_as_configured(arg):
  config = get_config(arg)
  groups = read_settings(config.to_dict(), PATH)
  unet = build.make_module(config.component, config.unet.to_dict(), PATH)
  stage = Stage(
    name=config.component,
    unet=unet,
    vae=AutoencoderKL(latent_channels=unet.latent_channels),
    text_encoder=None,
    image_encoder=None,
    scaling_factor=1.0,
    **groups,
  )
  assert stage.solver.num_evaluations >= config.sampling.num_steps - 1
  for width, height in (stage.sampling.size, config.data.size):
    assert width % 8 == height % 8 == 0
    unet.check_size(width // 8, height // 8)


@pytest.mark.parametrize("arg", DENOISERS + OTHERS)
def test_config_is_complete_and_locked(arg):
  config = get_config(arg)
  assert config.is_locked
  assert set(config) >= {"component", "objective", "data", "mesh", "train"}
  assert sum(weight for *_, weight in config.data.buckets) > 0
  with pytest.raises(AttributeError, match="learning_rate"):
    config.train.learning_rat = 1.0
  with pytest.raises(TypeError):
    config.train.num_steps = "many"
  config.train.grad_clip = 1.0


@pytest.mark.parametrize("arg", DENOISERS + OTHERS)
def test_values_are_the_golden_ones(arg):
  message = "after a wanted change, run python tests/test_configs.py"
  assert values(arg) == golden_path(arg).read_text(), message


def test_every_config_has_golden_values():
  with pytest.raises(ValueError) as caught:
    get_config("")
  known = str(caught.value).partition("choose one of ")[2].split(", ")
  assert sorted(known) == sorted(path.stem for path in GOLDEN.iterdir())


def test_an_unknown_field_of_the_network_is_named():
  config = get_config("tiny")
  with config.unlocked():
    config.unet.blockchannels = (8,)
  with pytest.raises(AttributeError, match="block_channels"):
    get_config("tiny").unet.blockchannels = (8,)
  with pytest.raises(ValueError, match="'blockchannels'"):
    build.make_module("base", config.unet.to_dict(), PATH)


def test_an_unknown_name_lists_the_known_ones():
  with pytest.raises(ValueError, match="'huge'") as caught:
    get_config("huge")
  assert all(arg in str(caught.value) for arg in DENOISERS + OTHERS)


if __name__ == "__main__":
  GOLDEN.mkdir(exist_ok=True)
  for name in DENOISERS + OTHERS:
    golden_path(name).write_text(values(name))
