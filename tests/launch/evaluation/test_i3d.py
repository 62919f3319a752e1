"""The call of an I3D in TorchScript, by small programs in its place."""

import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch

from i2vgen_jax.errors import InputError
from launch.evaluation import i3d


class Network(torch.nn.Module):
  """Has the arguments of the public file."""

  def forward(
    self,
    x: torch.Tensor,
    rescale: bool = True,
    resize: bool = True,
    return_features: bool = False,
  ):
    assert not rescale and not resize and return_features
    assert x.size(0) == 1 and x.size(1) == 3, "channels first"
    assert x.size(3) == 224 and x.size(4) == 224, "squares"
    return self.features(x)


class Small(Network):
  """Features are means and extremes."""

  def features(self, x: torch.Tensor):
    assert x.size(2) > 2, "too few frames"
    means = x.mean(dim=[3, 4]).flatten(1)
    ends = torch.stack([x.min(), x.max()])
    return torch.cat([means, ends[None]], dim=1)


class Picture(Network):
  """Features are the pixels."""

  def features(self, x: torch.Tensor):
    return x.flatten(1)


def save(folder, module):
  path = folder / "i3d_torchscript.pt"
  torch.jit.script(module).save(str(path))
  return path


@pytest.mark.filterwarnings("error::UserWarning")
def test_network_gets_what_the_public_file_takes(tmp_path):
  features = i3d.load(save(tmp_path, Small()))
  frames = np.zeros((4, 32, 48, 3), np.uint8)
  frames[2, ..., 1] = 255
  frames[3, :, :24, 2] = 255
  frames.setflags(write=False)  # As those of JAX.
  *means, low, high = features(frames)
  # Half of a frame is half of a stretched one, whatever its shape.
  expected = np.full((3, 4), -1.0)
  expected[1, 2], expected[2, 3] = 1, 0
  np.testing.assert_allclose(means, expected.ravel(), atol=1e-6)
  assert (low, high) == (-1, 1)


def test_frames_are_stretched_as_torch_does(tmp_path):
  features = i3d.load(save(tmp_path, Picture()))
  frames = np.random.default_rng(0).integers(0, 256, (1, 3, 5, 3), np.uint8)
  made = features(frames).reshape(3, 224, 224)
  # Between the centres of the first two pixels of the middle row.
  weight = (40 + 0.5) * 5 / 224 - 0.5
  left, right = frames[0, 1, :2, 0] / 127.5 - 1
  expected = left + weight * (right - left)
  assert 0 < weight < 1
  assert (made[0, 111, 40] + made[0, 112, 40]) / 2 == pytest.approx(
    expected, abs=0.02
  )


def test_clip_that_the_network_does_not_take(tmp_path):
  features = i3d.load(path := save(tmp_path, Small()))
  frames = np.zeros((2, 32, 48, 3), np.uint8)
  with pytest.raises(InputError, match=r"2 frames of 48x32.*too few frames"):
    features(frames)
  with pytest.raises(InputError, match=path.name):
    features(frames)


def test_other_programs_are_refused(tmp_path):
  class Other(torch.nn.Module):
    def forward(self, x: torch.Tensor):
      return x

  features = i3d.load(save(tmp_path, Other()))
  with pytest.raises(InputError, match="does not take a clip"):
    features(np.zeros((2, 32, 48, 3), np.uint8))


def test_other_files_are_refused(tmp_path):
  path = tmp_path / "i3d.pt"
  with pytest.raises(InputError, match=path.name):
    i3d.load(path)
  torch.save({"weight": torch.zeros(2)}, path)
  with pytest.raises(InputError, match="not a TorchScript program"):
    i3d.load(path)


def test_pickled_program_is_not_run(tmp_path):
  """TorchScript's format has pickles, which torch reads without Python."""
  good, marker = save(tmp_path, Small()), tmp_path / "marker"

  class Program:
    def __reduce__(self):
      return marker.touch, ()

  def rewritten(replaced=()):
    path = tmp_path / "rewritten.pt"
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w") as target:
      for name in source.namelist():
        content = source.read(name)
        if name.endswith(replaced):
          content = pickle.dumps(Program(), protocol=2)
        target.writestr(name, content)
    return path

  i3d.load(rewritten())
  for replaced in ("data.pkl", "constants.pkl"):
    with pytest.raises(InputError, match="not a TorchScript program"):
      i3d.load(rewritten((replaced,)))
  assert not marker.exists()
  pickle.loads(pickle.dumps(Program()))
  assert marker.exists()


def test_without_torch(tmp_path, monkeypatch):
  path = save(tmp_path, Small())
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(InputError, match="torch is not installed"):
    i3d.load(path)
