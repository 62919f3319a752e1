"""What computing in bfloat16 costs over a whole sampling run."""

import numpy as np
import pytest
from PIL import Image

import i2vgen_jax
from i2vgen_jax.cascade import BUNDLED

PROMPT = "the camera pans right quickly"


@pytest.mark.slow
def test_sampling_in_bfloat16(capsys):
  """Norms, softmax, schedules and the sampler's state stay float32."""
  picture = np.asarray(Image.open(BUNDLED.parent / "example.png"))
  results = {}
  for dtype in ("float32", "bfloat16"):
    cascade = i2vgen_jax.load(dtype=dtype)
    base = cascade.stage("base")
    results[dtype] = [
      cascade.run(base, [picture], [PROMPT], seed=0, decode=decode)
      for decode in (False, True)
    ]
  exact, latents = results["float32"][0], results["bfloat16"][0]
  error = np.abs(latents - exact).max() / np.abs(exact).max()
  pixels = results["bfloat16"][1].astype(float) - results["float32"][1]
  psnr = 10 * np.log10(255**2 / np.square(pixels).mean())
  with capsys.disabled():
    print(f"\nbfloat16 against float32: latents {error:.3f}, {psnr:.1f} dB")
  assert latents.dtype == np.float32
  # Different, and yet the same video.
  assert 0 < error < 0.5
  assert psnr > 25
