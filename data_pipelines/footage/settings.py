"""Settings of a footage build."""

import dataclasses

from data_pipelines.footage.filters import Limits


@dataclasses.dataclass(frozen=True)
class ScanSettings:
  """What counts as a clip.

  Attributes:
    split_shots: whether videos are cut into shots; if not, each row of the
      manifest is one clip.
    min_frames: shorter shots are left out.
    max_seconds: longer shots become several clips of equal length.
    max_film_seconds: longer videos are left out.
    join_captions: whether several captions of a row become one.
    aesthetics: `module:function` that scores uint8[n h w 3], or None.
  """

  split_shots: bool = True
  min_frames: int = 16
  max_seconds: float | int = 10
  max_film_seconds: float | int = 3 * 3600
  join_captions: bool = False
  aesthetics: str | None = None


@dataclasses.dataclass(frozen=True)
class FootageSettings:
  """Everything but the manifest that decides the bytes of a footage build.

  Attributes:
    split: name of the only split.
    scan: what counts as a clip.
    limits: bounds on the scores.
    short_side: larger frames are scaled down to this shorter side, in pixels.
    shard_size: number of examples in each shard.
    seed: seed of the order of the examples.
    stall_seconds: time limit for the work on one file.
  """

  split: str = "train"
  scan: ScanSettings = dataclasses.field(default_factory=ScanSettings)
  limits: Limits = dataclasses.field(default_factory=Limits)
  short_side: int = 720
  shard_size: int = 256
  seed: int = 0
  stall_seconds: float | int = 3600
