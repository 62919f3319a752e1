import jax
import pytest
from jax.experimental import pallas as pl

from i2vgen_jax.kernels import attention, blocks, group_norm


@pytest.fixture
def tpu_kernels(monkeypatch):
  """Runs the kernels of TPUs on the CPU, in Pallas' interpret mode."""

  def always(*args, default, tpu=None, cuda=None):
    return (tpu or default)(*args)

  for module in (attention, blocks, group_norm):
    monkeypatch.setattr(module, "for_platform", always)
  original = pl.pallas_call

  def interpreted(*args, **kwargs):
    return original(*args, **{**kwargs, "interpret": True})

  monkeypatch.setattr(pl, "pallas_call", interpreted)
  # What was compiled without the kernels has the same key.
  jax.clear_caches()
  yield
  jax.clear_caches()
