"""The places that a filter is named in agree with each other."""

import dataclasses

from data_pipelines.footage.quarantine import REASONS
from data_pipelines.footage.scores import Scores
from data_pipelines.footage.settings import Limits
from data_pipelines.shards.dataset import SCORES


def test_every_score_is_a_feature_of_the_records():
  assert {*Scores._fields, "aesthetics"} == set(SCORES)


def test_every_limit_bounds_a_score_and_has_a_reason_and_a_help():
  for field in dataclasses.fields(Limits):
    side, score = field.name.split("_", 1)
    assert side in ("min", "max") and score in SCORES
    assert REASONS[field.name].endswith("the limit")
    assert f"{field.name}: " in Limits.__doc__
