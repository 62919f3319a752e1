"""What training asks of the machines that read its data, by arithmetic.

    examples a second and host = chips of a host * peak * MFU / FLOPs of one
    FLOPs of one = 3 * forward of the U-Net (backward costs two forwards)
                   + the VAE's encoding of its frames, unless latents are kept

The FLOPs are those of public variant (c), counted operation by operation; the
two CLIP towers, below 0.5 TFLOP together, are left out.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from data_pipelines.loading.buckets import Bucket
from data_pipelines.shards.dataset import Kind

# v5p-256: 256 cores are 128 chips in 32 hosts.
CHIPS, HOSTS = 128, 32
PEAK = 459.0  # TFLOP/s of a chip, bfloat16
MFU = 0.45

ALONE = "decoder alone"


class Case(NamedTuple):
  """A kind of training step.

  Attributes:
    kind: of the dataset that it reads.
    bucket: what its examples look like.
    forward: TFLOP of the U-Net for one example.
    encode: TFLOP of the VAE for one example.
  """

  kind: Kind
  bucket: Bucket
  forward: float
  encode: float

  def __str__(self) -> str:
    noun = "pictures" if self.kind == "text_image" else "clips"
    return f"{noun}: {self.bucket}"

  def wanted(self, latents: bool) -> float:
    """Examples a second that a host of a v5p-256 would train on."""
    step = 3 * self.forward + (0 if latents else self.encode)
    return CHIPS / HOSTS * PEAK * MFU / step


_SMALL, _LARGE = (448, 256), (1280, 704)
# The VAE takes 0.480 TFLOP for a small frame, 4.126 for a large one.
CASES = (
  Case("text_video", Bucket(16, 8, 1, _SMALL), 8.744, 16 * 0.480),
  Case("text_video", Bucket(32, 8, 1, _SMALL), 17.512, 32 * 0.480),
  # A frame costs a sixteenth of 16: attention over time is a small part.
  Case("text_video", Bucket(1, 1, 1, _SMALL), 8.744 / 16, 0.480),
  Case("text_image", Bucket(1, 1, 1, _SMALL), 8.744 / 16, 0.480),
  Case("text_video", Bucket(16, 8, 1, _LARGE), 88.095, 16 * 4.126),
)


class Speed(NamedTuple):
  """What was measured of one way to keep the examples of a case.

  Attributes:
    case: the kind of step.
    way: its name.
    num_bytes: of one example, mean.
    psnr: against the frames that the others show, in dB; NaN where that says
      nothing.
    per_second: examples that one core reads.
  """

  case: Case
  way: str
  num_bytes: float
  psnr: float
  per_second: float


class BuildCost(NamedTuple):
  """What was measured of building a dataset.

  Attributes:
    kind: of the dataset.
    num_frames: of an example, mean.
    num_bytes: of an example, mean.
    scan_seconds: of one core, for a frame.
    write_seconds: of one core, for a frame; NaN where nothing was written.
  """

  kind: Kind
  num_frames: float
  num_bytes: float
  scan_seconds: float
  write_seconds: float


def tables(speeds: Sequence[Speed], costs: Sequence[BuildCost]) -> str:
  """What a person reads."""
  host = CHIPS / HOSTS * PEAK * MFU
  lines = [
    "Reading, on one core. `alone` is the speed beside that of the decoder"
    " alone, on the",
    "same bytes. `want` is what one of the"
    f" {HOSTS} hosts of a v5p-{2 * CHIPS} trains on:",
    f"{CHIPS // HOSTS} chips x {PEAK:g} TFLOP/s x {MFU:.0%} = {host:.1f}"
    " TFLOP/s, over 3 x U-Net + VAE.",
  ]
  for case in dict.fromkeys(speed.case for speed in speeds):
    lines += ["", *_table(case, [s for s in speeds if s.case == case])]
  lines += ["", "Building, on one core, once more from what was built"]
  lines.append(
    f"{'':12}{'frames':>8}{'kB':>8}{'scan ms':>10}{'write ms':>10}"
    f"{'s an example':>14}"
  )
  lines += [_cost(cost) for cost in costs]
  return "\n".join(lines)


def _table(case: Case, speeds: Sequence[Speed]) -> list[str]:
  [alone] = [s.per_second for s in speeds if s.way == ALONE]
  lines = [
    f"{case}; one example: 3 x {case.forward:.3f} + {case.encode:.2f} TFLOP",
    f"  {'':24}{'kB':>9}{'PSNR dB':>9}{'a second':>10}{'alone':>8}"
    f"{'want':>8}{'cores':>8}{'MB/s':>8}",
  ]
  for speed in speeds:
    line = (
      f"  {speed.way:24}{speed.num_bytes / 1e3:9.1f}{_dash(speed.psnr, 9)}"
      f"{speed.per_second:10.1f}{speed.per_second / alone:8.2f}"
    )
    if speed.way != ALONE:
      want = case.wanted(speed.way.startswith("latents"))
      line += (
        f"{want:8.1f}{want / speed.per_second:8.1f}"
        f"{want * speed.num_bytes / 1e6:8.1f}"
      )
    lines.append(line)
  return lines


def _cost(cost: BuildCost) -> str:
  one = cost.num_frames * (cost.scan_seconds + cost.write_seconds)
  return (
    f"{cost.kind:12}{cost.num_frames:8.1f}{cost.num_bytes / 1e3:8.1f}"
    f"{cost.scan_seconds * 1e3:10.2f}{_dash(cost.write_seconds * 1e3, 10, 2)}"
    f"{_dash(one, 14, 2)}"
  )


def _dash(value: float, width: int, digits: int = 1) -> str:
  """A number, or a dash where there is none."""
  if math.isnan(value):
    return "-".rjust(width)
  return f"{value:{width}.{digits}f}"
