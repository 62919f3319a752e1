"""The commands of docs/recipes.md."""

import re
import shlex

import cascade_standin
import pytest

from launch import train

REPOSITORY = cascade_standin.CONFIGS.parents[1]


def commands():
  """The flags of each recipe."""
  text = (REPOSITORY / "docs/recipes.md").read_text()
  (block,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
  for line in block.replace("\\\n", "").splitlines():
    if line.startswith("i2vgen train"):
      yield shlex.split(line)[2:]


@pytest.mark.parametrize("flags", commands(), ids=lambda flags: flags[1])
def test_every_key_of_a_recipe_is_known(flags):
  path = flags[0].removeprefix("--config=")
  train._check_keys(flags, train.load_config(str(REPOSITORY / path)))


def test_a_recipe_starts_from_what_one_before_leaves():
  left = {"stable-diffusion-2-1"}
  for flags in commands():
    given = dict(flag.split("=", 1) for flag in flags)
    path = str(REPOSITORY / given["--config"])
    start = given.get("--config.init_from", train.load_config(path).init_from)
    assert start in left | {"ali-vilab/i2vgen-xl"}
    component = train.load_config(path).component
    left.add(f"{given['--workdir']}/export/{component}")
  assert "runs/best/export/refine" in left
