"""Keys of the CLIP towers in their public forms.

`transformers` is the form of `CLIPTextModel` and
`CLIPVisionModelWithProjection`, `openclip` that of
`open_clip_pytorch_model.bin`, in which the keys of the image tower have the
prefix `visual.` and those of the text tower none.
"""

from collections.abc import Iterator

from i2vgen_jax.interop.keys import kinds
from i2vgen_jax.interop.keys.table import Part, Table, rows


def text_table(form: str, num_layers: int) -> Table:
  """The table of the text tower in `transformers` or `openclip`.

  Files of transformers have the prefix `text_model.`, the modules of
  transformers 5 have none; both are read, the first is written.
  """
  words = "embeddings.token_embedding.weight", "token_embedding.weight"
  tower = (
    Part("token_embedding/embedding", kinds.plain, *words),
    Part("position_embedding", kinds.plain, *_PLACES),
    *_layers(num_layers),
    Part("final_norm", kinds.norm, "final_layer_norm", "ln_final"),
  )
  ignored = {
    "transformers": (f"text_model.{_POSITION_IDS}", _POSITION_IDS),
    # The first two serve the contrastive loss; the mask is a constant.
    "openclip": ("text_projection", "logit_scale", "attn_mask"),
  }
  parts = [Part("", tower, "text_model|", "")]
  return Table(tuple(rows(parts, form)), frozenset(ignored[form]))


def vision_table(form: str, num_layers: int) -> Table:
  """The table of the image tower in `transformers` or `openclip`."""
  patches = "embeddings.patch_embedding", "conv1"
  start = "embeddings.class_embedding", "class_embedding"
  output = "visual_projection", "proj", kinds.transposed
  tower = (
    Part("patch_embedding", kinds.patches, *patches),
    Part("class_embedding", kinds.plain, *start),
    Part("position_embedding", kinds.plain, *_PLACES),
    # The spelling is theirs.
    Part("norm_in", kinds.norm, "pre_layrnorm", "ln_pre"),
    *_layers(num_layers),
    Part("norm_out", kinds.norm, "post_layernorm", "ln_post"),
  )
  parts = [
    Part("", tower, "vision_model", ""),
    Part("projection", kinds.unbiased, *output),
  ]
  ignored = [f"vision_model.{_POSITION_IDS}"] if form == "transformers" else []
  return Table(tuple(rows(parts, form)), frozenset(ignored))


def _layers(count: int) -> Iterator[Part]:
  for i in range(count):
    theirs = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
    yield Part(f"layer_{i}", _LAYER, *theirs)


_PLACES = "embeddings.position_embedding.weight", "positional_embedding"
# A constant that older versions of transformers write.
_POSITION_IDS = "embeddings.position_ids"

# OpenCLIP stacks query, key and value in one matrix and one bias.
_ATTENTION = (
  *kinds.stacked("to_{}", "{}_proj", "in_proj", dot="_"),
  Part("to_out", kinds.linear, "out_proj"),
)
_LAYER = (
  Part("norm_1", kinds.norm, "layer_norm1", "ln_1"),
  Part("attn", _ATTENTION, "self_attn", "attn"),
  Part("norm_2", kinds.norm, "layer_norm2", "ln_2"),
  Part("mlp_in", kinds.linear, "mlp.fc1", "mlp.c_fc"),
  Part("mlp_out", kinds.linear, "mlp.fc2", "mlp.c_proj"),
)
