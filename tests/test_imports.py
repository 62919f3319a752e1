"""Who may import whom, as tables, checked on the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("i2vgen_jax", "data_pipelines", "launch", "configs")

# What each package may import of the others.
ACROSS = {
  "i2vgen_jax": set(),
  "data_pipelines": {
    "i2vgen_jax.errors",
    "i2vgen_jax.files",
    "i2vgen_jax.preprocessing",
    "i2vgen_jax.tokenizer",
    "i2vgen_jax.types",
  },
  "launch": {"i2vgen_jax", "data_pipelines"},
  "configs": {"i2vgen_jax.variants"},
}

# What each part of the library may import of the others, besides types, errors
# and files, which all may import. The longest entry that fits a file counts.
INSIDE = {
  "types": set(),
  "errors": set(),
  "files": set(),
  "trees": set(),
  "lora": set(),
  "preprocessing": set(),
  "tokenizer": set(),
  "sharding": set(),
  "remat": set(),
  "processes": set(),
  "flops": set(),
  "variants": {"models", "stage"},
  "evaluation": set(),
  "kernels": {"remat", "sharding"},
  "models": {"kernels", "remat", "sharding"},
  "diffusion": set(),
  "interop": {"lora", "models", "sharding", "tokenizer", "variants"},
  "interop.formats": {"preprocessing", "processes", "tokenizer"},
  "interop.keys": {"lora"},
  "autoencoding": {"kernels", "models", "sharding"},
  "memory": set(),
  "stage": {"autoencoding", "diffusion", "memory", "sharding"},
  "cascade": {"interop", "models", "preprocessing", "stage", "tokenizer"},
  "training": {
    "autoencoding",
    "cascade",
    "diffusion",
    "flops",
    "interop",
    "lora",
    "models",
    "processes",
    "sharding",
    "stage",
    "tokenizer",
  },
  "__init__": {"cascade"},
}
EVERYWHERE = {"types", "errors", "files", "trees"}

# The only homes of these third parties, among all packages.
HOMES = {
  "flax.linen": ("i2vgen_jax/models/", "launch/planning/parts.py"),
  "flax.nnx": (),
  "torch": (
    "i2vgen_jax/interop/formats/torch_files.py",
    "launch/benchmarks/",
    "launch/evaluation/i3d.py",
  ),
  "tensorflow": ("data_pipelines/",),
  "tensorflow_datasets": ("data_pipelines/",),
  "grain": ("data_pipelines/",),
  "av": ("data_pipelines/media/video.py",),
  "clu": (
    "i2vgen_jax/training/metrics.py",
    "i2vgen_jax/training/overview.py",
  ),
  "wandb": ("i2vgen_jax/training/metrics.py",),
  "optax": ("i2vgen_jax/training/",),
  "absl": ("launch/",),
  "gradio": ("launch/page.py",),
  "fastapi": ("launch/page.py", "launch/serve.py"),
}

# Wherever they are allowed in the library, then inside of functions only:
# sampling runs where they are not installed.
LAZY = ("clu", "wandb", "matplotlib", "torch", "tensorflow", "grain", "av")


def imported(tree):
  """(dotted name, whether importing the file runs it) of every import."""
  inside = {
    id(node)
    for function in ast.walk(tree)
    if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    for node in ast.walk(function)
  }
  for node in ast.walk(tree):
    at_once = id(node) not in inside
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name, at_once
    elif isinstance(node, ast.ImportFrom):
      module = "." * node.level + (node.module or "")
      for alias in node.names:
        yield f"{module}.{alias.name}", at_once


def within(name, scope):
  return name == scope or name.startswith(f"{scope}.")


def breach(path, name, at_once):
  """Why the file at `path` must not import `name`; None if it may."""
  package, *rest_of_path = Path(path).with_suffix("").parts
  part = ".".join(rest_of_path)
  top, _, rest = name.partition(".")
  # A package that is imported bare hands out what lies below it.
  homes = [HOMES[h] for h in HOMES if within(name, h) or within(h, name)]
  if not all(path.startswith(home) for home in homes):
    return "has another home"
  if package == "i2vgen_jax" and at_once and top in LAZY:
    return "only inside of functions"
  allowed = True
  if top == package == "i2vgen_jax":
    entry = max((e for e in INSIDE if within(part, e)), key=len)
    scopes = INSIDE[entry] | EVERYWHERE | {entry}
    allowed = any(within(rest, scope) for scope in scopes)
  elif top in PACKAGES and top != package:
    allowed = any(within(name, scope) for scope in ACROSS[package])
  elif not top:
    return "name the package in full"
  return None if allowed else "against the direction"


def breaches(path, source):
  """All of a file, whose path starts at the repository's root."""
  found = [
    (name, breach(path, name, at_once))
    for name, at_once in imported(ast.parse(source))
  ]
  return [f"{name}: {reason}" for name, reason in found if reason]


def files():
  for package in PACKAGES:
    for path in sorted((ROOT / package).rglob("*.py")):
      if path.name != "__init__.py" or path.read_text().strip():
        yield path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", files())
def test_file_keeps_the_direction(path):
  assert breaches(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize(
  ("path", "line"),
  [
    ("i2vgen_jax/diffusion/x.py", "from i2vgen_jax.models.unet import A"),
    ("i2vgen_jax/diffusion/x.py", "from i2vgen_jax import models"),
    ("i2vgen_jax/interop/x.py", "import i2vgen_jax.training.step"),
    ("i2vgen_jax/models/x.py", "from i2vgen_jax.diffusion import losses"),
    ("i2vgen_jax/models/x.py", "from . import layers"),
    ("i2vgen_jax/models/x.py", "from flax import nnx"),
    ("i2vgen_jax/interop/x.py", "from i2vgen_jax import cascade"),
    ("i2vgen_jax/interop/x.py", "from i2vgen_jax.stage import Stage"),
    ("i2vgen_jax/interop/keys/x.py", "from i2vgen_jax.models import unet"),
    ("i2vgen_jax/interop/formats/x.py", "import i2vgen_jax.models.vae"),
    ("i2vgen_jax/interop/formats/x.py", "from i2vgen_jax.interop import hub"),
    ("i2vgen_jax/stage.py", "import flax.linen as nn"),
    ("i2vgen_jax/stage.py", "from flax import linen"),
    ("i2vgen_jax/stage.py", "import flax"),
    ("i2vgen_jax/stage.py", "from i2vgen_jax.training import step"),
    ("i2vgen_jax/stage.py", "from i2vgen_jax.cascade import Cascade"),
    ("i2vgen_jax/cascade.py", "import optax"),
    ("i2vgen_jax/cascade.py", "from absl import flags"),
    ("i2vgen_jax/cascade.py", "import launch.cli"),
    ("i2vgen_jax/cascade.py", "from data_pipelines import video"),
    ("i2vgen_jax/cascade.py", "from configs import i2vgen_xl"),
    ("i2vgen_jax/training/metrics.py", "from clu import metric_writers"),
    ("i2vgen_jax/training/loop.py", "def f():\n  import clu"),
    ("i2vgen_jax/training/loop.py", "def f():\n  import tensorflow as tf"),
    ("i2vgen_jax/training/loop.py", "try:\n  import torch\nfinally:\n  pass"),
    ("i2vgen_jax/evaluation/x.py", "from matplotlib import pyplot"),
    ("data_pipelines/x.py", "from i2vgen_jax import cascade"),
    ("data_pipelines/x.py", "from launch import cli"),
    ("data_pipelines/media/pictures.py", "import av"),
    ("launch/x.py", "import av.video"),
    ("launch/x.py", "from configs.i2vgen_xl import get_config"),
    ("launch/x.py", "import grain"),
    ("configs/x.py", "from i2vgen_jax.stage import Sampling"),
  ],
)
def test_breach_is_seen(path, line):
  assert len(breaches(path, line)) == 1


def test_importing_the_cascade_loads_nothing_that_may_be_absent():
  code = (
    "import sys, i2vgen_jax.cascade\n"
    f"print([m for m in {(*LAZY, 'tensorflow_datasets')} "
    "if m in sys.modules])"
  )
  out = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  )
  assert out.stdout.strip() == "[]"
