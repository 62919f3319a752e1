"""The metrics of one clip, by itself and against its picture."""

import math
from collections.abc import Callable

import numpy as np

from data_pipelines.footage import scores
from data_pipelines.media.pictures import shrink
from i2vgen_jax.evaluation import camera, embeddings
from i2vgen_jax.evaluation.quality import psnr, ssim, steadiness
from launch.evaluation.generation import Frame, Frames
from launch.evaluation.towers import Embedding, Towers

# Every metric of a clip or of all clips, and what its values are.
METRICS = {
  "first_frame_psnr": "first frame against the picture, dB",
  "first_frame_ssim": "first frame against the picture, 1 is equal",
  "first_frame_lpips": "first frame against the picture, 0 is equal",
  "image_similarity": "CLIP: mean cosine of the frames with the picture",
  "text_similarity": "CLIP: mean cosine of the frames with the prompt",
  "frame_consistency": "CLIP: mean cosine of adjacent frames",
  "steadiness": "1 minus the mean change of adjacent frames",
  "motion": "mean optical flow, shorter sides per second",
  "camera_travel": "camera from first to last frame, shorter sides",
  "camera_zoom": "camera from first to last frame, factor in or out",
  "camera_roll": "camera from first to last frame, degrees either way",
  "camera_fit": "correlation of the frames aligned by that camera",
  "spatial_distance": "spectrum against the real clip's, mean abs. log10",
  "temporal_distance": "spectrum against the real clip's, mean abs. log10",
  "frechet_distance": "features against those of the real clips; by I3D: FVD",
}
# Shorter side at which the motion of the camera is measured, in pixels.
_CAMERA_SIDE = 128

Values = dict[str, float | None]
Lpips = Callable[[Frame, Frame], float]


def of_clip(clip: Frames, fps: float) -> Values:
  """How a clip moves, whatever it was made of.

  Args:
    clip: at least two frames.
    fps: its frame rate.

  Returns:
    Values by name; None is a value that cannot be measured.
  """
  speed = scores.motion(clip, np.arange(len(clip)) / fps)
  view = camera.measure(np.stack([shrink(f, _CAMERA_SIDE) for f in clip]))
  return {
    "steadiness": steadiness(clip),
    "motion": speed if math.isfinite(speed) else None,
    "camera_travel": math.hypot(view.x, view.y),
    "camera_zoom": math.exp(abs(math.log(view.zoom))),
    "camera_roll": abs(view.roll),
    "camera_fit": view.fit,
  }


def of_start(
  clip: Frames, picture: Frame, lpips: Lpips | None = None
) -> Values:
  """How well a made clip keeps to its picture.

  Args:
    clip: what was made of the picture.
    picture: of the same size.
    lpips: distance of two pictures; None leaves it out.
  """
  likeness = psnr(clip[0], picture)
  values: Values = {
    "first_frame_psnr": likeness if math.isfinite(likeness) else None,
    "first_frame_ssim": ssim(clip[0], picture),
  }
  if lpips is not None:
    values["first_frame_lpips"] = lpips(clip[0], picture)
  return values


def of_content(
  clip: Frames,
  towers: Towers,
  picture: Frame | None = None,
  text: Embedding | None = None,
) -> Values:
  """What a clip shows, by CLIP.

  Args:
    clip: at least two frames.
    towers: CLIP.
    picture: that the clip was made of, as large; None leaves it out.
    text: embedding of the prompt; None leaves it out.
  """
  frames = towers.of_frames(clip)
  values: Values = {"frame_consistency": embeddings.frame_consistency(frames)}
  if picture is not None:
    [shown] = towers.of_frames(picture[None])
    values["image_similarity"] = embeddings.similarity(frames, shown)
  if text is not None:
    values["text_similarity"] = embeddings.similarity(frames, text)
  return values
