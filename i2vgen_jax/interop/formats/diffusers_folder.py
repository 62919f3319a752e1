"""The files next to the weights in a diffusers repository."""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from i2vgen_jax import tokenizer
from i2vgen_jax.errors import InputError, reading
from i2vgen_jax.files import read_json, write_json
from i2vgen_jax.interop.formats import safetensors_files
from i2vgen_jax.interop.formats.tensors import Tensors
from i2vgen_jax.preprocessing import CLIP_MEAN, CLIP_STD

# The parts with weights, and their names in a cascade.
PARTS = {
  "unet": "base",
  "vae": "vae",
  "text_encoder": "text_encoder",
  "image_encoder": "image_encoder",
}
# Library and class of all parts; the library is the form of the weights.
CLASSES = {
  "unet": ("diffusers", "I2VGenXLUNet"),
  "vae": ("diffusers", "AutoencoderKL"),
  "text_encoder": ("transformers", "CLIPTextModel"),
  "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
  "tokenizer": ("transformers", "CLIPTokenizer"),
  "feature_extractor": ("transformers", "CLIPImageProcessor"),
  "scheduler": ("diffusers", "DDIMScheduler"),
}

# Names in config.json -> fields of our modules that no shape shows, or that of
# one tensor only; they are read and written.
_READ = {
  "norm_num_groups": "norm_groups",
  "attention_head_dim": "head_dim",
  "num_attention_heads": "num_heads",
  "vocab_size": "vocab_size",
  "max_position_embeddings": "max_length",
  "patch_size": "patch_size",
  "image_size": "image_size",
  "projection_dim": "projection_dim",
}
# The same for fields that many shapes show; they are written.
_WRITTEN = _READ | {
  "block_out_channels": "block_channels",
  "layers_per_block": "layers_per_block",
  "cross_attention_dim": "context_dim",
  "hidden_size": "width",
  "num_hidden_layers": "num_layers",
  "intermediate_size": "mlp_width",
}
_SCHEDULER = "scheduler/scheduler_config.json"
_CLIP = {"hidden_act": "gelu", "layer_norm_eps": 1e-5}

_SCHEDULES = {"squaredcos_cap_v2": "cosine", "scaled_linear": "linear_sd"}
_PREDICTIONS = {"v_prediction": "v", "epsilon": "eps", "sample": "x0"}
_SPACINGS = {"leading": "ddim", "trailing": "trailing"}
# Settings of the scheduler: group and name in the config of our U-Net, values
# of diffusers with ours, and the default of diffusers.
_SETTINGS = {
  "beta_schedule": ("diffusion", "schedule", _SCHEDULES, "linear"),
  "prediction_type": ("diffusion", "prediction_type", _PREDICTIONS, "epsilon"),
  "timestep_spacing": ("sampling", "spacing", _SPACINGS, "leading"),
}
# Required values of the scheduler, and the defaults of diffusers.
_REQUIRED = {
  "_class_name": ("DDIMScheduler", "DDIMScheduler"),
  "num_train_timesteps": (1000, 1000),
  "trained_betas": (None, None),
  "clip_sample": (False, True),
  "thresholding": (False, False),
  "steps_offset": (1, 0),
  "beta_start": (0.00085, 0.0001),
  "beta_end": (0.012, 0.02),
}


# ---- Reading ----


def read_fields(
  config: Mapping[str, Any], known: Container[str], where: str
) -> dict[str, int]:
  """Fields of our module that the config.json of a part decides.

  Args:
    config: content of the config.json.
    known: names of the module's fields.
    where: the weights next to it, for messages.

  Raises:
    InputError: a value is impossible, or not that of I2VGen-XL.
  """
  for name, value in _CLIP.items():
    if config.get(name, value) != value:
      raise InputError(
        f"a CLIP tower with {name} {config[name]}, in {where}; I2VGen-XL uses "
        f"OpenCLIP ViT-H/14, which has {value}"
      )
  fields = {}
  for theirs, ours in _READ.items():
    value = config.get(theirs)
    if ours in known and type(value) is int:
      if value < 1:
        raise InputError(
          f"{ours} cannot be {value}, in the config.json of {where}; copy it "
          "again"
        )
      fields[ours] = value
  return fields


def read_choices(folder: Path) -> dict[str, Any]:
  """The `Choices` that a repository decides: padding and last step."""
  choices: dict[str, Any] = {}
  if (folder / _SCHEDULER).is_file():
    config = read_json(folder / _SCHEDULER)
    choices["to_clean"] = bool(config.get("set_alpha_to_one", True))
  words = folder / "tokenizer"
  if tokenizer.has_vocabulary(words):
    vocab, _ = tokenizer.read_vocabulary(words)
    with reading(words, "copy the folder again"):
      if (pad := _pad_token(words)) not in vocab:
        raise ValueError(f"the padding {pad!r} is not a token")
      choices["pad_token_id"] = vocab[pad]
  return choices


def read_scheduler(folder: Path) -> dict[str, dict[str, Any]]:
  """The scheduler's settings as parts of a U-Net's config.

  Returns:
    `diffusion`, for which the weights were trained, and the part of `sampling`
    that is not among `Choices`.

  Raises:
    InputError: a setting is not available here.
  """
  path = folder / _SCHEDULER
  config = read_json(path)
  allowed = {n: (tuple(values), x) for n, (*_, values, x) in _SETTINGS.items()}
  allowed |= {n: ((value,), x) for n, (value, x) in _REQUIRED.items()}
  if config.get("timestep_spacing") == "trailing":
    del allowed["steps_offset"]
  if config.get("beta_schedule") == "squaredcos_cap_v2":
    del allowed["beta_start"], allowed["beta_end"]
  snr = bool(config.get("rescale_betas_zero_snr", False))
  ours = {"diffusion": {"zero_terminal_snr": snr}, "sampling": {}}
  for name, (values, default) in allowed.items():
    value = config.get(name, default)
    if value not in values:
      raise InputError(
        f"{name} {value!r} is not a setting of I2VGen-XL, in {path}; it can be "
        f"{' or '.join(map(str, values))}, use the scheduler that came with "
        "the weights"
      )
    if name in _SETTINGS:
      group, field, our_names, _ = _SETTINGS[name]
      ours[group][field] = our_names[value]
  return ours


def _pad_token(folder: Path) -> str:
  """The padding token, which transformers stores as a text or as a dict."""
  for name in ("special_tokens_map.json", "tokenizer_config.json"):
    if (folder / name).is_file():
      pad = read_json(folder / name).get("pad_token")
      pad = pad.get("content") if isinstance(pad, dict) else pad
      if pad:
        return pad
  return "<|endoftext|>"


# ---- Writing ----


def write_component(
  folder: Path, part: str, config: Mapping[str, Any], tensors: Tensors
) -> None:
  """One network: `PART/config.json` and its weights.

  Args:
    folder: folder of the repository.
    part: one of `PARTS`.
    config: config of the network in a cascade of ours, with all fields.
    tensors: weights in the form of diffusers or transformers.
  """
  library, class_name = CLASSES[part]
  fields = config["module"]
  values = {t: fields[ours] for t, ours in _WRITTEN.items() if ours in fields}
  values |= _other_values(part, fields, config)
  if library == "diffusers":
    stem, kind = "diffusion_pytorch_model", {"_class_name": class_name}
  else:
    stem, kind = "model", {"architectures": [class_name]}
  _write_json(folder / part / "config.json", values | kind)
  safetensors_files.write(
    folder / part / f"{stem}.safetensors", tensors, {"format": "pt"}
  )


def write_rest(
  folder: Path, config: Mapping[str, Any], words: Path, pad_token_id: int
) -> None:
  """Scheduler, tokenizer, feature extractor and `model_index.json`.

  Args:
    folder: folder of the repository.
    config: config of the U-Net in a cascade of ours.
    words: folder of a tokenizer.
    pad_token_id: token that fills a short text.
  """
  vocab, merges = tokenizer.read_vocabulary(words)
  pad = next((t for t, i in vocab.items() if i == pad_token_id), None)
  if pad is None:
    raise InputError(
      f"pad_token_id {pad_token_id} is not a token of {words}; choose another"
    )
  tokenizer.write_vocabulary(folder / "tokenizer", vocab, merges, pad)
  extractor = {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": 224,
    "size": {"shortest_edge": 224},
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
  }
  _write_json(folder / "feature_extractor/preprocessor_config.json", extractor)
  _write_json(folder / _SCHEDULER, _scheduler(config))
  index = {"_class_name": "I2VGenXLPipeline"} | CLASSES
  _write_json(folder / "model_index.json", index)


def _other_values(
  part: str, fields: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
  """Values in config.json that do not correspond to one field of ours."""
  levels = len(fields.get("block_channels", ()))
  match part:
    case "unet":
      lowest = levels - 1
      return {
        "in_channels": fields["latent_channels"],
        "out_channels": fields["latent_channels"],
        "down_block_types": ["CrossAttnDownBlock3D"] * lowest + ["DownBlock3D"],
        "up_block_types": ["UpBlock3D"] + ["CrossAttnUpBlock3D"] * lowest,
        # The width of a head, which older versions read under another name.
        "num_attention_heads": fields["head_dim"],
        "sample_size": 32,
      }
    case "vae":
      return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": fields["latent_channels"],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "scaling_factor": config["scaling_factor"],
        "act_fn": "silu",
        "force_upcast": True,
      }
    case "text_encoder":
      return _CLIP | {
        "model_type": "clip_text_model",
        "projection_dim": fields["width"],
        "bos_token_id": fields["vocab_size"] - 2,
        "eos_token_id": fields["vocab_size"] - 1,
        "pad_token_id": config.get("pad_token_id", 0),
      }
  return _CLIP | {"model_type": "clip_vision_model"}


def _scheduler(config: Mapping[str, Any]) -> dict[str, Any]:
  written = {name: value for name, (value, _) in _REQUIRED.items()}
  for name, (group, field, values, default) in _SETTINGS.items():
    names = {ours: theirs for theirs, ours in values.items()}
    ours = config[group].get(field, values.get(default))
    if ours not in names:
      raise InputError(f"diffusers has no {ours!r} for this pipeline")
    written[name] = names[ours]
  return written | {
    "rescale_betas_zero_snr": config["diffusion"]["zero_terminal_snr"],
    "set_alpha_to_one": config["sampling"].get("to_clean", False),
  }


def _write_json(path: Path, values: dict[str, Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  write_json(path, values)
