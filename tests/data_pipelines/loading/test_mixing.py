"""Weights and epochs of mixtures, and the records that each bucket takes."""

import collections

import pytest

from data_pipelines.loading.buckets import make_buckets
from data_pipelines.loading.mixing import Mixture, assign
from i2vgen_jax.errors import InputError


def ids(row, numbers):
  return [row.read(row.place(n))["id"].decode() for n in numbers]


def assigned(mixture, *buckets, size=(48, 32)):
  rows, report = assign(mixture, "clips", make_buckets(buckets, size))
  return list(rows.values()), report


def test_weights_override_sizes(mixed):
  mixture = Mixture.open([(mixed["wide"], 1), (mixed["tall"], 3.0)], 3)
  names = ids(mixture, range(400))
  for start in range(0, 400, 40):  # not only on average
    tall = sum(name.startswith("tall") for name in names[start : start + 40])
    assert tall == 30


def test_each_dataset_has_its_own_epochs(mixed):
  row = Mixture.open([(mixed["wide"], 1), (mixed["tall"], 3)], 3)
  wide, tall = [], []
  for name in ids(row, range(120)):
    (tall if name.startswith("tall") else wide).append(name)
  assert len(wide) == 30 and len(tall) == 90
  for names, size in ((wide, 9), (tall, 5)):
    epochs = [names[n : n + size] for n in range(0, len(names), size)]
    whole = [epoch for epoch in epochs if len(epoch) == size]
    assert {len(set(epoch)) for epoch in whole} == {size}
    assert len(set(map(tuple, whole))) > 1


def test_without_weights_every_record_is_equally_frequent(mixed):
  row = Mixture.open([mixed["wide"], mixed["tall"]], 0)
  counts = collections.Counter(ids(row, range(28)))
  assert len(counts) == 14 and set(counts.values()) == {2}


def test_distant_examples_are_computed_directly(mixed):
  row = Mixture.open([(mixed["wide"], 1), (mixed["tall"], 2)], 0)
  assert len(set(ids(row, range(10**15, 10**15 + 60)))) == 14


@pytest.mark.parametrize("weights", [(1, 0), (1, -2)])
def test_weights_must_be_positive(mixed, weights):
  with pytest.raises(InputError, match="positive weight"):
    Mixture.open([(mixed["wide"], weights[0]), (mixed["tall"], weights[1])], 0)


def test_all_or_no_directories_have_weights(mixed):
  with pytest.raises(InputError, match="or none"):
    Mixture.open([(mixed["wide"], 1), mixed["tall"]], 0)


def test_clips_go_to_the_nearest_shape_if_long_enough(mixed):
  mixture = Mixture.open([mixed["wide"], mixed["tall"]], 3)
  rows, report = assigned(
    mixture, (8, 8.0, 1.0), (4, 8.0, 1.0, (16, 24)), (12, 8.0, 1.0, (24, 16))
  )
  drawn = [set(ids(row, range(60))) for row in rows]
  wide = {f"wide{n}" for n in range(6)}
  assert drawn == [wide, {f"tall{n}" for n in range(5)}, wide]
  assert report[0].startswith("8 frames in the shape of 48x32: 6 clips of ")
  assert report[-1].startswith("3 of 14 clips fit no bucket")


def test_a_bucket_for_short_clips_leaves_none_out(mixed):
  mixture = Mixture.open([(mixed["wide"], 1.0), (mixed["tall"], 1.0)], 3)
  rows, report = assigned(mixture, (3, 8.0, 1.0), (8, 8.0, 1.0))
  assert len(set(ids(rows[0], range(60)))) == 14
  assert len(set(ids(rows[1], range(60)))) == 11
  assert len(report) == 2
  assert f"9 clips of {mixed['wide']}, 5 clips of {mixed['tall']}" in report[0]


def test_datasets_without_a_fitting_clip_are_skipped(mixed):
  mixture = Mixture.open([(mixed["wide"], 1.0), (mixed["tall"], 99.0)], 3)
  (row,), report = assigned(mixture, (12, 8.0, 1.0))
  assert set(ids(row, range(30))) == {f"wide{n}" for n in range(6)}
  assert f"0 clips of {mixed['tall']}" in report[0]


def test_buckets_that_differ_in_fps_share_a_mixture(mixed):
  rows, report = assigned(
    Mixture.open([mixed["tall"]], 3), (8, 8, 1), (8, 4, 1)
  )
  assert rows[0] is rows[1]
  assert len(report) == 1


def test_a_bucket_that_fits_nothing_is_rejected(mixed):
  mixture = Mixture.open([mixed["tall"]], 3)
  with pytest.raises(
    InputError,
    match=r"bucket of 9 frames, 8 fps, 48x32: 5 of 5 .* fewer than 9",
  ):
    assigned(mixture, (9, 8.0, 1.0))
  with pytest.raises(InputError, match=r"24x16: 0 of 5 .* another bucket"):
    assigned(mixture, (8, 8.0, 1.0, (24, 16)), (8, 8.0, 1.0, (16, 24)))


def test_clips_without_a_bucket_are_reported(mixed):
  rows, report = assign(Mixture.open([mixed["tall"]], 3), "clips", [])
  assert (rows, report) == ({}, ["no bucket draws from the 5 clips"])
