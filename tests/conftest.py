"""What all tests share: devices, checked annotations, caches, fixtures."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# The pod of the mesh tests; other tests stay on the first device. Tests
# compile much and compute little, hence no optimisation.
os.environ["XLA_FLAGS"] = (
  "--xla_force_host_platform_device_count=8"
  " --xla_backend_optimization_level=0 " + os.environ.get("XLA_FLAGS", "")
)
# Compiled programs are kept between processes and runs. Set in the environment
# so that the processes that tests start use it too.
CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
install_import_hook(["i2vgen_jax", "data_pipelines"], "beartype.beartype")
# For the stand-ins, which tests of several folders import.
sys.path.insert(0, str(Path(__file__).parent))

TRUTH = Path(__file__).parent / "data_pipelines" / "truth"
_SDIST = "moviepy==2.2.1"  # 58 MB; carries Big Buck Bunny and a trailer of it
_FOLDER = "docs/_static/medias/getting_started/moviepy_10_minutes"


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
  """A whole cascade folder, small and untrained; nothing may change it."""
  import cascade_standin  # Not before the environment is set.

  return cascade_standin.write_cascade(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def random_params():
  """Random parameters of a module, which keep activations near 1.

  They are drawn by numpy, because compiling `init` takes long.
  """

  import jax
  import numpy as np

  def fill(module, *args, **kwargs):
    rng = np.random.default_rng(0)

    def draw(path, leaf):
      x = rng.normal(size=leaf.shape).astype(leaf.dtype)
      if path[-1].key == "kernel":
        return x * np.prod(leaf.shape[:-1], dtype=leaf.dtype) ** -0.5
      return 0.2 * x + (path[-1].key == "scale")

    abstract = jax.eval_shape(
      lambda: module.init(jax.random.key(0), *args, **kwargs)
    )
    return jax.tree_util.tree_map_with_path(draw, abstract["params"])

  return fill


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
  """A whole diffusers repository, small and random; nothing may change it."""
  import public_standin

  return public_standin.write_repository(tmp_path_factory.mktemp("hub") / "c")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
  """A folder of photographs of both splits; nothing may change it."""
  from PIL import Image
  from skimage import data

  folder = tmp_path_factory.mktemp("photographs")
  # About one name in twelve is held out.
  for number in range(24):
    photo = (data.coffee, data.chelsea, data.astronaut)[number % 3]()
    photo = Image.fromarray(photo).resize((360, 240))
    photo.save(folder / f"{number}.jpg", quality=95)
  return folder


@pytest.fixture(scope="module")
def quick_compiler():
  """Half the time to compile; stand-in networks run for milliseconds anyway."""
  import jax

  name = "jax_disable_most_optimizations"
  before = jax.config.values[name]
  jax.config.update(name, True)
  yield
  jax.config.update(name, before)


@pytest.fixture(scope="session")
def film(pytestconfig):
  """Finds a large film by its name in `truth`.

  They lie in the folder I2VGEN_FILMS or are downloaded once, with pip, into
  pytest's cache.
  """
  given = os.environ.get("I2VGEN_FILMS")

  def find(name: str) -> Path:
    folder = Path(given or pytestconfig.cache.mkdir("films"))
    path = folder / f"{name}.mp4"
    if not path.exists() and given is None:
      _download(folder)
    if not path.exists():
      pytest.skip(f"no {path}: set I2VGEN_FILMS or allow pip to download")
    known = json.loads((TRUTH / f"{name}.json").read_text())["sha256"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == known
    return path

  return find


def _download(folder: Path) -> None:
  pip = [sys.executable, "-m", "pip", "download", _SDIST, "--dest", str(folder)]
  options = ["--no-deps", "--no-binary", ":all:"]
  if subprocess.run([*pip, *options], capture_output=True).returncode:
    return
  [archive] = folder.glob("moviepy-*.tar.gz")
  with tarfile.open(archive) as files:
    top = f"{archive.name.removesuffix('.tar.gz')}/{_FOLDER}"
    trailer = files.extractfile(f"{top}/trailer_bbb.mp4").read()
    inner = files.extractfile(f"{top}/moviepy_10_minutes.zip").read()
  (folder / "trailer_bbb.mp4").write_bytes(trailer)
  with zipfile.ZipFile(io.BytesIO(inner)) as files:
    film = files.read("moviepy_10_minutes/resources/bbb.mp4")
  (folder / "bbb.mp4").write_bytes(film)
  archive.unlink()
