"""Clips of a cascade for many pictures and prompts, batch by batch."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from i2vgen_jax.cascade import Cascade
from i2vgen_jax.preprocessing import center_crop_wide
from i2vgen_jax.stage import Stage
from i2vgen_jax.tokenizer import PromptWarning
from launch.progress import ProgressBar

Frame = UInt8[np.ndarray, "h w 3"]
Frames = UInt8[np.ndarray, "f h w 3"]
Clips = UInt8[np.ndarray, "b f h w 3"]
Plan = Mapping[str, Stage]


class Given(NamedTuple):
  """What a clip is made of.

  Attributes:
    name: of the picture or record.
    prompt: what happens in the clip.
    picture: the first frame, of any size.
    real: the clip that the picture was taken from, if there is one, in the size
      of the result.
    fps: frame rate of the real clip.
  """

  name: str
  prompt: str
  picture: Frame
  real: Frames | None = None
  fps: float | None = None

  def shown_to(self, stage: Stage) -> Frame:
    """The picture as a stage gets it."""
    s = stage.sampling
    return center_crop_wide(self.picture, *s.size, black_edge=s.black_edge)


def generate(
  cascade: Cascade,
  plan: Plan,
  count: int,
  read: Callable[[int], Given],
  *,
  seeds: Sequence[int],
  batch_size: int,
  label: str,
) -> Iterator[tuple[list[Given], dict[str, Clips]]]:
  """The clips of each stage.

  Args:
    cascade: the weights.
    plan: the stages, of which the first takes pictures.
    count: number of clips.
    read: returns what clip number n is made of.
    seeds: seed of each clip.
    batch_size: number of clips that are made at once.
    label: of the progress.

  Yields:
    What each clip of a batch is made of, and the clips by name of the stage.
  """
  batch_size = min(batch_size, count)
  with ProgressBar() as progress:
    progress.begin(label, count, f"compiling, then the first {batch_size} ...")
    for start in range(0, count, batch_size):
      # A smaller last batch would be compiled again.
      numbers = [n % count for n in range(start, start + batch_size)]
      batch = [read(n) for n in numbers]
      prompts = [given.prompt for given in batch]
      clips, made = [given.picture for given in batch], {}
      end = min(start + batch_size, count)
      for name, stage in plan.items():
        with warnings.catch_warnings():
          # Many prompts: the caller counts those with unknown words.
          warnings.simplefilter("ignore", PromptWarning)
          clips = cascade.run(
            stage, clips, prompts, seed=[seeds[n] for n in numbers]
          )
        made[name] = clips[: end - start]
      progress.update(end)
      yield batch[: end - start], made


def bilinear(clips: Clips, like: Clips) -> Clips:
  """The clips enlarged to the size of others."""
  height, width = like.shape[2:4]
  frames = map(Image.fromarray, clips.reshape(-1, *clips.shape[2:]))
  enlarged = [f.resize((width, height), Image.BILINEAR) for f in frames]
  return np.reshape([np.asarray(frame) for frame in enlarged], like.shape)
