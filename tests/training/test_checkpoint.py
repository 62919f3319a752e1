"""States on disk: complete, on any mesh, and damage is reported."""

import json
import resource
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from i2vgen_jax import sharding
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import CHECKSUMS, check_checksums
from i2vgen_jax.training import checkpoint
from i2vgen_jax.training.checkpoint import Checkpoints, load_params
from i2vgen_jax.training.state import TrainState, abstract_state

TX = optax.adamw(0.1)


def init(rng, width=8):
  kernel = jax.random.normal(rng, (16, width))
  return {"dense": {"kernel": kernel, "bias": jnp.zeros(width)}}


def make_state(mesh, value=0.5):
  """A state whose members all have different values."""
  abstract = abstract_state(init, TX, mesh)
  rng = np.random.default_rng(0)
  values = jax.tree.map(
    lambda x: (rng.normal(size=x.shape) + value).astype(x.dtype), abstract
  )
  state = jax.tree.map(
    lambda v, a: jax.device_put(v, a.sharding), values, abstract
  )
  step = jax.device_put(jnp.int32(3), abstract.step.sharding)
  return TrainState(step, state.params, state.ema_params, state.opt_state)


@pytest.fixture(autouse=True)
def split_small_arrays(monkeypatch):
  monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 1)


@pytest.fixture
def saved(tmp_path):
  state = make_state(sharding.make_mesh(fsdp=8))
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    checkpoints.save(3, state)
  return tmp_path, state


def sealed(folder):
  """Files of a step with a checksum and content; all that hold the state."""
  files = [
    folder / name for name in json.loads((folder / CHECKSUMS).read_text())
  ]
  others = {p for p in folder.rglob("*") if p.is_file()} - {*files}
  assert {p.name for p in others} <= {
    CHECKSUMS,
    "_CHECKPOINT_METADATA",
    "commit_success.txt",
  }
  return [path for path in files if path.stat().st_size]


def restore(workdir, abstract, step=3):
  with Checkpoints(workdir, keep=2) as checkpoints:
    return checkpoints.restore(step, abstract)


@pytest.mark.parametrize(
  "layout", [{"fsdp": 8}, {"data": 4, "fsdp": 2}, {"data": 8}], ids=str
)
def test_states_are_restored_exactly_on_any_mesh(saved, layout):
  workdir, state = saved
  abstract = abstract_state(init, TX, sharding.make_mesh(**layout))
  restored = restore(workdir, abstract)
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  jax.tree.map(
    lambda leaf, wanted: (
      leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
      or pytest.fail(f"{leaf.sharding} is not {wanted.sharding}")
    ),
    restored,
    abstract,
  )
  assert isinstance(restored.opt_state[0], optax.ScaleByAdamState)


def test_saving_takes_a_copy(tmp_path):
  """The next step may reuse the buffers while files are being written."""
  mesh = sharding.make_mesh()
  state = make_state(mesh)
  before = jax.tree.map(np.array, state)
  add = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(3, state)
    for _ in range(3):
      state = add(state)
  restored = restore(tmp_path, abstract_state(init, TX, mesh))
  jax.tree.map(np.testing.assert_array_equal, restored, before)


class TestWeightsAlone:
  def test_average_by_default(self, saved):
    workdir, state = saved
    params = load_params(workdir)
    jax.tree.map(np.testing.assert_array_equal, params, state.ema_params)
    assert isinstance(params["dense"]["kernel"], np.ndarray)

  def test_raw_weights_of_a_step(self, saved):
    workdir, state = saved
    params = load_params(workdir, step=3, name="params")
    jax.tree.map(np.testing.assert_array_equal, params, state.params)

  def test_missing(self, saved):
    workdir, _ = saved
    with pytest.raises(InputError, match=r"no checkpoint of step 4 .*\[3\]"):
      load_params(workdir, step=4)
    with pytest.raises(InputError, match=r"no checkpoint in .*none"):
      load_params(workdir / "elsewhere")


def test_the_newest_are_kept(tmp_path):
  state = make_state(sharding.make_mesh())
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    assert checkpoints.latest_step() is None
    for step in (1, 2, 3):
      checkpoints.save(step, state)
    assert checkpoints.latest_step() == 3
  names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
  assert names == ["2", "3"]


def test_the_best_and_those_at_a_multiple_are_kept(tmp_path):
  state = make_state(sharding.make_mesh())
  with Checkpoints(tmp_path, keep=1, keep_every=4) as checkpoints:
    for step, loss in enumerate((3.0, 1.0, None, 2.0, 4.0, 1.5, 5.0), 1):
      checkpoints.save(step, state, loss)
  names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
  assert names == {"2", "4", "7"}


def test_an_unfinished_save_is_not_a_checkpoint(saved):
  workdir, _ = saved
  folder = workdir / "checkpoints"
  (folder / "3").rename(folder / "5.orbax-checkpoint-tmp")
  with pytest.raises(InputError, match="none"):
    load_params(workdir)
  with Checkpoints(workdir, keep=2) as checkpoints:
    assert checkpoints.latest_step() is None


class TestDamage:
  """The newest checkpoint is damaged, and the one before is used."""

  @pytest.fixture
  def two(self, tmp_path):
    """A workdir with the checkpoints 3 and 4, which differ."""
    mesh = sharding.make_mesh()
    state = make_state(mesh)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
      checkpoints.save(3, state)
      checkpoints.save(4, make_state(mesh, value=1.5))
    return tmp_path, state

  def newest(self, workdir):
    abstract = abstract_state(init, TX, sharding.make_mesh())
    with Checkpoints(workdir, keep=2) as checkpoints:
      return checkpoints.restore_newest(abstract)

  def assert_third(self, workdir, state, capfd):
    found = self.newest(workdir)
    jax.tree.map(np.testing.assert_array_equal, found, state)
    assert "4.damaged" in capfd.readouterr().err
    names = sorted(p.name for p in (workdir / "checkpoints").iterdir())
    assert names == ["3", "4.damaged"]

  def test_an_intact_one_is_used(self, two):
    assert int(self.newest(two[0]).step) == 4

  def test_every_flipped_bit_is_found(self, two, capfd):
    workdir, state = two
    folder = workdir / "checkpoints"
    files = sealed(folder / "4")
    rng = np.random.default_rng(0)
    for _ in range(40):
      path = files[rng.integers(len(files))]
      before = path.read_bytes()
      damaged = bytearray(before)
      damaged[rng.integers(len(before))] ^= 1 << int(rng.integers(8))
      path.write_bytes(damaged)
      self.assert_third(workdir, state, capfd)
      (folder / "4.damaged").rename(folder / "4")
      path.write_bytes(before)
    assert int(self.newest(workdir).step) == 4

  @pytest.mark.parametrize(
    "damage",
    [
      lambda path: path.write_bytes(b""),
      lambda path: path.write_bytes(bytes(path.stat().st_size)),
      lambda path: path.write_bytes(path.read_bytes()[:-1]),
      lambda path: path.unlink(),
    ],
    ids=["empty", "zeros", "short", "missing"],
  )
  @pytest.mark.parametrize("which", ["largest", "smallest"])
  def test_other_damage_is_found(self, two, capfd, damage, which):
    workdir, state = two
    files = sealed(workdir / "checkpoints/4")
    files.sort(key=lambda path: path.stat().st_size)
    damage(files[-1 if which == "largest" else 0])
    self.assert_third(workdir, state, capfd)

  def test_a_missing_commit_mark_is_found(self, two, capfd):
    workdir, state = two
    (workdir / "checkpoints/4/commit_success.txt").unlink()
    self.assert_third(workdir, state, capfd)

  def test_a_folder_without_its_files_is_found(self, two, capfd):
    workdir, state = two
    for path in (workdir / "checkpoints/4").iterdir():
      if path.is_dir():
        shutil.rmtree(path)
      else:
        path.unlink()
    self.assert_third(workdir, state, capfd)

  def test_a_renamed_copy_is_found(self, two, capfd):
    workdir, state = two
    folder = workdir / "checkpoints"
    shutil.rmtree(folder / "4")
    shutil.copytree(folder / "3", folder / "4")
    self.assert_third(workdir, state, capfd)

  def test_a_run_is_not_begun_again_if_all_are_damaged(self, saved):
    workdir, _ = saved
    (workdir / "checkpoints/3/params/_METADATA").unlink()
    with pytest.raises(InputError, match=r"all checkpoints .* of steps \[3\]"):
      self.newest(workdir)

  def test_damaged_weights_are_not_exported(self, saved):
    workdir, _ = saved
    arrays = (workdir / "checkpoints/3/params").glob("**/d/*")
    path = max(arrays, key=lambda p: p.stat().st_size)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(InputError, match="damaged, its CRC-32"):
      load_params(workdir, name="params")


class TestErrors:
  def test_other_shapes_are_named(self, saved):
    workdir, _ = saved
    wide = abstract_state(
      lambda rng: init(rng, width=16), TX, sharding.make_mesh()
    )
    with pytest.raises(InputError) as error:
      restore(workdir, wide)
    message = str(error.value)
    assert "dense/bias is (8,) and should be (16,)" in message
    assert "params" in message and "\n" not in message

  def test_other_tree(self, saved):
    workdir, _ = saved
    more = abstract_state(
      lambda rng: init(rng) | {"added": jnp.zeros(2)}, TX, sharding.make_mesh()
    )
    with pytest.raises(InputError, match="1 missing: added"):
      restore(workdir, more)

  def test_other_optimizer(self, saved):
    workdir, _ = saved
    other = abstract_state(init, optax.sgd(0.1), sharding.make_mesh())
    with pytest.raises(InputError, match=r"unexpected: .*0/count"):
      restore(workdir, other)

  @pytest.mark.parametrize(
    "victim",
    ["params", "optimizer/_METADATA", "position", "params/manifest.ocdbt"],
  )
  def test_missing_parts(self, saved, victim):
    workdir, _ = saved
    path = workdir / "checkpoints" / "3" / victim
    path.rename(workdir / "taken away")
    abstract = abstract_state(init, TX, sharding.make_mesh())
    with pytest.raises(InputError, match="incomplete or damaged"):
      restore(workdir, abstract)

  def test_truncated_arrays(self, saved):
    workdir, _ = saved
    step = workdir / "checkpoints" / "3"
    for path in (step / "ema_params").glob("**/d/*"):
      path.write_bytes(path.read_bytes()[:20])
    abstract = abstract_state(init, TX, sharding.make_mesh())
    with pytest.raises(InputError, match="incomplete or damaged"):
      restore(workdir, abstract)
    with pytest.raises(InputError, match="damaged, its CRC-32"):
      load_params(workdir)


class TestFullDisk:
  """Files larger than a limit cannot be written, as on a full disk."""

  @pytest.fixture
  def limit(self):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python then raises OSError; by default the signal ends the process.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size=before[0]):
      resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    limit()
    signal.signal(signal.SIGXFSZ, handler)

  def test_the_run_goes_on(self, saved, limit, monkeypatch):
    workdir, state = saved
    said = []
    monkeypatch.setattr(checkpoint, "say", said.append)
    with Checkpoints(workdir, keep=3) as checkpoints:
      limit(100)
      checkpoints.save(4, state)
      checkpoints.save(5, state)
      assert checkpoints.latest_step() == 3
      limit()
      checkpoints.save(6, state)
    assert_only(workdir, "3", "6")
    assert len(said) == 2
    assert all("a checkpoint was not written" in line for line in said)

  def test_the_last_one_is_tried_again(self, saved, limit, monkeypatch):
    workdir, state = saved
    monkeypatch.setattr(checkpoint, "_RETRIES", (0, 0))
    monkeypatch.setattr(checkpoint, "say", lambda _: None)
    with Checkpoints(workdir, keep=3) as checkpoints:
      limit(100)
      with pytest.raises(InputError, match=r"of step 7, .* from step 3"):
        checkpoints.save_last(7, state)
      monkeypatch.setattr(checkpoint.time, "sleep", lambda _: limit())
      checkpoints.save_last(8, state)
    assert_only(workdir, "3", "8")


def assert_only(workdir, *names):
  """The folder has these checkpoints, which are intact, and nothing else."""
  folder = workdir / "checkpoints"
  assert {p.name for p in folder.iterdir()} == {*names}
  for name in names:
    check_checksums(folder / name)
