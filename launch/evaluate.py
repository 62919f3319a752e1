"""`i2vgen evaluate`: measures a cascade on held-out clips."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from data_pipelines.procedural import world
from i2vgen_jax.cascade import BUNDLED, Cascade
from i2vgen_jax.evaluation import motion, spectra
from i2vgen_jax.evaluation.quality import psnr
from i2vgen_jax.files import replacing, write_json
from i2vgen_jax.models import build
from launch import arguments, outputs
from launch.arguments import Count, Seed, Weights
from launch.progress import ProgressBar

BATCH = 16
# Number of clips of the untrained denoisers; their figures need no more.
UNTRAINED_CLIPS = 32
SHEET_CLIPS = 12

Clip = UInt8[np.ndarray, "f h w 3"]
Clips = UInt8[np.ndarray, "b f h w 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
  """Measures a cascade on held-out clips of the procedural dataset.

      i2vgen evaluate --weights DIR --num-clips 128 --output DIR

  Each clip has a combination of object, ground and motion that is not in the
  training data. The cascade gets the first frame and the caption; its result
  is compared with the true clip. For reference, chance, the same cascade with
  untrained denoisers, and the true clips are measured as well.

  Attributes:
    weights: A cascade folder, a folder or file of public weights, or owner/name
      on the Hub. The small cascade of this package by default.
    num_clips: Number of held-out clips.
    seed: Seed of the clips and of sampling.
    output: Folder for figures and pictures.
  """

  weights: Weights = str(BUNDLED)
  num_clips: Count = 128
  seed: Seed = 0
  output: Path = Path("evaluation")


@dataclasses.dataclass(frozen=True)
class Case:
  """A held-out scene, rendered at the sizes of the base and refine stages."""

  scene: world.Scene
  small: Clip
  large: Clip
  small_mask: Bool[np.ndarray, "f h w"]
  large_mask: Bool[np.ndarray, "f h w"]

  @classmethod
  def draw(cls, seed: int, number: int, cascade: Cascade) -> "Case":
    scene = world.numbered_scene(seed, number, "test")
    base, refine = (cascade.stage(n).sampling for n in ("base", "refine"))
    sizes = (base.size, refine.size)
    return cls(
      scene,
      *(world.render(scene, size, base.num_frames) for size in sizes),
      *(world.object_mask(scene, size, base.num_frames) for size in sizes),
    )


def main(argv: list[str]) -> None:
  """Prints the figures, and writes them with pictures of the clips.

  Raises:
    InputError: the weights cannot be loaded or lack a stage, or the output
      folder cannot be written.
  """
  args = arguments.parse(Arguments, argv, "i2vgen evaluate")
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
  # The figures first: drawing the spectra needs matplotlib.
  write_json(args.output / "figures.json", figures)
  print(table(figures))
  write_sheet(args.output / "clips.png", cases, base, refined)
  write_spectra(args.output / "spectra.png", cases, base, refined)
  print(f"contact sheet, spectra and figures in {args.output}")


def generate(
  cascade: Cascade, cases: Sequence[Case], seed: int, label: str
) -> tuple[Clips, Clips]:
  """Base clips and refined clips of all cases."""
  batches = []
  with ProgressBar() as progress:
    for start in range(0, len(cases), BATCH):
      # A smaller last batch would be compiled again.
      batch = [cases[n % len(cases)] for n in range(start, start + BATCH)]
      prompts = [world.caption(case.scene) for case in batch]
      clips = [case.large[0] for case in batch]
      made = []
      for stage in (cascade.stage("base"), cascade.stage("refine")):
        clips = cascade.run(stage, clips, prompts, seed=seed + start)
        made.append(clips)
      batches.append(made)
      done = min(start + BATCH, len(cases))
      progress(f"{label} clips", done, len(cases))
  base, refined = zip(*batches, strict=True)
  count = len(cases)
  return np.concatenate(base)[:count], np.concatenate(refined)[:count]


def untrain(cascade: Cascade) -> Cascade:
  """The same cascade with randomly initialised denoisers."""
  networks = dict(cascade.networks)
  for name in ("base", "refine"):
    params = build.init_params(networks[name].module, jax.random.key(0))
    networks[name] = dataclasses.replace(networks[name], params=params)
  return dataclasses.replace(cascade, networks=networks)


def motions(
  cases: Sequence[Case], clips: Sequence[Clip], *, small: bool
) -> list[str]:
  """Measured motion of each clip, at the size of the base stage if `small`."""
  masks = [c.small_mask[0] if small else c.large_mask[0] for c in cases]
  return [
    motion.classify(motion.measure(clip, mask), world.MOTIONS)
    for clip, mask in zip(clips, masks, strict=True)
  ]


def accuracy(cases: Sequence[Case], measured: Sequence[str]) -> float:
  """Fraction of the clips whose measured motion is that of the caption."""
  return float(np.mean([c.scene.motion for c in cases] == np.array(measured)))


def by_motion(cases: Sequence[Case], measured: Sequence[str]) -> dict[str, str]:
  """Accuracy for each motion of the captions, as "hits of clips"."""
  asked = np.array([case.scene.motion for case in cases])
  hits = asked == np.array(measured)
  return {
    name: f"{hits[asked == name].sum()} of {(asked == name).sum()}"
    for name in world.MOTIONS
  }


def first_frame_psnr(
  cases: Sequence[Case], clips: Sequence[Clip]
) -> list[float]:
  """Mean, and the value that 95 % of the clips reach, in dB."""
  pairs = zip(clips, cases, strict=True)
  values = [psnr(clip[0], case.small[0]) for clip, case in pairs]
  return [float(np.mean(values)), float(np.percentile(values, 5))]


def measure(
  cases: Sequence[Case], base: Clips, refined: Clips
) -> dict[str, object]:
  """All figures of a cascade.

  Args:
    cases: the held-out scenes.
    base: clip of the base stage for each case.
    refined: clip of the refine stage for each case.
  """
  truth = [case.large for case in cases]
  measured = {
    "true_clips": motions(cases, truth, small=False),
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
  metrics = {
    "spatial_distance": (np.less, _distance(spectra.spatial_spectrum)),
    "temporal_distance": (np.less, _distance(spectra.temporal_spectrum)),
    "object_psnr": (
      np.greater,
      lambda clip, case: psnr(clip, case.large, case.large_mask),
    ),
  }
  enlarged = [bilinear(clip, refined.shape[2:4]) for clip in base]
  for name, (better, metric) in metrics.items():
    before, after = (
      np.array([metric(*pair) for pair in zip(clips, cases, strict=True)])
      for clips in (enlarged, refined)
    )
    figures[name] = {
      "bilinear": float(before.mean()),
      "refined": float(after.mean()),
      "clips_better": float(better(after, before).mean()),
    }
  return figures


def _distance(spectrum: Callable) -> Callable[[Clip, Case], float]:
  return lambda clip, case: spectra.log_distance(
    spectrum(clip), spectrum(case.large)
  )


def bilinear(clip: Clip, size: tuple[int, int]) -> Clip:
  """The clip enlarged to (height, width)."""
  frames = [
    Image.fromarray(frame).resize(size[::-1], Image.Resampling.BILINEAR)
    for frame in clip
  ]
  return np.stack([np.asarray(frame) for frame in frames])


_TABLE = """\
{clips} held-out clips

motion named in the prompt is the motion measured (target >= 90 %)
  chance            {motion_chance:7.1%}
  untrained base    {motion_untrained:7.1%}
  base              {motion_base:7.1%}
  refined           {motion_refined:7.1%}
  true clips        {motion_true_clips:7.1%}
  base, motion by motion:
{by_name}

first frame against the picture, dB: mean, 95 % reach (target >= 24)
  untrained base    {first_frame_psnr_untrained[0]:6.2f} \
{first_frame_psnr_untrained[1]:6.2f}
  base              {first_frame_psnr[0]:6.2f} {first_frame_psnr[1]:6.2f}

against the true clip          bilinear   refined   clips better
{against_truth}"""
_ROW = (
  "  {name:<28} {bilinear:8.3f}  {refined:8.3f}   {clips_better:9.1%}".format
)


def table(figures: dict) -> str:
  """The figures as a table for people."""
  by_name = figures["motion_base_by_name"].items()
  rows = {
    "spatial spectrum, |log10|": figures["spatial_distance"],
    "temporal spectrum, |log10|": figures["temporal_distance"],
    "object's region, dB": figures["object_psnr"],
  }
  return _TABLE.format(
    **figures,
    by_name="\n".join(f"    {name:<24}{hits}" for name, hits in by_name),
    against_truth="\n".join(_ROW(name=name, **f) for name, f in rows.items()),
  )


def write_sheet(
  path: Path, cases: Sequence[Case], base: Clips, refined: Clips
) -> None:
  """Frames of the first clips: true, base and refined, row by row."""
  rows = []
  clips = list(zip(cases, base, refined, strict=True))[:SHEET_CLIPS]
  for case, small, large in clips:
    enlarged = bilinear(small, large.shape[1:3])
    rows += [np.concatenate([*c], 1) for c in (case.large, enlarged, large)]
  with replacing(path) as temporary:
    Image.fromarray(np.concatenate(rows)).save(temporary, "PNG")


def write_spectra(
  path: Path, cases: Sequence[Case], base: Clips, refined: Clips
) -> None:
  """The mean spectra as a plot."""
  groups = {
    "true": [case.large for case in cases],
    "base, bilinear": [bilinear(clip, refined.shape[2:4]) for clip in base],
    "refined": refined,
  }
  spatial, temporal = (
    {
      name: np.mean([spectrum(clip) for clip in clips], axis=0)
      for name, clips in groups.items()
    }
    for spectrum in (spectra.spatial_spectrum, spectra.temporal_spectrum)
  )
  spectra.spectra_plot(spatial, temporal, path)
