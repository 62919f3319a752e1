"""The files next to the weights in a diffusers repository."""

import json
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from i2vgen_jax import tokenizer
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import read_json
from i2vgen_jax.interop.formats import safetensors_files
from i2vgen_jax.interop.formats.tensors import Tensors
from i2vgen_jax.preprocessing import CLIP_MEAN, CLIP_STD

# The parts with weights, and the classes of all parts.
PARTS = ("unet", "vae", "text_encoder", "image_encoder")
_CLASSES = {
  "unet": ("diffusers", "I2VGenXLUNet"),
  "vae": ("diffusers", "AutoencoderKL"),
  "text_encoder": ("transformers", "CLIPTextModel"),
  "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
  "tokenizer": ("transformers", "CLIPTokenizer"),
  "feature_extractor": ("transformers", "CLIPImageProcessor"),
  "scheduler": ("diffusers", "DDIMScheduler"),
}

# Names in config.json -> fields of our modules.
_FIELDS = {
  "block_out_channels": "block_channels",
  "layers_per_block": "layers_per_block",
  "norm_num_groups": "norm_groups",
  "cross_attention_dim": "context_dim",
  "attention_head_dim": "head_dim",
  "hidden_size": "width",
  "num_hidden_layers": "num_layers",
  "num_attention_heads": "num_heads",
  "intermediate_size": "mlp_width",
  "vocab_size": "vocab_size",
  "max_position_embeddings": "max_length",
  "patch_size": "patch_size",
  "image_size": "image_size",
  "projection_dim": "projection_dim",
}
# Fields that no shape shows, or that of one tensor only.
_READ = {
  "norm_groups",
  "head_dim",
  "num_heads",
  "vocab_size",
  "max_length",
  "patch_size",
  "image_size",
  "projection_dim",
}
_CLIP = {"hidden_act": "gelu", "layer_norm_eps": 1e-5}

_SCHEDULES = {"squaredcos_cap_v2": "cosine", "scaled_linear": "linear_sd"}
_PREDICTIONS = {"v_prediction": "v", "epsilon": "eps", "sample": "x0"}
_SPACINGS = {"leading": "ddim", "trailing": "trailing"}
# Required values of the scheduler, and the defaults of diffusers.
_SCHEDULER = {
  "_class_name": ("DDIMScheduler", "DDIMScheduler"),
  "num_train_timesteps": (1000, 1000),
  "trained_betas": (None, None),
  "clip_sample": (False, True),
  "thresholding": (False, False),
}
_LEADING = {"steps_offset": (1, 0)}
_LINEAR_SD = {"beta_start": (0.00085, 0.0001), "beta_end": (0.012, 0.02)}


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
  fields = {
    ours: config[theirs]
    for theirs, ours in _FIELDS.items()
    if ours in _READ and ours in known and type(config.get(theirs)) is int
  }
  for name, value in fields.items():
    if value < 1:
      raise InputError(
        f"{name} cannot be {value}, in the config.json of {where}; copy it "
        "again"
      )
  return fields


def read_choices(folder: Path) -> dict[str, Any]:
  """The `Choices` that a repository decides: padding and last step."""
  choices: dict[str, Any] = {}
  scheduler = folder / "scheduler" / "scheduler_config.json"
  if scheduler.is_file():
    config = read_json(scheduler)
    choices["to_clean"] = bool(config.get("set_alpha_to_one", True))
  words = folder / "tokenizer"
  if tokenizer.has_vocabulary(words):
    vocab, _ = tokenizer.read_vocabulary(words)
    pad = _pad_token(words)
    if pad not in vocab:
      raise InputError(
        f"the padding {pad!r} is not a token of {words}; copy the folder again"
      )
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
  path = folder / "scheduler" / "scheduler_config.json"
  config = read_json(path)

  def check(name: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
      raise InputError(
        f"{name} {value!r} is not a setting of I2VGen-XL, in {path}; it can be "
        f"{' or '.join(map(str, allowed))}, use the scheduler that came with "
        "the weights"
      )

  def ours(name: str, names: dict[str, str], default: str) -> str:
    value = config.get(name, default)
    check(name, value, tuple(names))
    return names[value]

  schedule = ours("beta_schedule", _SCHEDULES, "linear")
  spacing = ours("timestep_spacing", _SPACINGS, "leading")
  required = _SCHEDULER | (_LEADING if spacing == "ddim" else {})
  required |= _LINEAR_SD if schedule == "linear_sd" else {}
  for name, (value, default) in required.items():
    check(name, config.get(name, default), (value,))
  return {
    "diffusion": {
      "schedule": schedule,
      "zero_terminal_snr": bool(config.get("rescale_betas_zero_snr", False)),
      "prediction_type": ours("prediction_type", _PREDICTIONS, "epsilon"),
    },
    "sampling": {"spacing": spacing},
  }


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
  library, class_name = _CLASSES[part]
  fields = config["module"]
  values = {t: fields[ours] for t, ours in _FIELDS.items() if ours in fields}
  values |= _other_values(part, fields, config)
  stem = "model"
  if library == "diffusers":
    values["_class_name"] = class_name
    stem = "diffusion_pytorch_model"
  else:
    values["architectures"] = [class_name]
  _write_json(folder / part / "config.json", values)
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
  _write_json(
    folder / "scheduler" / "scheduler_config.json", _scheduler(config)
  )
  vocab, merges = tokenizer.read_vocabulary(words)
  pad = next((t for t, i in vocab.items() if i == pad_token_id), None)
  if pad is None:
    raise InputError(
      f"pad_token_id {pad_token_id} is not a token of {words}; choose another"
    )
  tokenizer.write_vocabulary(folder / "tokenizer", vocab, merges, pad)
  _write_json(
    folder / "feature_extractor" / "preprocessor_config.json",
    {
      "image_processor_type": "CLIPImageProcessor",
      "crop_size": 224,
      "size": {"shortest_edge": 224},
      "image_mean": list(CLIP_MEAN),
      "image_std": list(CLIP_STD),
    },
  )
  index = {name: list(kind) for name, kind in _CLASSES.items()}
  _write_json(
    folder / "model_index.json", {"_class_name": "I2VGenXLPipeline", **index}
  )


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
  def theirs(names: dict[str, str], value: str) -> str:
    for name, ours in names.items():
      if ours == value:
        return name
    raise InputError(f"diffusers has no {value!r} for this pipeline")

  diffusion, sampling = config["diffusion"], config["sampling"]
  return {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": theirs(_SCHEDULES, diffusion["schedule"]),
    "rescale_betas_zero_snr": diffusion["zero_terminal_snr"],
    "prediction_type": theirs(_PREDICTIONS, diffusion["prediction_type"]),
    "set_alpha_to_one": sampling.get("to_clean", False),
    "clip_sample": False,
    "steps_offset": 1,
    "timestep_spacing": theirs(_SPACINGS, sampling.get("spacing", "ddim")),
  }


def _write_json(path: Path, values: dict[str, Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
