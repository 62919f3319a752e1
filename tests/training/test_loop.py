"""Whole short runs: resumed, stopped, logged, and refused."""

import dataclasses
import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from training_standins import SmallTask, make_batch, make_config

from i2vgen_jax.errors import InputError
from i2vgen_jax.sharding import make_mesh
from i2vgen_jax.training import laps, loop, record
from i2vgen_jax.training.checkpoint import Checkpoints, load_params
from i2vgen_jax.training.loop import train
from i2vgen_jax.training.state import step_key


def init(rng):
  return {"kernel": jax.random.normal(rng, (4, 4))}


def loss(params, frozen, batch, rng):
  """A quadratic with noise of each row, which frozen scales."""
  keys = jax.vmap(lambda i: jax.random.fold_in(rng, i))(batch.index)
  noise = jax.vmap(lambda key: jax.random.normal(key, (4, 4)))(keys)
  loss = jnp.square(params["kernel"] - frozen["scale"] * noise).mean()
  return loss + 0 * batch.fps.mean(), {"fps": batch.fps.mean()}


def batches(start):
  for step in itertools.count(start):
    yield step, make_batch(8 * step)


def bits(params):
  """A picture from which the weights can be read."""
  pixels = jax.lax.bitcast_convert_type(params["kernel"], jnp.uint8)
  return jnp.repeat(pixels.reshape(4, 16, 1), 3, axis=2)


class FakeWriter:
  """Records what would go to TensorBoard, whose import takes seconds."""

  def __init__(self, log):
    self.log = log

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def scalars(self, step, values):
    self.log.append((step, values))

  def picture(self, step, picture):
    self.log.append((step, picture))


@pytest.fixture
def log(monkeypatch):
  """(step, values or picture) of everything that a test's runs write."""
  entries = []
  monkeypatch.setattr(loop, "MetricWriter", lambda *_: FakeWriter(entries))
  # Drawing takes longer than such a run.
  monkeypatch.setattr(record, "draw", lambda workdir: None)
  return entries


def run(workdir, batches=batches, loss=loss, **changes):
  names = ("held_out", "initial_params", "to_show", "examples", "peak")
  options = {name: changes.pop(name) for name in names if name in changes}
  task = SmallTask(
    init=changes.pop("init", init),
    loss_fn=loss,
    picture_fn=bits,
    frozen={"scale": np.float32(0.1)},
  )
  config = make_config(**changes)
  return train(task, batches, config, workdir, make_mesh(), **options)


def losses(log):
  return {step: values["loss"] for step, values in log}


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


class TestResume:
  def test_a_run_in_pieces_equals_an_uninterrupted_one(self, tmp_path, log):
    """Bit for bit: losses, weights, averages, moments and counts."""
    whole = run(tmp_path / "whole", num_steps=7, log_every=1)
    expected = losses(log)
    log.clear()
    for num_steps in (2, 5, 7):
      parts = run(tmp_path / "parts", num_steps=num_steps, log_every=1)
    assert losses(log) == expected
    assert int(parts.step) == 7
    assert_same(parts, whole)

  def test_only_the_missing_steps_are_read(self, tmp_path, log):
    asked = []

    def counting(start):
      for step, batch in batches(start):
        asked.append(step)
        yield step, batch

    run(tmp_path, num_steps=3)
    run(tmp_path, counting, num_steps=5)
    assert asked == [3, 4]

  def test_each_batch_is_read_one_step_ahead(self, tmp_path, log, monkeypatch):
    """And no further than that."""
    events = []

    def telling(start):
      for step, batch in batches(start):
        events.append(f"read {step}")
        yield step, batch

    def picture(self, step, picture):
      events.append(f"done {step}")

    monkeypatch.setattr(FakeWriter, "picture", picture)
    run(tmp_path, telling, num_steps=3, sample_every=1, to_show=make_batch(0))
    assert events == [
      "read 0", "read 1", "done 1", "read 2", "done 2", "done 3",
    ]  # fmt: skip

  def test_a_finished_run_is_unchanged(self, tmp_path, log):
    first = run(tmp_path, num_steps=3)
    log.clear()
    assert_same(run(tmp_path, num_steps=3), first)
    assert_same(run(tmp_path, num_steps=2), first)
    assert log == []

  def test_the_seed_determines_the_run(self, tmp_path, log):
    one = run(tmp_path / "a", seed=1)
    same = run(tmp_path / "b", seed=1)
    other = run(tmp_path / "c", seed=2)
    assert_same(one, same)
    assert np.abs(one.params["kernel"] - other.params["kernel"]).min() > 0


class TestStop:
  @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
  def test_a_run_that_got_a_signal_resumes_exactly(self, tmp_path, log, number):
    whole = run(tmp_path / "whole", num_steps=6)

    def interrupted(start):
      for step, batch in batches(start):
        if step == 4:  # read while step 3 is still to be done
          os.kill(os.getpid(), number)
        yield step, batch

    before = signal.getsignal(number)
    stopped = run(
      tmp_path / "stopped", interrupted, num_steps=6, checkpoint_every=100
    )
    assert signal.getsignal(number) is before
    assert int(stopped.step) == 4
    with Checkpoints(tmp_path / "stopped", keep=1) as checkpoints:
      assert checkpoints.latest_step() == 4
    assert_same(run(tmp_path / "stopped", num_steps=6), whole)

  def test_a_second_interrupt_ends_the_process(self):
    script = """
import os, signal
from i2vgen_jax.training.supervision import StopSignal
with StopSignal() as stop:
  os.kill(os.getpid(), signal.SIGINT)
  assert stop.caught
  print("caught", flush=True)
  try:
    os.kill(os.getpid(), signal.SIGINT)
  except KeyboardInterrupt:
    print("swallowed")
print("went on")
"""
    ended = subprocess.run(
      [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert ended.returncode == 130
    assert ended.stdout == "caught\n"
    assert "Ctrl-C again ends the run at once" in ended.stderr

  def test_a_gradient_that_stays_not_finite_stops_the_run(self, tmp_path, log):
    def broken(params, frozen, batch, rng):
      late = batch.index[0] >= 8 * 3
      return jnp.where(late, jnp.nan, 1.0) * params["kernel"].sum(), {}

    with pytest.raises(InputError, match=r"10 steps.* step 14 of"):
      run(tmp_path, loss=broken, num_steps=100, log_every=5)

  def test_good_checkpoints_survive_a_run_that_diverges(
    self, tmp_path, log, capfd
  ):
    whole = run(tmp_path / "whole", num_steps=8)
    run(tmp_path / "run", num_steps=4, checkpoint_every=1)
    with pytest.raises(InputError, match=r"diverged: .* resumes from step 4"):
      run(
        tmp_path / "run", num_steps=99, checkpoint_every=1, learning_rate=1e30
      )
    names = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert "4" in names
    assert all(name.endswith(".diverged") for name in names - {"3", "4"})
    assert_same(run(tmp_path / "run", num_steps=8), whole)

  def test_a_run_that_diverges_goes_on_with_other_data(
    self, tmp_path, log, capfd
  ):
    def bad(start):
      """Batches 5 to 14 spoil the weights."""
      for step, batch in batches(start):
        if 5 <= step < 15:
          batch = dataclasses.replace(batch, fps=np.full(8, np.nan, np.float32))
        yield step, batch

    def without(start):
      for step in itertools.count(start):
        yield step, make_batch(8 * (step if step < 4 else step + 11))

    options = {"num_steps": 16, "log_every": 1, "checkpoint_every": 4}
    state = run(tmp_path / "run", bad, max_rollbacks=1, **options)
    # The checkpoint of step 4 has seen batches 0 to 3; batches 4 to 14 are
    # left out, and the reports of their steps with them.
    assert_same(state, run(tmp_path / "whole", without, **options))
    assert "goes on from step 4 with the next data" in capfd.readouterr().err
    rows = record.read(tmp_path / "run")
    assert [row["step"] for row in rows] == [*range(1, 17)]
    assert rows[-1]["rollbacks"] == 1
    # A run that resumes goes on in the data where it was.
    options["num_steps"] = 20
    state = run(tmp_path / "run", bad, max_rollbacks=1, **options)
    assert_same(state, run(tmp_path / "whole", without, **options))

  def test_a_rollback_goes_past_a_damaged_checkpoint(
    self, tmp_path, log, capfd
  ):
    def bad(start):
      for step, batch in batches(start):
        if step >= 5:
          batch = dataclasses.replace(batch, fps=np.full(8, np.nan, np.float32))
        if step == 14:
          stored = tmp_path / "run/checkpoints/4/params/_METADATA"
          while not stored.exists():  # it is written in the background
            time.sleep(0.01)
          stored.unlink()
        yield step, (batch if step < 15 else make_batch(8 * step))

    def without(start):
      for step in itertools.count(start):
        yield step, make_batch(8 * (step if step < 2 else step + 13))

    options = {"num_steps": 16, "log_every": 1, "checkpoint_every": 2}
    state = run(tmp_path / "run", bad, max_rollbacks=1, **options)
    assert "goes on from step 2 with the next data" in capfd.readouterr().err
    assert_same(state, run(tmp_path / "whole", without, **options))

  def test_rollbacks_are_limited(self, tmp_path, log, capfd):
    def broken(params, frozen, batch, rng):
      late = batch.index[0] >= 8 * 3
      return jnp.where(late, jnp.nan, 1.0) * params["kernel"].sum(), {}

    with pytest.raises(InputError, match=r"diverged: .* resumes from step 2"):
      run(
        tmp_path, loss=broken, num_steps=100, checkpoint_every=1,
        max_rollbacks=2,
      )  # fmt: skip
    assert "rollback 2 of 2" in capfd.readouterr().err

  def test_a_single_bad_step_is_skipped(self, tmp_path, log):
    def hiccup(params, frozen, batch, rng):
      bad = jnp.where(batch.index[0] == 8, jnp.nan, 1.0)
      return bad * jnp.square(params["kernel"]).mean(), {}

    state = run(tmp_path, loss=hiccup, num_steps=4, log_every=4)
    ((_, values),) = log
    assert values["skipped"] == 1
    assert np.isfinite(values["loss"])
    assert np.isfinite(state.params["kernel"]).all()

  def test_data_that_end_early_are_refused(self, tmp_path, log):
    def three(start):
      return itertools.islice(batches(start), 3)

    with pytest.raises(InputError, match="ended after step 3 of 5"):
      run(tmp_path, three, num_steps=5)


class TestStall:
  """A process that makes no step ends, so that it is started again."""

  SCRIPT = """
import sys, time
sys.path[:0] = {paths!r}
import test_loop
from pathlib import Path
def hanging(start):
  for step, batch in test_loop.batches(start):
    if step == 3:
      time.sleep(1000)
    yield step, batch
test_loop.run(Path({workdir!r}), hanging, num_steps=9, checkpoint_every=1,
              stall_timeout={timeout})
"""

  def test_data_that_hang_end_the_process(self, tmp_path, log):
    paths = [str(Path(__file__).parent)]
    script = self.SCRIPT.format(
      paths=paths, workdir=str(tmp_path / "run"), timeout=15
    )
    ended = subprocess.run(
      [sys.executable, "-c", script],
      capture_output=True,
      text=True,
      timeout=200,
    )
    assert ended.returncode == os.EX_TEMPFAIL
    assert "process 0 made no progress for 15 s" in ended.stderr
    assert "in hanging" in ended.stderr  # from the stack
    state = run(tmp_path / "run", num_steps=5)
    assert_same(state, run(tmp_path / "whole", num_steps=5))


class TestPrograms:
  """Every shape of batch is compiled before the first step."""

  def sizes(self, start):
    for step in itertools.count(start):
      size, num_frames = ((8, 4), (16, 2))[step % 2]
      yield step, make_batch(16 * step, size, num_frames)

  @pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
  def test_each_shape_is_compiled_once(self, tmp_path, log, known, monkeypatch):
    traced = []

    def counting(params, frozen, batch, rng):
      traced.append(batch.num_frames)
      return loss(params, frozen, batch, rng)

    def telling(start):
      for step, batch in self.sizes(start):
        traced.append(f"read {step}")
        yield step, batch

    examples = [make_batch(0, 1, num_frames=4), make_batch(0, 2, num_frames=2)]
    run(
      tmp_path, telling, counting, num_steps=4, sample_every=0,
      examples=examples if known else (),
    )  # fmt: skip
    assert [n for n in traced if isinstance(n, int)] == [4, 2]
    assert (traced[:2] == [4, 2]) == known

  def test_the_work_of_a_step_is_counted(self, tmp_path, log):
    def product(params, frozen, batch, rng):
      return (params["kernel"] @ params["kernel"]).mean(), {}

    run(tmp_path, loss=product, num_steps=3, log_every=1, peak=1e12)
    _, values = log[-1]
    # One product of 4x4 forward, two backward.
    flops = 3 * 2 * 4**3 * values["steps_per_second"]
    assert values["tflops_per_second"] * 1e12 == pytest.approx(flops)
    assert values["mfu"] == pytest.approx(flops / 1e12)
    assert values["frames_per_second"] == 4 * values["examples_per_second"]


class TestReports:
  def test_means_are_over_the_steps_since_the_last_report(self, tmp_path, log):
    run(tmp_path / "each", num_steps=5, log_every=1)
    single = losses(log)
    log.clear()
    run(tmp_path / "two", num_steps=5, log_every=2)
    mean = np.mean
    expected = {
      2: mean([single[1], single[2]]),
      4: mean([single[3], single[4]]),
      5: single[5],
    }
    assert losses(log) == pytest.approx(expected)

  def test_progress_lines_without_a_terminal(self, tmp_path, log, capfd):
    run(tmp_path, num_steps=4, log_every=2)
    lines = capfd.readouterr().err.splitlines()
    steps = [line.split()[1] for line in lines if line.startswith("step ")]
    assert steps == ["2/4", "4/4"]

  def test_sample_pictures_are_of_the_average(self, tmp_path, log):
    options = {"log_every": 100, "to_show": make_batch(0)}
    state = run(tmp_path, num_steps=5, sample_every=2, **options)
    pictures = {s: v for s, v in log if isinstance(v, np.ndarray)}
    assert sorted(pictures) == [2, 4, 5]
    at_4 = run(tmp_path / "at 4", num_steps=4, **options)
    np.testing.assert_array_equal(pictures[4], bits(at_4.ema_params))
    np.testing.assert_array_equal(pictures[5], bits(state.ema_params))
    difference = state.ema_params["kernel"] - state.params["kernel"]
    assert np.abs(difference).max() > 0

  def test_a_period_of_zero_shows_nothing(self, tmp_path, log):
    run(
      tmp_path, num_steps=4, sample_every=0, log_every=2, to_show=make_batch(0),
      held_out=lambda: iter([("clips", make_batch(1000))]),
    )  # fmt: skip
    assert [step for step, _ in log] == [2, 4]
    assert all("unseen_loss" not in values for _, values in log)

  def test_held_out_loss_is_of_the_average(self, tmp_path, log, capfd):
    """On the same batches with the same noise each time."""

    def held_out():
      return iter([("8", make_batch(1000)), ("16", make_batch(2000))])

    state = run(
      tmp_path, num_steps=5, sample_every=2, log_every=100, held_out=held_out
    )
    logged = {
      step: values["unseen_loss"]
      for step, values in log
      if "unseen_loss" in values
    }
    assert sorted(logged) == [2, 4, 5]
    frozen, key = {"scale": np.float32(0.1)}, step_key(make_config().train.seed)
    expected = [
      float(loss(state.ema_params, frozen, batch, key)[0])
      for _, batch in held_out()
    ]
    by_kind = {name: value for _, v in log for name, value in v.items()}
    for kind, value in zip(("8", "16"), expected, strict=True):
      assert by_kind[f"unseen_loss/{kind}"] == pytest.approx(value, rel=1e-5)
    assert logged[5] == pytest.approx(np.mean(expected), rel=1e-5)
    assert by_kind["unseen_loss/first"] == pytest.approx(2 * logged[5])
    line = f"step 5/5  loss on held-out clips {logged[5]:.4f}"
    assert line in capfd.readouterr().err

  def test_the_record_has_a_line_for_each_report(self, tmp_path, log):
    run(
      tmp_path, num_steps=7, log_every=2, sample_every=3,
      held_out=lambda: iter([("clips", make_batch(1000))]),
    )  # fmt: skip
    lines = record.read(tmp_path)
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 7]
    logged = {}
    for step, values in log:
      logged[step] = logged.get(step, {"step": step}) | values
    assert lines == list(logged.values())
    looked = [line["step"] for line in lines if "unseen_loss" in line]
    assert looked == [3, 6, 7]

  def test_a_killed_run_resumes_without_repeated_lines(self, tmp_path, log):
    def killed(start):
      yield from itertools.islice(batches(start), 5)
      raise KeyboardInterrupt

    whole = run(tmp_path / "whole", num_steps=6, log_every=1)
    pieces = {"num_steps": 6, "log_every": 1, "checkpoint_every": 3}
    with pytest.raises(KeyboardInterrupt):
      run(tmp_path / "pieces", killed, **pieces)
    before = [line["step"] for line in record.read(tmp_path / "pieces")]
    assert before == [1, 2, 3, 4]
    assert_same(run(tmp_path / "pieces", **pieces), whole)
    expected, found = (
      [(line["step"], line["loss"]) for line in record.read(tmp_path / name)]
      for name in ("whole", "pieces")
    )
    assert found == expected

  def test_a_stopped_run_logs_its_last_steps(self, tmp_path, log):
    def stopped(start):
      for step, batch in batches(start):
        if step == 3:
          os.kill(os.getpid(), signal.SIGTERM)
        yield step, batch

    run(tmp_path, stopped, num_steps=9, log_every=100)
    assert [line["step"] for line in record.read(tmp_path)] == [3]

  def test_the_time_of_a_run_is_divided(self, tmp_path, log):
    run(
      tmp_path, num_steps=6, log_every=2, to_show=make_batch(0),
      examples=[make_batch(0, 1)],
    )  # fmt: skip
    rows = record.read(tmp_path)
    spent = [
      {k: v for k, v in row.items() if k.startswith("seconds/")} for row in rows
    ]
    kinds = {kind.removeprefix("seconds/") for row in spent for kind in row}
    assert kinds == {*laps.KINDS}
    # They add up to the time between two reports.
    for before, after, seconds in zip(rows, rows[1:], spent[1:], strict=False):
      between = after["time"] - before["time"]
      assert sum(seconds.values()) == pytest.approx(between, abs=0.05)

  def test_a_full_disk_does_not_end_a_run(
    self, tmp_path, log, monkeypatch, capfd
  ):
    def full(*_):
      raise InputError("cannot write metrics.jsonl: No space left on device")

    monkeypatch.setattr(record, "append", full)
    state = run(tmp_path, num_steps=4)
    assert int(state.step) == 4
    assert "No space left on device; the run goes on" in capfd.readouterr().err

  def test_the_resolved_config_is_written(self, tmp_path, log):
    run(tmp_path, num_steps=2, seed=5)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == make_config(num_steps=2, seed=5).to_dict()


def test_the_last_weights_are_saved(tmp_path, log):
  state = run(tmp_path, num_steps=3, checkpoint_every=2)
  assert_same(load_params(tmp_path), state.ema_params)
  assert_same(load_params(tmp_path, name="params"), state.params)


def test_a_run_starts_from_the_given_weights(tmp_path, log):
  given = {"kernel": np.full((4, 4), 7.0, np.float32)}
  options = {"learning_rate": 0.0}
  state = run(tmp_path, num_steps=1, initial_params=lambda: given, **options)
  assert_same(state.params, given)
  assert_same(state.ema_params, given)

  def gone():
    raise AssertionError("a resumed run needs no other weights")

  state = run(tmp_path, num_steps=2, initial_params=gone, **options)
  assert int(state.step) == 2


class TestRefusals:
  def test_workdir_that_cannot_be_written(self, tmp_path, log, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
      run(tmp_path / "file" / "run")

    def refuse(path):
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(InputError, match=r"cannot write .*Permission denied"):
      run(tmp_path)

  @pytest.mark.parametrize("name", ["num_steps", "batch_size", "log_every"])
  @pytest.mark.parametrize("value", [0, -3])
  def test_counts_that_are_not_positive(self, tmp_path, log, name, value):
    with pytest.raises(InputError, match=f"train.{name} must be .* {value}$"):
      run(tmp_path / "run", **{name: value})
    assert not (tmp_path / "run").exists()

  def test_the_folder_of_another_model_is_unchanged(self, tmp_path, log):
    run(tmp_path, num_steps=2)
    config = (tmp_path / "config.json").read_text()
    with pytest.raises(InputError, match="is of another model"):
      run(tmp_path, num_steps=9, init=lambda rng: {"kernel": jnp.zeros((5, 5))})
    assert (tmp_path / "config.json").read_text() == config


def test_real_writer(tmp_path):
  """With TensorBoard itself, and the curve."""
  run(tmp_path, num_steps=2, to_show=make_batch(0))
  assert list(tmp_path.glob("events.out.tfevents.*"))
  assert Image.open(tmp_path / "curve.png").format == "PNG"
  picture = Image.open(tmp_path / "samples" / "step_00000002.png")
  assert picture.size == (16, 4)
