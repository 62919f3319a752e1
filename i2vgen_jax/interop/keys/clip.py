"""Keys of the CLIP towers in their public forms."""

from collections.abc import Iterable

from i2vgen_jax.interop.keys.layouts import LINEAR, PLAIN
from i2vgen_jax.interop.keys.table import Row, Table, conv2d, linear, norm


def transformers_text_table(num_layers: int) -> Table:
  """The form of transformers' `CLIPTextModel`.

  Files have the prefix `text_model.`, the modules of transformers 5 have none;
  both are read, the first is written.
  """
  prefixes = ("text_model.", "")
  rows = [
    _plain("token_embedding/embedding", prefixes, "token_embedding"),
    _plain("position_embedding", prefixes, "position_embedding"),
    *_layers(num_layers, prefixes),
    *norm("final_norm", *_keys(prefixes, "final_layer_norm")),
  ]
  return Table(tuple(rows), _position_ids(prefixes))


def transformers_vision_table(num_layers: int) -> Table:
  """The form of transformers' `CLIPVisionModelWithProjection`."""
  prefixes = ("vision_model.",)
  patches = _keys(prefixes, "embeddings.patch_embedding")
  rows = [
    *conv2d("patch_embedding", *patches, bias=False),
    Row(
      "class_embedding", _keys(prefixes, "embeddings.class_embedding"), PLAIN
    ),
    _plain("position_embedding", prefixes, "position_embedding"),
    # The spelling is theirs.
    *norm("norm_in", *_keys(prefixes, "pre_layrnorm")),
    *_layers(num_layers, prefixes),
    *norm("norm_out", *_keys(prefixes, "post_layernorm")),
    *linear("projection", "visual_projection", bias=False),
  ]
  return Table(tuple(rows), _position_ids(prefixes))


def openclip_text_table(num_layers: int) -> Table:
  """The text tower in `open_clip_pytorch_model.bin`.

  Its keys are those of the file that do not start with `visual.`.
  """
  rows = [
    Row("token_embedding/embedding", ("token_embedding.weight",), PLAIN),
    Row("position_embedding", ("positional_embedding",), PLAIN),
    *_openclip_layers(num_layers),
    *norm("final_norm", "ln_final"),
  ]
  # The first two serve the contrastive loss; the mask is a constant.
  unused = {"text_projection", "logit_scale", "attn_mask"}
  return Table(tuple(rows), frozenset(unused))


def openclip_vision_table(num_layers: int) -> Table:
  """The image tower in the same file, after the prefix `visual.`."""
  rows = [
    *conv2d("patch_embedding", "conv1", bias=False),
    Row("class_embedding", ("class_embedding",), PLAIN),
    Row("position_embedding", ("positional_embedding",), PLAIN),
    *norm("norm_in", "ln_pre"),
    *_openclip_layers(num_layers),
    *norm("norm_out", "ln_post"),
    # A matrix multiplied from the right, as in Flax.
    Row("projection/kernel", ("proj",), PLAIN),
  ]
  return Table(tuple(rows))


def _layers(num_layers: int, prefixes: tuple[str, ...]) -> Iterable[Row]:
  for i in range(num_layers):
    keys = _keys(prefixes, f"encoder.layers.{i}.")
    yield from _layer(f"layer_{i}", keys)


def _layer(path: str, keys: tuple[str, ...]) -> Iterable[Row]:
  def under(name: str) -> tuple[str, ...]:
    return _keys(keys, name)

  yield from norm(f"{path}/norm_1", *under("layer_norm1"))
  for name in ("q", "k", "v", "out"):
    attention = under(f"self_attn.{name}_proj")
    yield from linear(f"{path}/attn/to_{name}", *attention)
  yield from norm(f"{path}/norm_2", *under("layer_norm2"))
  yield from linear(f"{path}/mlp_in", *under("mlp.fc1"))
  yield from linear(f"{path}/mlp_out", *under("mlp.fc2"))


def _openclip_layers(num_layers: int) -> Iterable[Row]:
  for i in range(num_layers):
    yield from _openclip_layer(f"layer_{i}", f"transformer.resblocks.{i}")


def _openclip_layer(path: str, key: str) -> Iterable[Row]:
  """Query, key and value are stacked in one matrix and one bias."""
  yield from norm(f"{path}/norm_1", f"{key}.ln_1")
  for i, name in enumerate("qkv"):
    ours, theirs = f"{path}/attn/to_{name}", f"{key}.attn.in_proj"
    yield Row(f"{ours}/kernel", (f"{theirs}_weight",), LINEAR, part=(i, 3))
    yield Row(f"{ours}/bias", (f"{theirs}_bias",), PLAIN, part=(i, 3))
  yield from linear(f"{path}/attn/to_out", f"{key}.attn.out_proj")
  yield from norm(f"{path}/norm_2", f"{key}.ln_2")
  yield from linear(f"{path}/mlp_in", f"{key}.mlp.c_fc")
  yield from linear(f"{path}/mlp_out", f"{key}.mlp.c_proj")


def _plain(path: str, prefixes: tuple[str, ...], name: str) -> Row:
  return Row(path, _keys(prefixes, f"embeddings.{name}.weight"), PLAIN)


def _position_ids(prefixes: tuple[str, ...]) -> frozenset[str]:
  """A constant that older versions of transformers write."""
  return frozenset(_keys(prefixes, "embeddings.position_ids"))


def _keys(prefixes: tuple[str, ...], name: str) -> tuple[str, ...]:
  return tuple(f"{prefix}{name}" for prefix in prefixes)
