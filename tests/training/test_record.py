"""The record of a run: one line per report, none twice, and its curve."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from i2vgen_jax import files
from i2vgen_jax.errors import InputError
from i2vgen_jax.training import record

CONFIG = {"data": {"size": (8, 8)}, "train": {"seed": 0, "learning_rate": 1.0}}


@pytest.fixture
def three(tmp_path):
  """The folder of a run with reports after 2, 4 and 6 steps."""
  record.append(tmp_path, 2, {"loss": 0.9, "skipped": 0.0})
  record.append(tmp_path, 4, {"loss": 0.7, "unseen_loss": 0.8})
  record.append(tmp_path, 6, {"loss": 0.5})
  return tmp_path


def steps(workdir):
  return [report["step"] for report in record.read(workdir)]


def test_a_line_is_a_report(three):
  lines = (three / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in lines] == record.read(three)
  assert record.read(three)[1] == {"step": 4, "loss": 0.7, "unseen_loss": 0.8}


def test_values_that_are_not_finite_become_null(tmp_path):
  record.append(tmp_path, 1, {"loss": np.nan, "unseen_loss": np.inf})
  expected = {"step": 1, "loss": None, "unseen_loss": None}
  assert record.read(tmp_path) == [expected]
  record.draw(tmp_path)
  assert not (tmp_path / "curve.png").exists()


class TestResume:
  @pytest.mark.parametrize(
    ("step", "left"), [(0, []), (3, [2]), (4, [2, 4]), (9, [2, 4, 6])]
  )
  def test_steps_that_will_be_repeated_are_dropped(self, three, step, left):
    record.resume(three, step)
    assert steps(three) == left
    record.append(three, step + 1, {"loss": 0.4})
    assert steps(three) == [*left, step + 1]

  def test_an_incomplete_last_line_is_dropped(self, three):
    path = three / "metrics.jsonl"
    path.write_text(path.read_text()[:-5])
    assert steps(three) == [2, 4]
    record.resume(three, 5)
    record.append(three, 6, {"loss": 0.5})
    assert steps(three) == [2, 4, 6]

  def test_a_new_run_has_no_record_yet(self, tmp_path):
    record.resume(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


class TestCurve:
  def test_it_shows_both_losses(self, three):
    record.draw(three)
    both = np.array(Image.open(three / "curve.png").convert("RGB"))
    record.resume(three, 2)
    one = np.array(Image.open(three / "curve.png").convert("RGB"))
    assert both.shape == one.shape
    assert colours(both) - colours(one)
    assert not list(three.glob("*.tmp"))

  def test_without_matplotlib_the_extra_is_named(self, three, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"i2vgen-jax\[data\]"):
      record.draw(three)


def colours(picture):
  """Colours of the lines; white and grey are not counted."""
  pixels = picture.reshape(-1, 3)
  strong = np.ptp(pixels.astype(int), axis=1) > 120
  return {tuple(p) for p in np.unique(pixels[strong], axis=0)}


class TestUnreadable:
  @pytest.mark.parametrize(
    "line", [b"{", b"[4]", b'{"loss": 1}', b'{"step": "4"}', b"\xff\xfe"]
  )
  def test_a_line_that_is_not_a_report_is_left_out(self, three, line, capsys):
    path = three / "metrics.jsonl"
    before = path.read_bytes()
    path.write_bytes(line + b"\n" + before)
    with pytest.raises(InputError, match=r"metrics\.jsonl: .*; move it away"):
      record.read(three)
    record.resume(three, 4)
    assert [row["step"] for row in record.read(three)] == [2, 4]
    assert "1 line that is not the report of a step" in capsys.readouterr().err
    kept = three / "metrics.jsonl.damaged"
    assert kept.read_bytes() == line + b"\n" + before

  def test_a_folder_in_its_place(self, tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match=r"cannot read .*metrics.jsonl"):
      record.resume(tmp_path, 0)


@pytest.fixture
def workdir(tmp_path):
  """A run with a config."""
  files.write_json(tmp_path / record.CONFIG, CONFIG)
  return tmp_path


def test_a_resumed_run_may_change_what_does_not_decide_the_order(workdir):
  changed = CONFIG | {"train": {"seed": 0, "learning_rate": 2.0}}
  record.check_same(workdir, changed, ())
  record.check_same(workdir / "new", changed, ())


@pytest.mark.parametrize(
  ("changed", "key"),
  [
    ({"data": {"size": (8, 16)}}, "data.size"),
    ({"train": {"seed": 1}}, "train.seed"),
  ],
)
def test_what_decides_the_order_is_kept(workdir, changed, key):
  with pytest.raises(InputError, match=f"with --config.{key}=.*--allow={key}"):
    record.check_same(workdir, CONFIG | changed, ("other",))
  record.check_same(workdir, CONFIG | changed, (key,))


def test_a_run_older_than_equal_work_is_resumed_without_it(tmp_path):
  several = {"buckets": [[1, 8.0, 1.0], [8, 8.0, 1.0]]}
  files.write_json(tmp_path / record.CONFIG, {"data": several})
  equal = several | {"equal_work": True}
  with pytest.raises(
    InputError, match=r"with --config\.data\.equal_work=False, now it is True;"
  ):
    record.check_same(tmp_path, {"data": equal}, ())
  record.check_same(tmp_path, {"data": equal | {"equal_work": False}}, ())
  # All batches of one bucket are equal.
  one = {"buckets": [[8, 8.0, 1.0]]}
  files.write_json(tmp_path / record.CONFIG, {"data": one})
  record.check_same(tmp_path, {"data": one | {"equal_work": True}}, ())


@pytest.mark.parametrize(
  ("changed", "key"),
  [
    ({"init_from": "other"}, "init_from"),
    ({"lora": {"alpha": 2}}, "lora.alpha"),
  ],
)
def test_a_lora_is_continued_on_the_same_weights_alone(tmp_path, changed, key):
  config = {"objective": "lora", "init_from": "base", "lora": {"alpha": 1}}
  files.write_json(tmp_path / record.CONFIG, config)
  record.check_same(tmp_path, config, ())
  with pytest.raises(InputError, match=f"with --config.{key}=.*--allow={key}"):
    record.check_same(tmp_path, config | changed, ())
  # Other trainings only start from them.
  config |= {"objective": "diffusion"}
  files.write_json(tmp_path / record.CONFIG, config)
  record.check_same(tmp_path, config | changed, ())
