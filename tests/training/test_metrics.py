"""Metrics of a run: their means, and the files they are written to."""

import sys
import types
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from i2vgen_jax.errors import InputError
from i2vgen_jax.training import metrics
from i2vgen_jax.training.metrics import (
  MetricWriter,
  Window,
  Work,
  progress_line,
)

WORK = Work(examples=3, frames=12, flops=10**12)


def one_step(loss, skipped=0.0):
  return {"loss": np.float32(loss), "skipped": np.float32(skipped)}


class TestWindow:
  def test_means_exclude_skipped_steps(self):
    window = Window()
    for step in (one_step(1), one_step(np.nan, 1), one_step(4)):
      window.add(step, WORK)
    values = window.report()
    assert values["loss"] == 2.5
    assert values["skipped"] == 1

  def test_windows_do_not_mix(self):
    window = Window()
    window.add(one_step(1), WORK)
    window.report()
    window.add(one_step(3), WORK)
    assert window.report()["loss"] == 3

  def test_consecutive_skipped_steps_are_counted_across_windows(self):
    window = Window()
    rows = []
    for skipped in (1, 1, 0, 1):
      window.add(one_step(1, skipped), WORK)
      window.report()
      rows.append(window.bad_in_a_row)
    assert rows == [1, 2, 0, 1]

  def test_a_loss_far_above_its_median_is_bad(self):
    window = Window(start=100)
    for loss in (*[1] * 19, 900, *[1.5] * 5, 9):
      window.add(one_step(loss), WORK)
    assert (window.bad_in_a_row, window.sound) == (0, 125)
    for count in (1, 2, 3):
      window.add(one_step(11), WORK)
      assert (window.bad_in_a_row, window.sound) == (count, 125)
    window.add(one_step(1), WORK)
    assert (window.bad_in_a_row, window.sound) == (0, 129)

  def test_speed_excludes_the_compiling_step(self, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    window = Window()
    now[0] += 60
    window.add(one_step(1), WORK)
    assert "steps_per_second" not in window.report()
    for _ in range(4):
      now[0] += 0.5
      window.add(one_step(1), WORK)
    values = window.report(peak=10e12)
    assert values["steps_per_second"] == 2
    assert values["examples_per_second"] == 6
    assert values["frames_per_second"] == 24
    assert values["tflops_per_second"] == 2
    assert values["mfu"] == 0.2


def test_progress_line():
  values = {"loss": 0.12345, "skipped": 0.0, "steps_per_second": 3.2}
  assert progress_line(200, 1000, values) == (
    "step 200/1000  loss 0.1235  3.20 steps/s  ETA 0:04:10"
  )
  # The first line of a run has no speed yet; a bad window has no loss.
  assert progress_line(1, 9, {"skipped": 1.0}) == "step 1/9  skipped 1"


def test_tensorboard_and_pictures_can_be_read_back(tmp_path):
  from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
  )
  from tensorboard.util.tensor_util import make_ndarray

  picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
  with MetricWriter(tmp_path) as writer:
    writer.scalars(10, {"loss": 0.5})
    writer.scalars(20, {"loss": 0.25})
    writer.picture(20, picture)

  events = EventAccumulator(str(tmp_path)).Reload()
  tensors = events.Tensors("loss")
  assert [event.step for event in tensors] == [10, 20]
  values = [make_ndarray(event.tensor_proto) for event in tensors]
  assert values == [0.5, 0.25]
  assert "sample" in events.Tags()["tensors"]

  files = list((tmp_path / "samples").iterdir())
  assert [f.name for f in files] == ["step_00000020.png"]
  np.testing.assert_array_equal(np.array(Image.open(files[0])), picture)


def test_without_clu_the_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "clu", None)
  with pytest.raises(InputError, match="extra `data`"):
    MetricWriter(tmp_path)


class FakeWandb(types.ModuleType):
  """Records what is logged."""

  class Error(Exception):
    pass

  def __init__(self):
    super().__init__("wandb")
    self.ids, self.logged, self.finished = [], [], 0

  def Image(self, pixels):
    return "image", pixels.shape

  def init(self, *, project, name, id, resume, dir):
    assert (project, resume) == ("films", "allow") and name == dir.name
    self.ids.append(id)
    return self

  def log(self, values, step):
    self.logged.append((step, values))

  def finish(self):
    self.finished += 1


class TestWandb:
  @pytest.fixture(autouse=True)
  def no_tensorboard(self, monkeypatch):
    monkeypatch.setattr(metrics, "_summary_writer", lambda _: mock.Mock())

  def test_a_resumed_run_goes_on_in_the_same_curves(
    self, tmp_path, monkeypatch
  ):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for step in (1, 2):
      with MetricWriter(tmp_path, "films") as writer:
        writer.scalars(step, {"loss": 0.5})
        writer.picture(step, np.zeros((4, 6, 3), np.uint8))
    picture = {"sample": [("image", (4, 6, 3))]}
    assert wandb.logged == [
      (1, {"loss": 0.5}), (1, picture), (2, {"loss": 0.5}), (2, picture)
    ]  # fmt: skip
    first, second = wandb.ids
    assert first == second and wandb.finished == 2

  def test_a_missing_package_is_named(self, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="pip install wandb"):
      MetricWriter(tmp_path, "films")

  def test_without_a_login_the_advice_is_to_log_in(self, tmp_path, monkeypatch):
    wandb = FakeWandb()

    def fail(**_):
      raise wandb.Error("no API key")

    wandb.init = fail
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(InputError, match="no API key; run wandb login"):
      MetricWriter(tmp_path, "films")
