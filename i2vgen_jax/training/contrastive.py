"""Training of both CLIP towers, as CLIP itself (Radford et al. 2021)."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from i2vgen_jax.models import build
from i2vgen_jax.tokenizer import Tokenizer
from i2vgen_jax.training import task
from i2vgen_jax.types import Array, Batch, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive(task.Task):
  """CLIP's symmetric loss between captions and pictures of the batch.

  `params` has `text_encoder`, `image_encoder` and `logit_scale` (logarithm;
  CLIP starts at log(1 / 0.07) and caps it at log 100). Rows with the same
  caption match each other as well.

  Attributes:
    text_encoder: CLIPTextModel.
    image_encoder: CLIPVisionModel.
    configs: `module` of the `config.json` of each tower.
  """

  text_encoder: Any
  image_encoder: Any
  configs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @classmethod
  def from_config(cls, config: ConfigDict, mesh: Mesh) -> "Contrastive":
    """The task of a config with the groups text_encoder and image_encoder.

    Raises:
      InputError: no tokenizer in `config.frozen`.
    """
    configs = {
      name: config[name].to_dict() for name in ("text_encoder", "image_encoder")
    }
    modules = {
      name: build.make_module(name, fields, f"config.{name}")
      for name, fields in configs.items()
    }
    tokenizer = Tokenizer.load(
      Path(config.frozen) / "tokenizer",
      max_length=modules["text_encoder"].max_length,
    )
    return cls(**modules, configs=configs, tokenizer=tokenizer)

  @property
  def clip_size(self) -> int:
    return self.image_encoder.image_size

  def init_params(self, rng: task.Rng) -> Params:
    rng_text, rng_image = jax.random.split(rng)
    return {
      "text_encoder": build.init_params(self.text_encoder, rng_text),
      "image_encoder": build.init_params(self.image_encoder, rng_image),
      "logit_scale": jnp.asarray(math.log(1 / 0.07)),
    }

  def loss(
    self, params: Params, frozen: task.Networks, batch: Batch, rng: task.Rng
  ) -> task.Loss:
    text = self.text_encoder.apply(
      {"params": params["text_encoder"]}, batch.token_ids
    ).pooled
    image = self.image_encoder.apply(
      {"params": params["image_encoder"]}, batch.clip_images
    )
    scale = jnp.exp(jnp.minimum(params["logit_scale"], jnp.log(100.0)))
    logits = scale * _unit(image) @ _unit(text).T

    same = batch.token_ids[:, None] == batch.token_ids[None]
    match = same.all(axis=-1)
    targets = match / match.sum(axis=1, keepdims=True)
    loss = 0.5 * (
      optax.softmax_cross_entropy(logits, targets).mean()
      + optax.softmax_cross_entropy(logits.T, targets).mean()
    )
    found = jnp.take_along_axis(
      match, logits.argmax(axis=1, keepdims=True), axis=1
    )
    return loss, {"accuracy": found.mean(), "logit_scale": scale}

  def exports(self, params: Params, batch: Batch) -> task.Exports:
    return {
      name: ({"module": fields}, params[name])
      for name, fields in self.configs.items()
    }


def _unit(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
