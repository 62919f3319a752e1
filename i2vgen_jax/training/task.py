"""What `loop.train` asks of a kind of training.

To add one, write a module with a subclass of `Task` beside `denoising.py` and
name it in `launch/train.py`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Float, Int, Key, UInt8

from i2vgen_jax.diffusion.losses import per_row_rngs
from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.formats import native
from i2vgen_jax.tokenizer import Tokenizer
from i2vgen_jax.training.step import Metrics
from i2vgen_jax.types import Array, Batch, Params

Rng = Key[Array, ""]
Networks = Mapping[str, Params]
Loss = tuple[Float[Array, ""], Metrics]
Sums = dict[str, Float[Array, "2"]]
Picture = UInt8[Array, "h w 3"]
# config.json and weights of each network, by name.
Exports = dict[str, tuple[dict[str, Any], Params]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """One kind of training: its networks, its loss and what it leaves.

  Every random draw of a row in `loss` derives from `rng` and `batch.index`, so
  that neither the mesh nor the number of hosts changes it, and the rng may be
  the same at every step.

  Attributes:
    frozen: weights that the loss reads and nothing trains, by network.
    tokenizer: makes `batch.token_ids`; None if the loss reads no captions.
  """

  frozen: Networks = dataclasses.field(default_factory=dict)
  tokenizer: Tokenizer | None = None

  @property
  def clip_size(self) -> int | None:
    """Side of `batch.clip_images` in pixels; None if the loss reads none."""
    return None

  def init_params(self, rng: Rng) -> Params:
    """Random weights; traceable."""
    raise NotImplementedError

  def load_params(self, path: str | Path, rng: Rng) -> Params:
    """Weights to start from, in float32.

    Args:
      path: where they are stored; the setting `config.init_from`.
      rng: for weights that `path` lacks.

    Raises:
      InputError: there are none at `path`, or they are of another network.
    """
    raise InputError(
      f"this objective starts from random weights, not from {path}; leave "
      "config.init_from out"
    )

  def loss(
    self, params: Params, frozen: Networks, batch: Batch, rng: Rng
  ) -> Loss:
    """The loss of a batch, and other values to report; traceable."""
    raise NotImplementedError

  def held_out_loss(
    self, params: Params, frozen: Networks, batch: Batch, rng: Rng
  ) -> tuple[Float[Array, ""], Sums]:
    """The loss of held-out clips, without dropout of any kind; traceable.

    Returns:
      The mean over rows; and by name of a part of the rows, the sum of their
      losses and their number.
    """
    return self.loss(params, frozen, batch, rng)[0], {}

  def sample_picture(
    self, params: Params, frozen: Networks, batch: Batch
  ) -> Picture | None:
    """A picture that shows what the weights do; traceable."""
    return None

  def exports(self, params: Params, batch: Batch) -> Exports:
    """The trained networks by name: their `config.json` and their weights.

    Args:
      params: the trained weights.
      batch: one batch of the training data, to measure scales on.
    """
    raise NotImplementedError

  def export(self, folder: Path, params: Params, batch: Batch) -> None:
    """Writes what a finished run leaves, as a cascade folder has it.

    Args:
      folder: does not exist yet.
      params: the trained weights.
      batch: see `exports`.

    Raises:
      InputError: the folder cannot be written.
    """
    for name, (config, weights) in self.exports(params, batch).items():
      native.save(folder / name, config, weights)


def row_noise(
  rng: Rng, index: Int[Array, "b"], shape: tuple[int, ...]
) -> Float[Array, "b ..."]:
  """Standard normal noise of each row, which depends on its index alone."""
  draw = jax.vmap(lambda row_rng: jax.random.normal(row_rng, shape))
  return draw(per_row_rngs(rng, index))


def grid(clips: UInt8[Array, "b k f h w 3"]) -> UInt8[Array, "H W 3"]:
  """One picture of clips: a row for each b and k, a column for each f."""
  b, k, f, h, w, _ = clips.shape
  return clips.transpose(0, 1, 3, 2, 4, 5).reshape(b * k * h, f * w, 3)
