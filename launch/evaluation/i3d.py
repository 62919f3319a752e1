"""Features of an I3D network, which make the Fréchet distance that of videos.

FVD (Unterthiner et al. 2018, arXiv 1812.01717) compares clips by the 400
outputs of an I3D that was trained on Kinetics. The file that most public code
loads is `i3d_torchscript.pt`. TorchScript is a program of tensor operations:
torch runs it, and unlike a pickle it builds no Python objects. Take it from a
source that you trust nonetheless.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from i2vgen_jax.errors import InputError, reading
from launch.evaluation.generation import Frames

_SIDE = 224


def load(path: Path) -> Callable[[Frames], Float[np.ndarray, "d"]]:
  """The features of a clip, by the network in a TorchScript file.

  The network is called with float32[1 3 f 224 224], values from -1 to 1, and
  with `rescale=False, resize=False, return_features=True`, as the public file
  asks for. Frames are stretched to squares with bilinear interpolation without
  a filter, as in the code of the paper.

  Args:
    path: of the file; it is run on the CPU.

  Raises:
    InputError: the file is missing or no TorchScript, or torch is not
      installed. The function that is returned raises it for a clip that the
      network does not take: I3D needs at least 9 frames.
  """
  try:
    import torch
  except ImportError as e:
    raise InputError(
      f"torch is not installed, and {path} needs it; pip install "
      "'i2vgen-jax[interop]'"
    ) from e
  with reading(path, "give a file that torch.jit.save has written"):
    try:
      network = torch.jit.load(str(path), "cpu").eval()
    except RuntimeError as e:
      raise ValueError("it is not a TorchScript program") from e

  def features(frames: Frames) -> Float[np.ndarray, "d"]:
    # A copy, as torch wants to write to its arrays, and those of JAX refuse.
    pixels = torch.tensor(frames).permute(0, 3, 1, 2).float()
    pixels = torch.nn.functional.interpolate(
      pixels, (_SIDE, _SIDE), mode="bilinear", align_corners=False
    )
    clip = (pixels / 127.5 - 1).permute(1, 0, 2, 3)[None]
    try:
      with torch.inference_mode():
        [found] = network(
          clip, rescale=False, resize=False, return_features=True
        )
    except (RuntimeError, torch.jit.Error) as e:
      reason = str(e).strip().splitlines()[-1]
      height, width = frames.shape[1:3]
      raise InputError(
        f"{path} does not take a clip of {len(frames)} frames of "
        f"{width}x{height}: {reason}; I3D needs at least 9 frames"
      ) from e
    return found.numpy()

  return features
