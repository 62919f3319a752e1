"""Rate at which training consumes examples, by arithmetic.

    examples per second and host = chips of a host * peak * MFU / FLOPs of one
    FLOPs of one = 3 * forward of the U-Net (backward costs two forwards)
                   + the VAE's encoding of its frames, unless latents are stored

The FLOPs are those of public variant (c), counted operation by operation; the
two CLIP towers, below 0.5 TFLOP together, are omitted.
"""

from typing import NamedTuple

from data_pipelines.loading.buckets import Bucket
from data_pipelines.shards.dataset import Kind

# v5p-256: 256 cores are 128 chips in 32 hosts.
CHIPS, HOSTS = 128, 32
PEAK = 459.0  # TFLOP/s of a chip, bfloat16
MFU = 0.45
HOST = CHIPS / HOSTS * PEAK * MFU

EXPLANATION = f"""\
Reading, on one core. `alone` is the speed relative to decoding the same bytes
alone. `want` is what one of the {HOSTS} hosts of a v5p-{2 * CHIPS} trains on:
{CHIPS // HOSTS} chips x {PEAK:g} TFLOP/s x {MFU:.0%} = {HOST:.1f} TFLOP/s, \
over 3 x U-Net + VAE."""


class Case(NamedTuple):
  """A kind of training step.

  Attributes:
    kind: kind of the dataset that it reads.
    bucket: shape of its examples.
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
    """Examples per second that one host of a v5p-256 trains on."""
    return HOST / (3 * self.forward + (0 if latents else self.encode))


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
