"""The files beside the weights of a diffusers repository, read and written."""

import json
from pathlib import Path
from typing import Any

from i2vgen_jax import tokenizer
from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.formats import safetensors_files
from i2vgen_jax.interop.formats.tensors import Tensors
from i2vgen_jax.preprocessing import CLIP_MEAN, CLIP_STD

# What the libraries call the classes, by the name of the component.
_CLASSES = {
  "unet": ("diffusers", "I2VGenXLUNet"),
  "vae": ("diffusers", "AutoencoderKL"),
  "text_encoder": ("transformers", "CLIPTextModel"),
  "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
  "tokenizer": ("transformers", "CLIPTokenizer"),
  "feature_extractor": ("transformers", "CLIPImageProcessor"),
  "scheduler": ("diffusers", "DDIMScheduler"),
}
_SCHEDULES = {"squaredcos_cap_v2": "cosine", "scaled_linear": "linear_sd"}
_PREDICTIONS = {"v_prediction": "v", "epsilon": "eps", "sample": "x0"}
_SPACINGS = {"leading": "ddim", "trailing": "trailing"}
# What the scheduler must say, and what diffusers takes if it says nothing.
_FIXED = {
  "_class_name": ("DDIMScheduler", "DDIMScheduler"),
  "num_train_timesteps": (1000, 1000),
  "trained_betas": (None, None),
  "clip_sample": (False, True),
  "thresholding": (False, False),
}
_LEADING = {"steps_offset": (1, 0)}
_LINEAR_SD = {"beta_start": (0.00085, 0.0001), "beta_end": (0.012, 0.02)}


# ---- Reading ----


def read_json(path: Path) -> dict[str, Any]:
  """A JSON object.

  Raises:
    InputError: it is missing, damaged or something else.
  """
  try:
    value = json.loads(path.read_text("utf-8"))
  except (OSError, ValueError) as e:
    raise InputError(f"cannot read {path}: {e}; copy it anew") from e
  if not isinstance(value, dict):
    raise InputError(f"{path} is no JSON object; copy it anew")
  return value


def read_choices(folder: Path) -> dict[str, Any]:
  """What the folder decides of `Choices`: the padding and the last step."""
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
        f"the padding {pad!r} is no token of {words}; copy the folder anew"
      )
    choices["pad_token_id"] = vocab[pad]
  return choices


def read_scheduler(folder: Path) -> dict[str, dict[str, Any]]:
  """What the scheduler says, as parts of a U-Net's config.

  Returns:
    `diffusion`, which the weights were trained to, and the part of `sampling`
    that is not among `Choices`.

  Raises:
    InputError: it says what we do not have.
  """
  path = folder / "scheduler" / "scheduler_config.json"
  config = read_json(path)

  def one_of(known: dict[str, str], name: str, default: str) -> str:
    value = config.get(name, default)
    if not isinstance(value, str) or value not in known:
      raise _none_of_ours(path, name, value, " or ".join(known))
    return known[value]

  schedule = one_of(_SCHEDULES, "beta_schedule", "linear")
  spacing = one_of(_SPACINGS, "timestep_spacing", "leading")
  fixed = _FIXED | (_LEADING if spacing == "ddim" else {})
  for name, (ours, default) in (
    fixed | (_LINEAR_SD if schedule == "linear_sd" else {})
  ).items():
    if (value := config.get(name, default)) != ours:
      raise _none_of_ours(path, name, value, ours)
  prediction = one_of(_PREDICTIONS, "prediction_type", "epsilon")
  return {
    "diffusion": {
      "schedule": schedule,
      "zero_terminal_snr": bool(config.get("rescale_betas_zero_snr", False)),
      "prediction_type": prediction,
    },
    "sampling": {"spacing": spacing},
  }


def _none_of_ours(path: Path, name: str, value: Any, ours: Any) -> InputError:
  return InputError(
    f"{name} {value!r} is none of I2VGen-XL, in {path}; it can be {ours}, use "
    "the scheduler that came with the weights"
  )


def _pad_token(folder: Path) -> str:
  """As a text, or as the dict that transformers makes of it."""
  for name in ("special_tokens_map.json", "tokenizer_config.json"):
    if (folder / name).is_file():
      pad = read_json(folder / name).get("pad_token")
      pad = pad.get("content") if isinstance(pad, dict) else pad
      if pad:
        return pad
  return "<|endoftext|>"


# ---- Writing ----


def write_component(
  folder: Path, name: str, config: dict[str, Any], tensors: Tensors
) -> None:
  """One network: `NAME/config.json` and its weights.

  Args:
    folder: of the repository.
    name: unet, vae, text_encoder or image_encoder.
    config: as a cascade of ours holds it.
    tensors: in the form of diffusers or transformers.
  """
  library, class_name = _CLASSES[name]
  describe = {
    "unet": _unet,
    "vae": _vae,
    "text_encoder": _text_encoder,
    "image_encoder": _image_encoder,
  }[name]
  values = describe(config["module"], config)
  if library == "diffusers":
    values = {"_class_name": class_name, **values}
    file = "diffusion_pytorch_model.safetensors"
  else:
    values = {"architectures": [class_name], **values}
    file = "model.safetensors"
  _write_json(folder / name / "config.json", values)
  safetensors_files.write(folder / name / file, tensors, {"format": "pt"})


def write_rest(
  folder: Path, config: dict[str, Any], words: Path, pad_token_id: int
) -> None:
  """Scheduler, tokenizer, feature extractor and `model_index.json`.

  Args:
    folder: of the repository.
    config: of the U-Net, as a cascade of ours holds it.
    words: the folder of a tokenizer.
    pad_token_id: what fills a short text.
  """
  _write_json(
    folder / "scheduler" / "scheduler_config.json", _scheduler(config)
  )
  vocab, merges = tokenizer.read_vocabulary(words)
  pad = next((t for t, i in vocab.items() if i == pad_token_id), None)
  if pad is None:
    raise InputError(
      f"pad_token_id {pad_token_id} is no token of {words}; choose another"
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


def _unet(module: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
  lowest = len(module["block_channels"]) - 1
  return {
    "in_channels": module["latent_channels"],
    "out_channels": module["latent_channels"],
    "down_block_types": ["CrossAttnDownBlock3D"] * lowest + ["DownBlock3D"],
    "up_block_types": ["UpBlock3D"] + ["CrossAttnUpBlock3D"] * lowest,
    "block_out_channels": list(module["block_channels"]),
    "layers_per_block": module["layers_per_block"],
    "norm_num_groups": module["norm_groups"],
    "cross_attention_dim": module["context_dim"],
    # Both mean the width of a head: older versions read the second.
    "attention_head_dim": module["head_dim"],
    "num_attention_heads": module["head_dim"],
    "sample_size": 32,
  }


def _vae(module: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
  levels = len(module["block_channels"])
  return {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": module["latent_channels"],
    "down_block_types": ["DownEncoderBlock2D"] * levels,
    "up_block_types": ["UpDecoderBlock2D"] * levels,
    "block_out_channels": list(module["block_channels"]),
    "layers_per_block": module["layers_per_block"],
    "norm_num_groups": module["norm_groups"],
    "scaling_factor": config["scaling_factor"],
    "act_fn": "silu",
    "force_upcast": True,
  }


def _text_encoder(module, config) -> dict[str, Any]:
  return {
    "model_type": "clip_text_model",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "vocab_size": module["vocab_size"],
    "hidden_size": module["width"],
    "projection_dim": module["width"],
    "num_hidden_layers": module["num_layers"],
    "num_attention_heads": module["num_heads"],
    "intermediate_size": module["mlp_width"],
    "max_position_embeddings": module["max_length"],
    "bos_token_id": module["vocab_size"] - 2,
    "eos_token_id": module["vocab_size"] - 1,
    "pad_token_id": config.get("pad_token_id", 0),
  }


def _image_encoder(module, config) -> dict[str, Any]:
  return {
    "model_type": "clip_vision_model",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "hidden_size": module["width"],
    "projection_dim": module["projection_dim"],
    "num_hidden_layers": module["num_layers"],
    "num_attention_heads": module["num_heads"],
    "intermediate_size": module["mlp_width"],
    "patch_size": module["patch_size"],
    "image_size": module["image_size"],
  }


def _scheduler(config: dict[str, Any]) -> dict[str, Any]:
  def theirs(names: dict[str, str], ours: str) -> str:
    for name, value in names.items():
      if value == ours:
        return name
    raise InputError(f"diffusers has no {ours!r} for this pipeline")

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
