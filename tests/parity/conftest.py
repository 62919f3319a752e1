"""What the comparisons with torch share."""

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def randomised():
  """Gives every parameter of a torch module a value that is not its default.

  A norm at scale 1 and bias 0 would hide a wrong mapping.
  """

  def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
      draw = torch.randn(p.shape, generator=generator)
      fan_in = max(1, p[0].numel()) if p.ndim > 1 else 1
      scale = fan_in**-0.5 if p.ndim > 1 else 0.2
      is_scale = p.ndim == 1 and name.endswith("weight")
      p.data = scale * draw + float(is_scale)
    return module.eval().requires_grad_(False)

  return randomise


@pytest.fixture(scope="session")
def state_arrays():
  """The state dict of a torch module as numpy arrays."""

  def arrays(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in module.state_dict().items()}

  return arrays


@pytest.fixture(scope="session")
def relative_error():
  """max|ours - theirs| / max|theirs|, of equal shapes."""

  def error(ours, theirs) -> float:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())

  return error


@pytest.fixture(scope="session")
def meta_arrays():
  """Weightless arrays with the shapes of a module that `build` makes."""

  def arrays(build) -> dict[str, np.ndarray]:
    with torch.device("meta"):
      state = build().state_dict()
    zero = np.float32(0)
    return {key: np.broadcast_to(zero, x.shape) for key, x in state.items()}

  return arrays
