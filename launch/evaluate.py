"""`i2vgen evaluate`: measures a cascade on held-out clips."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from data_pipelines.procedural import camera as camera_world
from data_pipelines.procedural import world
from data_pipelines.procedural.build import Clip, World, numbered_clip
from data_pipelines.procedural.photographs import Photographs
from i2vgen_jax import autoencoding
from i2vgen_jax.cascade import BUNDLED, Cascade
from i2vgen_jax.evaluation import camera, motion, spectra
from i2vgen_jax.evaluation.quality import psnr
from i2vgen_jax.files import replacing, write_json
from i2vgen_jax.stage import STAGES
from i2vgen_jax.tokenizer import PromptWarning
from launch import arguments, outputs
from launch.arguments import Count, Seed, Weights
from launch.progress import ProgressBar

BATCH = 16
# Number of clips of the untrained denoisers; their figures need no more.
UNTRAINED_CLIPS = 32
SHEET_CLIPS = 12

Clips = UInt8[np.ndarray, "b f h w 3"]
# A call makes the same held-out clips at any size.
HeldOut = Callable[[tuple[int, int]], Sequence[Clip]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
  """Measures a cascade on held-out clips of the procedural worlds.

      i2vgen evaluate --photographs DIR --num-clips 128 --output DIR

  Each clip of the object world has a combination of object, ground and motion
  that is not in the training data; each clip of the camera world shows a
  photograph that is not. The cascade gets the first frame and the caption; its
  result is compared with the true clip. For reference, chance, the same cascade
  with untrained denoisers, and the true clips are measured as well.

  The targets: at least 0.9 of the clips have the motion that the caption names;
  the first frame matches the picture with 24 dB in the mean and 20 dB in 95 %
  of the photographs; and refining is better than bilinear scaling in 0.8 of the
  clips.

  Attributes:
    weights: A cascade folder, a folder or file of public weights, or owner/name
      on the Hub. The small cascade of this package by default.
    photographs: Folder that the training photographs are in, of which about one
      in twelve is held out. Without it there is no camera world, and no object
      moves over a photograph.
    num_clips: Number of held-out clips of each world.
    seed: Seed of the clips and of sampling.
    output: Folder for figures and pictures.
  """

  weights: Weights = str(BUNDLED)
  photographs: Path | None = None
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
  pool = None
  if args.photographs is not None:
    pool = Photographs(args.photographs, "test")
  num_frames = cascade.stage("base").sampling.num_frames
  figures, clips = {}, {}
  for shows in ("objects", "camera") if pool else ("objects",):
    draw = held_out(shows, pool, args.seed, args.num_clips, num_frames)
    figures[shows], clips[shows] = evaluate(cascade, draw, args.seed, shows)
  # Figures are written first, because the plot needs matplotlib.
  write_json(args.output / "figures.json", figures)
  print(*table(figures), sep="\n")
  for shows, some in clips.items():
    write_sheet(args.output / f"{shows}.png", some)
    write_spectra(args.output / f"{shows}_spectra.png", some)
  print(f"contact sheets, spectra and figures in {args.output}")


def held_out(
  shows: World,
  pool: Photographs | None,
  seed: int,
  count: int,
  num_frames: int,
) -> HeldOut:
  """The first held-out clips of a world, to be rendered at any size."""

  @functools.lru_cache(maxsize=2)
  def draw(size: tuple[int, int]) -> Sequence[Clip]:
    shape = {"size": size, "num_frames": num_frames}
    return [
      numbered_clip(shows, pool, seed, number, "test", **shape)
      for number in range(count)
    ]

  return draw


def evaluate(
  cascade: Cascade, draw: HeldOut, seed: int, label: str
) -> tuple[dict[str, object], dict[str, Clips]]:
  """All figures of a cascade in one world, and the clips to look at."""
  base, refined = generate(cascade, draw, seed, label)
  few = lambda size: draw(size)[:UNTRAINED_CLIPS]  # noqa: E731
  untrained, _ = generate(untrain(cascade), few, seed, f"untrained, {label}")
  figures = measure(draw, base, refined) | {
    "motion_untrained": float(has_motion(few, untrained).mean()),
    "first_frame_psnr_untrained": first_frame_psnr(few, untrained),
    "first_frame_psnr_autoencoder": first_frame_psnr(
      draw, autoencoded(cascade, frames_of(draw, base)[:, :1])
    ),
  }
  return figures, {
    "true": frames_of(draw, refined),
    "base, bilinear": bilinear(base, refined),
    "refined": refined,
  }


def generate(
  cascade: Cascade, draw: HeldOut, seed: int, label: str
) -> tuple[Clips, Clips]:
  """Base clips and refined clips of all held-out clips."""
  base, refine = (cascade.stage(name) for name in STAGES)
  held = draw(refine.sampling.size)
  count, batches = len(held), []
  with ProgressBar() as progress, warnings.catch_warnings():
    # One caption of the camera world in five has a subject that is not a word.
    warnings.simplefilter("ignore", PromptWarning)
    for start in range(0, count, BATCH):
      # A smaller last batch would be compiled again.
      batch = [held[n % count] for n in range(start, start + BATCH)]
      prompts = [clip.caption for clip in batch]
      pictures = [clip.frames[0] for clip in batch]
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


def autoencoded(cascade: Cascade, clips: Clips) -> Clips:
  """Clips after the autoencoder alone, which bounds what a stage can reach."""
  network = cascade.networks["vae"]
  vae, made = (network.module, network.params), []
  for start in range(0, len(clips), BATCH):
    frames = autoencoding.to_unit_range(clips[start : start + BATCH])
    latents = autoencoding.encode_clips(*vae, frames, chunk=1).mean
    made.append(autoencoding.decode_clips(*vae, latents, chunk=1))
  return np.asarray(autoencoding.to_pixels(jnp.concatenate(made)))


def _size(clips: Clips) -> tuple[int, int]:
  return clips.shape[3], clips.shape[2]


def frames_of(draw: HeldOut, like: Clips) -> Clips:
  """The true clips, as large as others."""
  return np.stack([clip.frames for clip in draw(_size(like))])


def moving_region(clip: Clip) -> Bool[np.ndarray, "f h w"]:
  """The object's pixels, or all pixels where the camera moves."""
  frames, height, width, _ = clip.frames.shape
  if isinstance(clip.scene, camera_world.Shot):
    return np.ones((frames, height, width), bool)
  return world.object_mask(clip.scene, (width, height), frames)


def motions(clip: Clip) -> Mapping[str, tuple[float, float, float, float]]:
  """The motions of a clip's world by name."""
  is_camera = isinstance(clip.scene, camera_world.Shot)
  return camera_world.MOVES if is_camera else world.MOTIONS


def measured_motion(clip: Clip, made: UInt8[np.ndarray, "f h w 3"]) -> str:
  """The name of the motion that is measured in a made clip."""
  if isinstance(clip.scene, camera_world.Shot):
    return camera.classify(camera.measure(made), motions(clip))
  change = motion.measure(made, moving_region(clip)[0])
  return motion.classify(change, motions(clip))


def has_motion(draw: HeldOut, clips: Clips) -> Bool[np.ndarray, "b"]:
  """Whether the measured motion of each clip is that of its caption."""
  held = draw(_size(clips))
  found = [*map(measured_motion, held, clips)]
  return np.array(found) == [clip.motion for clip in held]


def by_motion(
  held: Sequence[Clip], hits: Bool[np.ndarray, "b"]
) -> dict[str, str]:
  """Accuracy for each motion of the captions, as "hits of clips"."""
  asked = np.array([clip.motion for clip in held])
  return {
    name: f"{hits[asked == name].sum()} of {(asked == name).sum()}"
    for name in motions(held[0])
  }


def first_frame_psnr(draw: HeldOut, clips: Clips) -> list[float]:
  """Mean, and the value that 95 % of the clips reach, in dB."""
  values = [*map(psnr, clips[:, 0], frames_of(draw, clips)[:, 0])]
  return [float(np.mean(values)), float(np.percentile(values, 5))]


def measure(draw: HeldOut, base: Clips, refined: Clips) -> dict[str, object]:
  """All figures of a cascade in one world, by name.

  Args:
    draw: the held-out clips.
    base: clip of the base stage for each of them.
    refined: clip of the refine stage for each of them.
  """
  held, truth = draw(_size(refined)), frames_of(draw, refined)
  masks = np.stack([*map(moving_region, held)])
  clips = {"true_clips": truth, "base": base, "refined": refined}
  hits = {name: has_motion(draw, some) for name, some in clips.items()}
  figures = {
    "clips": len(held),
    "motion_chance": 1 / len(motions(held[0])),
    **{f"motion_{name}": float(found.mean()) for name, found in hits.items()},
    "motion_base_by_name": by_motion(held, hits["base"]),
    "first_frame_psnr": first_frame_psnr(draw, base),
    "first_frame_psnr_refined": first_frame_psnr(draw, refined),
  }
  for name, is_better, metric in (
    ("spatial_distance", np.less, _distance(spectra.spatial_spectrum)),
    ("temporal_distance", np.less, _distance(spectra.temporal_spectrum)),
    ("moving_region_psnr", np.greater, psnr),
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
