"""A cascade in the procedural worlds, where the motion asked for is known."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, UInt8

from data_pipelines.procedural import camera as camera_world
from data_pipelines.procedural import world
from data_pipelines.procedural.build import Clip, World, numbered_clip
from data_pipelines.procedural.photographs import Photographs
from i2vgen_jax import autoencoding
from i2vgen_jax.cascade import Cascade
from i2vgen_jax.evaluation import camera, motion, spectra
from i2vgen_jax.evaluation.quality import psnr
from i2vgen_jax.stage import STAGES
from launch.evaluation.generation import (
  Clips,
  Given,
  Plan,
  bilinear,
  generate,
)

# Number of clips of the untrained denoisers; their figures need no more.
UNTRAINED_CLIPS = 32

# A call makes the same held-out clips at any size.
HeldOut = Callable[[tuple[int, int]], Sequence[Clip]]


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
  cascade: Cascade,
  plan: Plan,
  draw: HeldOut,
  *,
  seed: int,
  batch_size: int,
  label: str,
) -> tuple[dict[str, object], dict[str, Clips]]:
  """All figures of a cascade in one world, and the clips to look at.

  Args:
    cascade: the weights.
    plan: the base stage and the refine stage.
    draw: the held-out clips.
    seed: of sampling.
    batch_size: number of clips that are made at once.
    label: name of the world.
  """

  def make(weights: Cascade, drawn: HeldOut, label: str) -> list[Clips]:
    held = drawn(plan["refine"].sampling.size)
    given = [
      Given(str(number), clip.caption, clip.frames[0])
      for number, clip in enumerate(held)
    ]
    batches = [
      made
      for _, made in generate(
        weights,
        plan,
        len(given),
        given.__getitem__,
        seeds=range(seed, seed + len(given)),
        batch_size=batch_size,
        label=f"{label} clips",
      )
    ]
    return [np.concatenate([made[n] for made in batches]) for n in STAGES]

  base, refined = make(cascade, draw, label)
  few = lambda size: draw(size)[:UNTRAINED_CLIPS]  # noqa: E731
  untrained, _ = make(untrain(cascade), few, f"untrained, {label}")
  first_frames = frames_of(draw, base)[:, :1]
  figures = measure(draw, base, refined) | {
    "motion_untrained": float(has_motion(few, untrained).mean()),
    "first_frame_psnr_untrained": first_frame_psnr(few, untrained),
    "first_frame_psnr_autoencoder": first_frame_psnr(
      draw, autoencoded(cascade, first_frames, batch_size)
    ),
  }
  return figures, {
    "true": frames_of(draw, refined),
    "base, bilinear": bilinear(base, refined),
    "refined": refined,
  }


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


def autoencoded(cascade: Cascade, clips: Clips, batch_size: int) -> Clips:
  """Clips after the autoencoder alone, which bounds what a stage can reach."""
  network = cascade.networks["vae"]
  vae, made = (network.module, network.params), []
  for start in range(0, len(clips), batch_size):
    frames = autoencoding.to_unit_range(clips[start : start + batch_size])
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
