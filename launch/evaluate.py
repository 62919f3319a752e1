"""`i2vgen evaluate`: measures a cascade on held-out clips."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from data_pipelines.procedural import world
from i2vgen_jax.cascade import BUNDLED, Cascade
from i2vgen_jax.evaluation import motion, spectra
from i2vgen_jax.evaluation.quality import psnr
from i2vgen_jax.files import replacing, write_json
from i2vgen_jax.stage import STAGES
from launch import arguments, outputs
from launch.arguments import Count, Seed, Weights
from launch.progress import ProgressBar

BATCH = 16
# Number of clips of the untrained denoisers; their figures need no more.
UNTRAINED_CLIPS = 32
SHEET_CLIPS = 12

Clips = UInt8[np.ndarray, "b f h w 3"]
Scenes = Sequence[world.Scene]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
  """Measures a cascade on held-out clips of the procedural dataset.

      i2vgen evaluate --weights DIR --num-clips 128 --output DIR

  Each clip has a combination of object, ground and motion that is not in the
  training data. The cascade gets the first frame and the caption; its result
  is compared with the true clip. For reference, chance, the same cascade with
  untrained denoisers, and the true clips are measured as well.

  The targets: at least 0.9 of the clips have the motion that the caption names,
  and the first frame matches the picture with 24 dB in 95 % of the clips.

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


def main(argv: list[str]) -> None:
  """Prints the figures, and writes them with pictures of the clips.

  Raises:
    InputError: the weights cannot be loaded or lack a stage, or the output
      folder cannot be written.
  """
  args = arguments.parse(Arguments, argv, "i2vgen evaluate")
  outputs.make_folder(args.output)
  cascade = Cascade.load(args.weights, np.float32)
  numbers = range(args.num_clips)
  scenes = [world.numbered_scene(args.seed, n, "test") for n in numbers]
  base, refined = generate(cascade, scenes, args.seed, "trained")
  few = scenes[:UNTRAINED_CLIPS]
  untrained, _ = generate(untrain(cascade), few, args.seed, "untrained")
  figures = measure(scenes, base, refined) | {
    "motion_untrained": float(has_motion(few, untrained).mean()),
    "first_frame_psnr_untrained": first_frame_psnr(few, untrained),
  }
  # Figures are written first, because the plot needs matplotlib.
  write_json(args.output / "figures.json", figures)
  print(*table(figures), sep="\n")
  clips = {
    "true": drawn(world.render, scenes, refined),
    "base, bilinear": bilinear(base, refined),
    "refined": refined,
  }
  write_sheet(args.output / "clips.png", clips)
  write_spectra(args.output / "spectra.png", clips)
  print(f"contact sheet, spectra and figures in {args.output}")


def generate(
  cascade: Cascade, scenes: Scenes, seed: int, label: str
) -> tuple[Clips, Clips]:
  """Base clips and refined clips of all scenes."""
  base, refine = (cascade.stage(name) for name in STAGES)
  size, num_frames = refine.sampling.size, base.sampling.num_frames
  count, batches = len(scenes), []
  with ProgressBar() as progress:
    for start in range(0, count, BATCH):
      # A smaller last batch would be compiled again.
      batch = [scenes[n % count] for n in range(start, start + BATCH)]
      prompts = [world.caption(scene) for scene in batch]
      pictures = [world.render(scene, size, num_frames)[0] for scene in batch]
      small = cascade.run(base, pictures, prompts, seed=seed + start)
      large = cascade.run(refine, small, prompts, seed=seed + start)
      batches.append((small, large))
      progress(f"{label} clips", min(start + BATCH, count), count)
  small, large = map(np.concatenate, zip(*batches, strict=True))
  return small[:count], large[:count]


def untrain(cascade: Cascade) -> Cascade:
  """The same cascade with denoisers as they are before their training.

  The last convolution of a new denoiser is zero: it predicts zero whatever its
  other weights are, so these are zero as well and need not be drawn.
  """
  networks = dict(cascade.networks)
  for name in STAGES:
    zeros = jax.tree.map(jnp.zeros_like, networks[name].params)
    networks[name] = dataclasses.replace(networks[name], params=zeros)
  return dataclasses.replace(cascade, networks=networks)


def drawn(draw: Callable, scenes: Scenes, like: Clips) -> np.ndarray:
  """`world.render` or `world.object_mask` of all scenes, as large as clips."""
  num_frames, height, width = like.shape[1:4]
  return np.stack([draw(s, (width, height), num_frames) for s in scenes])


def has_motion(scenes: Scenes, clips: Clips) -> Bool[np.ndarray, "b"]:
  """Whether the measured motion of each clip is that of its caption."""
  masks = drawn(world.object_mask, scenes, clips)[:, 0]
  measured = map(motion.measure, clips, masks)
  found = [motion.classify(change, world.MOTIONS) for change in measured]
  return np.array(found) == [scene.motion for scene in scenes]


def by_motion(scenes: Scenes, hits: Bool[np.ndarray, "b"]) -> dict[str, str]:
  """Accuracy for each motion of the captions, as "hits of clips"."""
  asked = np.array([scene.motion for scene in scenes])
  return {
    name: f"{hits[asked == name].sum()} of {(asked == name).sum()}"
    for name in world.MOTIONS
  }


def first_frame_psnr(scenes: Scenes, clips: Clips) -> list[float]:
  """Mean, and the value that 95 % of the clips reach, in dB."""
  pictures = drawn(world.render, scenes, clips)[:, 0]
  values = [*map(psnr, clips[:, 0], pictures)]
  return [float(np.mean(values)), float(np.percentile(values, 5))]


def measure(scenes: Scenes, base: Clips, refined: Clips) -> dict[str, object]:
  """All figures of a cascade, by name.

  Args:
    scenes: the held-out scenes.
    base: clip of the base stage for each scene.
    refined: clip of the refine stage for each scene.
  """
  truth = drawn(world.render, scenes, refined)
  masks = drawn(world.object_mask, scenes, refined)
  clips = {"true_clips": truth, "base": base, "refined": refined}
  hits = {name: has_motion(scenes, some) for name, some in clips.items()}
  figures = {
    "clips": len(scenes),
    "motion_chance": 1 / len(world.MOTIONS),
    **{f"motion_{name}": float(found.mean()) for name, found in hits.items()},
    "motion_base_by_name": by_motion(scenes, hits["base"]),
    "first_frame_psnr": first_frame_psnr(scenes, base),
  }
  for name, is_better, metric in (
    ("spatial_distance", np.less, _distance(spectra.spatial_spectrum)),
    ("temporal_distance", np.less, _distance(spectra.temporal_spectrum)),
    ("object_psnr", np.greater, psnr),
  ):
    before, after = (
      np.array([*map(metric, made, truth, masks)])
      for made in (bilinear(base, refined), refined)
    )
    figures[name] = {
      "bilinear": float(before.mean()),
      "refined": float(after.mean()),
      "clips_better": float(is_better(after, before).mean()),
    }
  return figures


def _distance(spectrum: Callable) -> Callable[..., float]:
  return lambda clip, true, _: spectra.log_distance(
    spectrum(clip), spectrum(true)
  )


def bilinear(clips: Clips, like: Clips) -> Clips:
  """The clips enlarged to the size of others."""
  height, width = like.shape[2:4]
  frames = map(Image.fromarray, clips.reshape(-1, *clips.shape[2:]))
  enlarged = [f.resize((width, height), Image.BILINEAR) for f in frames]
  return np.reshape([np.asarray(frame) for frame in enlarged], like.shape)


def table(figures: Mapping, indent: str = "") -> Iterator[str]:
  """Lines for people: a figure in each, those of a group indented."""
  for name, value in figures.items():
    label = indent + name.replace("_", " ")
    if isinstance(value, dict):
      yield label
      yield from table(value, indent + "  ")
    else:
      values = value if isinstance(value, list) else [value]
      cells = (f"{v:.3f}" if isinstance(v, float) else v for v in values)
      yield f"{label:32}" + "".join(f"{cell:>10}" for cell in cells)


def write_sheet(path: Path, clips: Mapping[str, Clips]) -> None:
  """Frames of the first clips, row by row."""
  rows = np.stack([some[:SHEET_CLIPS] for some in clips.values()], axis=1)
  # To the order of axes n, row, height; frame, width; channel.
  rows = rows.transpose(0, 1, 3, 2, 4, 5)
  n, k, h, f, w, c = rows.shape
  with replacing(path) as temporary:
    Image.fromarray(rows.reshape(n * k * h, f * w, c)).save(temporary, "PNG")


def write_spectra(path: Path, clips: Mapping[str, Clips]) -> None:
  """The mean spectra as a plot."""
  spatial, temporal = (
    {name: np.mean([*map(spectrum, some)], 0) for name, some in clips.items()}
    for spectrum in (spectra.spatial_spectrum, spectra.temporal_spectrum)
  )
  spectra.spectra_plot(spatial, temporal, path)
