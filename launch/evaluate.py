"""`i2vgen evaluate`: a cascade against held-out clips of the procedural set.

    i2vgen evaluate [--weights DIR] [--num-clips 128] [--output DIR]

Every clip has a combination of object, ground and motion that training never
showed. The first frame and the caption go in; what comes out is compared with
the true clip, beside three yardsticks: chance, the same cascade with untrained
denoisers, and the true clips themselves.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from data_pipelines.procedural import world
from i2vgen_jax.cascade import BUNDLED, Cascade
from i2vgen_jax.evaluation import motion, spectra
from i2vgen_jax.evaluation.quality import psnr
from i2vgen_jax.models import build
from launch import old_arguments as arguments
from launch import outputs
from launch.contact_sheet import encode_png
from launch.progress import ProgressBar

BATCH = 16
# The yardstick of untrained denoisers needs no more.
UNTRAINED_CLIPS = 32
SHEET_CLIPS = 12


@dataclasses.dataclass(frozen=True)
class Case:
  """One held-out scene at the sizes of both stages."""

  scene: world.Scene
  small: np.ndarray
  large: np.ndarray
  small_mask: np.ndarray
  large_mask: np.ndarray

  @classmethod
  def draw(cls, seed: int, number: int, cascade: Cascade) -> "Case":
    scene = world.numbered_scene(seed, number, "test")
    frames = cascade.settings("base").num_frames
    sizes = [cascade.settings(name).size for name in ("base", "refine")]
    return cls(
      scene,
      *(world.render(scene, size, frames) for size in sizes),
      *(world.object_mask(scene, size, frames) for size in sizes),
    )


def main(argv: list[str]) -> None:
  """Parses the arguments, prints the table, writes figures and pictures."""
  parser = arguments.Parser("i2vgen evaluate", description=__doc__)
  add = parser.add_argument
  add("--weights", type=Path, default=BUNDLED, help="cascade folder")
  add("--num-clips", type=arguments.count, default=128, metavar="N")
  add("--seed", type=arguments.seed, default=0)
  add(
    "--output",
    type=Path,
    default=Path("evaluation"),
    help="folder for figures and pictures",
  )
  args = parser.parse_args(argv)
  outputs.make_folder(args.output)

  cascade = Cascade.load(args.weights, np.float32)
  cases = [Case.draw(args.seed, n, cascade) for n in range(args.num_clips)]
  base, refined = generate(cascade, cases, args.seed, "trained")
  few = cases[:UNTRAINED_CLIPS]
  untrained, _ = generate(untrain(cascade), few, args.seed, "untrained")
  figures = measure(cases, base, refined) | {
    "motion_untrained": accuracy(few, motions(few, untrained, small=True)),
    "first_frame_psnr_untrained": first_frame_psnr(few, untrained),
  }

  write_pictures(args.output, cases, base, refined)
  text = json.dumps(figures, indent=2) + "\n"
  outputs.write({args.output / "figures.json": text.encode()})
  print(table(figures))
  print(f"contact sheet, spectra and figures in {args.output}")


def generate(
  cascade: Cascade, cases: list[Case], seed: int, label: str
) -> tuple[np.ndarray, np.ndarray]:
  """Base clips and refined clips of all cases."""
  line = ProgressBar()
  line.begin(f"{label} clips", len(cases))
  base, refined = [], []
  for start in range(0, len(cases), BATCH):
    # A short last batch would compile everything once more.
    part = [cases[n % len(cases)] for n in range(start, start + BATCH)]
    prompts = [world.caption(case.scene) for case in part]
    images = [case.large[0] for case in part]
    small = cascade.run_base(images, prompts, seed=seed + start)
    large = cascade.run_refine(small, prompts, seed=seed + start)
    base.append(small)
    refined.append(large)
    line.update(min(start + BATCH, len(cases)))
  line.end()
  count = len(cases)
  return np.concatenate(base)[:count], np.concatenate(refined)[:count]


def untrain(cascade: Cascade) -> Cascade:
  """The same cascade with denoisers of random weights."""

  def fresh(network: build.Network) -> build.Network:
    params = build.init_params(network.module, jax.random.key(0))
    return dataclasses.replace(network, params=params)

  return dataclasses.replace(
    cascade, base=fresh(cascade.base), refine=fresh(cascade.refine)
  )


def motions(cases: list[Case], clips: np.ndarray, *, small: bool) -> list[str]:
  """What moves how in each clip, as measured."""
  return [
    motion.classify(
      motion.measure(clip, (case.small_mask if small else case.large_mask)[0])
    )
    for case, clip in zip(cases, clips, strict=True)
  ]


def accuracy(cases: list[Case], measured: list[str]) -> float:
  """Share of the clips whose measured motion is the one in the caption."""
  pairs = zip(cases, measured, strict=True)
  return float(np.mean([case.scene.motion == name for case, name in pairs]))


def by_motion(cases: list[Case], measured: list[str]) -> dict[str, str]:
  """The same for each motion of the captions, as `hits of clips`."""
  rows = {}
  for name in world.MOTIONS:
    pairs = zip(cases, measured, strict=True)
    hits = [found == name for case, found in pairs if case.scene.motion == name]
    rows[name] = f"{sum(hits)} of {len(hits)}"
  return rows


def first_frame_psnr(cases: list[Case], clips: np.ndarray) -> list[float]:
  """Mean, and the value that 95 % of the clips reach, in dB."""
  values = [
    psnr(clip[0], case.small[0])
    for case, clip in zip(cases, clips, strict=True)
  ]
  return [float(np.mean(values)), float(np.percentile(values, 5))]


def measure(
  cases: list[Case], base: np.ndarray, refined: np.ndarray
) -> dict[str, object]:
  """All figures of the trained cascade."""
  upsampled = [bilinear(clip, refined.shape[2:4]) for clip in base]
  true_clips = [case.large for case in cases]

  def against_truth(fn: Callable, clips: list[np.ndarray]) -> list[float]:
    return [fn(*pair) for pair in zip(clips, true_clips, strict=True)]

  def region(clips: list[np.ndarray]) -> list[float]:
    triples = zip(clips, cases, strict=True)
    return [psnr(clip, case.large, case.large_mask) for clip, case in triples]

  measured = {
    "true_clips": motions(cases, true_clips, small=False),
    "base": motions(cases, base, small=True),
    "refined": motions(cases, refined, small=False),
  }
  figures: dict[str, object] = {
    "clips": len(cases),
    "motion_chance": 1 / len(world.MOTIONS),
    **{f"motion_{k}": accuracy(cases, names) for k, names in measured.items()},
    "motion_base_by_name": by_motion(cases, measured["base"]),
    "first_frame_psnr": first_frame_psnr(cases, base),
  }
  distances = {
    "spatial_distance": lambda a, b: spectra.log_distance(
      spectra.spatial_spectrum(a), spectra.spatial_spectrum(b)
    ),
    "temporal_distance": lambda a, b: spectra.log_distance(
      spectra.temporal_spectrum(a), spectra.temporal_spectrum(b)
    ),
  }
  columns = {
    name: (against_truth(fn, upsampled), against_truth(fn, list(refined)))
    for name, fn in distances.items()
  } | {"object_psnr": (region(upsampled), region(list(refined)))}
  for name, (before, after) in columns.items():
    better = np.greater if name == "object_psnr" else np.less
    figures[name] = {
      "bilinear": float(np.mean(before)),
      "refined": float(np.mean(after)),
      "clips_better": float(np.mean(better(after, before))),
    }
  return figures


def bilinear(clip: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """uint8[f h w 3] enlarged to (height, width)."""
  height, width = size
  frames = [
    np.asarray(Image.fromarray(f).resize((width, height), Image.BILINEAR))
    for f in clip
  ]
  return np.stack(frames)


def table(figures: dict) -> str:
  """The figures as a person reads them."""
  lines = [
    f"{figures['clips']} held-out clips",
    "",
    "motion named in the prompt is the motion measured (target >= 90 %)",
    f"  chance            {figures['motion_chance']:7.1%}",
    f"  untrained base    {figures['motion_untrained']:7.1%}",
    f"  base              {figures['motion_base']:7.1%}",
    f"  refined           {figures['motion_refined']:7.1%}",
    f"  true clips        {figures['motion_true_clips']:7.1%}",
    "  base, motion by motion:",
    *(f"    {k:<24}{v}" for k, v in figures["motion_base_by_name"].items()),
    "",
    "first frame against the picture, dB: mean, 95 % reach (target >= 24)",
    "  untrained base    {:6.2f} {:6.2f}".format(
      *figures["first_frame_psnr_untrained"]
    ),
    "  base              {:6.2f} {:6.2f}".format(*figures["first_frame_psnr"]),
    "",
    "against the true clip          bilinear   refined   clips better",
  ]
  names = {
    "spatial_distance": "spatial spectrum, |log10|",
    "temporal_distance": "temporal spectrum, |log10|",
    "object_psnr": "object's region, dB",
  }
  for key, name in names.items():
    f = figures[key]
    lines.append(
      f"  {name:<28} {f['bilinear']:8.3f}  {f['refined']:8.3f}"
      f"   {f['clips_better']:9.1%}"
    )
  return "\n".join(lines)


def write_pictures(
  folder: Path, cases: list[Case], base: np.ndarray, refined: np.ndarray
) -> None:
  """Contact sheet (true, base, refined clip by clip) and the mean spectra."""
  rows = []
  for case, small, large in list(zip(cases, base, refined, strict=True))[
    :SHEET_CLIPS
  ]:
    enlarged = bilinear(small, large.shape[1:3])
    rows += [np.concatenate(list(c), 1) for c in (case.large, enlarged, large)]
  sheet = encode_png(Image.fromarray(np.concatenate(rows)))
  outputs.write({folder / "clips.png": sheet})
  groups = {
    "true": [case.large for case in cases],
    "base, bilinear": [bilinear(c, refined.shape[2:4]) for c in base],
    "refined": list(refined),
  }

  def mean(fn: Callable) -> dict[str, np.ndarray]:
    return {
      name: np.mean([fn(clip) for clip in clips], axis=0)
      for name, clips in groups.items()
    }

  spectra.spectra_plot(
    mean(spectra.spatial_spectrum),
    mean(spectra.temporal_spectrum),
    folder / "spectra.png",
  )
