"""LPIPS against torch, by random weights of the real shapes."""

import re

import numpy as np
import pytest
import torch
from skimage import data, filters
from torch import nn

from i2vgen_jax.errors import InputError
from i2vgen_jax.evaluation.lpips import from_state_dict, lpips

PHOTO = data.astronaut()[:70, 100:190]
BLURRED = [
  np.rint(filters.gaussian(PHOTO, s, channel_axis=-1, preserve_range=True))
  .astype(np.uint8)
  for s in (1, 3)
]  # fmt: skip
CHANNELS = (64, 192, 384, 256, 256)


class Reference(nn.Module):
  """The public code with the layers and names of `lpips.LPIPS(net="alex")`."""

  def __init__(self):
    super().__init__()
    alexnet = (
      nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(),
      nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(),
      nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
      nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
      nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip
    for n in (0, 3, 6, 8, 10):
      nn.init.kaiming_normal_(alexnet[n].weight)
    self.net, ends = nn.Module(), (0, 2, 5, 8, 10, 12)
    for n, start in enumerate(ends[:-1]):
      part = nn.Sequential()
      for number in range(start, ends[n + 1]):
        part.add_module(str(number), alexnet[number])
      self.net.add_module(f"slice{n + 1}", part)
    for n, width in enumerate(CHANNELS):
      head = nn.Module()
      conv = nn.Conv2d(width, 1, 1, bias=False)
      nn.init.uniform_(conv.weight, 0, 1)
      head.model = nn.Sequential(nn.Dropout(), conv)
      self.add_module(f"lin{n}", head)
    # The package has each head under two names.
    self.lins = nn.ModuleList(getattr(self, f"lin{n}") for n in range(5))
    shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
    self.scaling_layer = nn.Module()
    self.scaling_layer.register_buffer("shift", shift)
    self.scaling_layer.register_buffer("scale", scale)

  def forward(self, *pictures):
    x, y = (
      torch.from_numpy(p.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
      for p in pictures
    )
    scaling, total = self.scaling_layer, 0
    x, y = ((z - scaling.shift) / scaling.scale for z in (x, y))
    for n, part in enumerate(self.net.children()):
      x, y = part(x), part(y)
      x_unit, y_unit = (
        z / (z.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for z in (x, y)
      )
      difference = self.lins[n].model((x_unit - y_unit) ** 2)
      total += difference.mean([2, 3])
    return total.item()


@pytest.fixture(scope="module")
def reference():
  torch.manual_seed(0)
  return Reference().eval()


def arrays(module):
  return {key: value.numpy() for key, value in module.state_dict().items()}


def weights_of(state):
  return from_state_dict(state, state.__getitem__, "alex.safetensors")


@pytest.fixture(scope="module")
def weights(reference):
  return weights_of(arrays(reference))


@pytest.mark.parametrize("other", [*BLURRED, PHOTO[::-1], 255 - PHOTO])
def test_equals_torch(reference, weights, other):
  with torch.no_grad():
    expected = reference(PHOTO, other.copy())
  assert lpips(weights, PHOTO, other) == pytest.approx(expected, rel=1e-4)


def test_known_answers(weights):
  assert lpips(weights, PHOTO, PHOTO) == 0
  near, far = (lpips(weights, PHOTO, blurred) for blurred in BLURRED)
  assert 0 < near < far
  assert lpips(weights, BLURRED[0], PHOTO) == pytest.approx(near, rel=1e-5)


@pytest.mark.parametrize(
  ("pattern", "new"),
  [
    # torchvision's AlexNet beside the file of the package's heads.
    (r"^net\.slice\d", "features"),
    # As a part of another module.
    (r"^", "perceptual_loss."),
    # Without dropout.
    (r"model\.1", "model.0"),
    # With the other name of the heads.
    (r"^lin(\d)", r"lins.\1"),
  ],
)
def test_keys_that_people_have(reference, weights, pattern, new):
  state = {re.sub(pattern, new, k): v for k, v in arrays(reference).items()}
  expected = lpips(weights, PHOTO, BLURRED[0])
  assert lpips(weights_of(state), PHOTO, BLURRED[0]) == expected


def test_other_weights_are_refused(reference):
  state = arrays(reference)
  del state["net.slice3.6.bias"]
  with pytest.raises(
    InputError, match=r"no features\.6\.bias of LPIPS in alex"
  ):
    weights_of(state)
  heads = {k: v for k, v in arrays(reference).items() if ".3.m" not in k}
  del heads["lin3.model.1.weight"]
  with pytest.raises(InputError, match="no lin3 of LPIPS"):
    weights_of(heads)
  vgg = arrays(reference)
  vgg["net.slice1.0.weight"] = np.zeros((64, 3, 3, 3), np.float32)
  with pytest.raises(InputError, match=r"has the shape \(64, 3, 3, 3\)"):
    weights_of(vgg)


def test_tiny_pictures_are_refused(weights):
  small = PHOTO[:31, :31]
  assert lpips(weights, small, small) == 0
  with pytest.raises(InputError, match="pictures of 30x31 are too small"):
    lpips(weights, small[:, :30], small[:, :30])
