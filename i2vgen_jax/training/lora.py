"""Training of a LoRA of a U-Net, whose own weights stay as they are."""

import dataclasses
from pathlib import Path

import jax
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from i2vgen_jax import interop, lora, trees
from i2vgen_jax.errors import InputError
from i2vgen_jax.interop import lora_files
from i2vgen_jax.interop.stored import table_of
from i2vgen_jax.training import task
from i2vgen_jax.training.denoising import Denoising
from i2vgen_jax.training.metrics import say
from i2vgen_jax.types import Array, Batch, Params

# Name of the U-Net's own weights among the frozen networks.
PRETRAINED = "pretrained"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraDenoising(Denoising):
  """The diffusion loss of a U-Net as a function of a LoRA of it.

  The state of the training, its checkpoints and its moving average hold the
  LoRA alone.

  Attributes:
    rank: of A·B.
    alpha: the change is alpha / rank times A·B.
    origin: where the U-Net's weights are from, which the file says.
  """

  rank: int
  alpha: float
  origin: str = ""

  @classmethod
  def from_config(cls, config: ConfigDict, mesh: Mesh) -> "LoraDenoising":
    """The task of a config with the groups of `Denoising`'s, and `lora`.

    Raises:
      InputError: as for `Denoising`; the rank is not positive; there are no
        weights of the whole U-Net at `config.init_from`.
    """
    rank, path = config.lora.rank, config.init_from
    if rank < 1:
      raise InputError(f"lora.rank must be at least 1, got {rank}")
    if path is None:
      raise InputError(
        "a LoRA changes a trained U-Net, and config.init_from is not set; name "
        "its weights: --config.init_from=PATH"
      )
    whole = Denoising.from_config(config, mesh)
    rng = jax.random.key(config.train.seed)
    params, differences = interop.initial_params(path, whole.stage.unet, rng)
    if new := differences.missing:
      raise InputError(
        f"a LoRA changes a whole U-Net, and {path} lacks {len(new)} of its "
        f"arrays: {trees.few(new)}; make config.unet agree"
      )
    dtype = config.lora.pretrained_dtype
    params = jax.tree.map(lambda x: x.astype(dtype, copy=False), params)
    fields = {
      field.name: getattr(whole, field.name)
      for field in dataclasses.fields(whole)
    }
    fields["frozen"] = {**whole.frozen, PRETRAINED: params}
    alpha, origin = float(config.lora.alpha), str(path)
    return cls(**fields, rank=rank, alpha=alpha, origin=origin)

  def init_params(self, rng: task.Rng) -> Params:
    return lora.init(rng, self.frozen[PRETRAINED], self.rank)

  def load_params(self, path: str | Path, rng: task.Rng) -> Params:
    """A LoRA that changes nothing yet of the weights at `path`."""
    params = jax.jit(self.init_params)(rng)
    trained, others = map(_count, (params, self.frozen[PRETRAINED]))
    say(
      f"training a LoRA of rank {self.rank}: {trained} parameters, "
      f"{trained / others:.2%} of those of {path}"
    )
    return jax.device_get(params)

  def losses(
    self,
    params: Params,
    frozen: task.Networks,
    batch: Batch,
    rng: task.Rng,
    held_out_at: Int[Array, "b"] | None = None,
  ) -> Float[Array, "b"]:
    params = self._merged(params, frozen)
    return super().losses(params, frozen, batch, rng, held_out_at)

  def sample_picture(
    self, params: Params, frozen: task.Networks, batch: Batch
  ) -> task.Picture:
    return super().sample_picture(self._merged(params, frozen), frozen, batch)

  def export(self, folder: Path, params: Params, batch: Batch) -> None:
    """Writes the LoRA alone, into `folder`/lora."""
    about = {"stage": self.stage.name, "pretrained": self.origin}
    about |= {"rank": self.rank, "alpha": self.alpha}
    network = table_of(self.stage.unet, "diffusers")
    lora_files.save(folder / "lora", params, self._scale, network, about)

  @property
  def _scale(self) -> float:
    return self.alpha / self.rank

  def _merged(self, params: Params, frozen: task.Networks) -> Params:
    return lora.merge(frozen[PRETRAINED], params, self._scale)


def _count(params: Params) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(params))
