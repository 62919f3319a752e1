"""The same tasks, whoever runs them."""

import functools

import pytest

from data_pipelines.runner import beam_runner, in_order


def square(folder, number):
  (folder / str(number)).write_text(str(number**2))


@pytest.mark.parametrize("make", [lambda: in_order, lambda: beam_runner([])])
def test_every_task_is_done(tmp_path, make):
  make()(functools.partial(square, tmp_path), [3, 0, 5])
  done = {path.name: path.read_text() for path in tmp_path.iterdir()}
  assert done == {"3": "9", "0": "0", "5": "25"}


def test_no_tasks(tmp_path):
  beam_runner([])(functools.partial(square, tmp_path), [])
  assert not list(tmp_path.iterdir())


def test_a_task_that_fails_is_no_success(tmp_path):
  with pytest.raises(Exception, match="absent"):
    beam_runner([])(functools.partial(square, tmp_path / "absent"), [1])
