"""Clips that any weights make of pictures with prompts, or of a dataset."""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from i2vgen_jax.cascade import Cascade
from i2vgen_jax.errors import InputError
from i2vgen_jax.evaluation import spectra
from i2vgen_jax.evaluation.frechet import frechet_distance
from launch.evaluation import measures
from launch.evaluation.generation import Frames, Plan, bilinear, generate
from launch.evaluation.inputs import Inputs
from launch.evaluation.report import NUM_SHOWN, Power, Shown
from launch.evaluation.towers import Towers

# What the clips of a stage are called, and those of a dataset.
COLUMNS = {"base": "base", "refine": "refined", "real": "real"}

Features = Callable[[Frames], Any]
Row = dict[str, Any]


class Measured(NamedTuple):
  """The result of an evaluation.

  Attributes:
    means: mean of each metric over the clips, by metric and column.
    rows: for each clip its name, prompt and seed, and its metrics by column.
    powers: mean spectra by column.
    shown: the first clips, to look at.
  """

  means: dict[str, dict[str, float]]
  rows: list[Row]
  powers: dict[str, Power]
  shown: list[Shown]


def check(plan: Plan) -> None:
  """Raises InputError unless the stages make videos of pictures."""
  first, *_ = plan.values()
  if first.starts_from_clip:
    raise InputError(
      "a refine stage alone makes no video of a picture; evaluate it after a "
      "base stage, with --stage cascade"
    )
  if first.sampling.num_frames < 2:
    raise InputError("one frame is no video; give at least --num-frames 2")


def evaluate(
  cascade: Cascade,
  plan: Plan,
  inputs: Inputs,
  *,
  towers: Towers | None,
  lpips: measures.Lpips | None,
  features: Features | None,
  seed: int,
  batch_size: int,
) -> Measured:
  """Makes a clip of each input and measures it.

  Args:
    cascade: the weights.
    plan: the stages; see `check`.
    inputs: what the clips are made of.
    towers: CLIP; None leaves its metrics out.
    lpips: distance of two pictures; None leaves it out.
    features: of a clip, for the Fréchet distance to the real ones; None leaves
      it out.
    seed: clip n has the seed `seed + n`.
    batch_size: number of clips that are made at once.
  """
  rows, shown = [], []
  powers, points = collections.defaultdict(list), collections.defaultdict(list)
  *_, last = plan
  batches = generate(
    cascade,
    plan,
    inputs.count,
    lambda n: inputs.read(n, plan[last].sampling),
    seeds=range(seed, seed + inputs.count),
    batch_size=batch_size,
    label="clips",
  )
  for batch, made in batches:
    enlarged = bilinear(made["base"], made[last])
    for k, given in enumerate(batch):
      clips = {name: made[name][k] for name in plan}
      if given.real is not None:
        clips["real"] = given.real
      # Spectra of frames of equal size.
      whole = clips | {"base": enlarged[k]}
      power = {name: Power.of(clip) for name, clip in whole.items()}
      row = {
        "name": given.name,
        "prompt": given.prompt,
        "seed": seed + len(rows),
      }
      text = towers and towers.of_text(given.prompt)
      for name, clip in clips.items():
        picture, fps = None, given.fps
        if stage := plan.get(name):
          picture, fps = given.shown_to(stage), stage.sampling.fps
        values = measures.of_clip(clip, fps)
        if towers is not None:
          values |= measures.of_content(clip, towers, picture, text)
        if picture is not None:
          values |= measures.of_start(clip, picture, lpips)
          if given.real is not None:
            values |= _distances(power[name], power["real"])
        row[COLUMNS[name]] = values
        powers[COLUMNS[name]].append(power[name])
        if features is not None:
          points[name].append(features(clip))
      rows.append(row)
      if len(shown) < NUM_SHOWN:
        shown.append(_shown(row, clips, plan[last].sampling.fps))
  means = _means(rows)
  if features is not None:
    real = np.asarray(points.pop("real"), np.float64)
    means["frechet_distance"] = {
      COLUMNS[name]: frechet_distance(np.asarray(some, np.float64), real)
      for name, some in points.items()
    }
  mean_powers = {name: Power.mean(some) for name, some in powers.items()}
  return Measured(means, rows, mean_powers, shown)


def _distances(power: Power, real: Power) -> dict[str, float]:
  distances = map(spectra.log_distance, power, real)
  return dict(
    zip(("spatial_distance", "temporal_distance"), distances, strict=True)
  )


def _means(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
  """Means over the clips of which a metric was measured, in a fixed order."""
  means = collections.defaultdict(dict)
  for name in measures.METRICS:
    for column in COLUMNS.values():
      values = [row[column].get(name) for row in rows if column in row]
      if known := [value for value in values if value is not None]:
        means[name][column] = float(np.mean(known))
  return dict(means)


def _shown(row: Row, clips: dict[str, Frames], fps: float) -> Shown:
  made = [name for name in clips if name != "real"]
  facts = [row["name"], f"seed {row['seed']}"]
  for name in ("first_frame_psnr", "motion"):
    values = [row[COLUMNS[stage]][name] for stage in made]
    shown = ", ".join("-" if v is None else f"{v:.3g}" for v in values)
    facts.append(f"{name.replace('_', ' ')} {shown}")
  videos = {COLUMNS[name]: clip for name, clip in clips.items()}
  return Shown(row["prompt"], " · ".join(facts), videos, fps)
