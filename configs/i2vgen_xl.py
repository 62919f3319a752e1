"""What to train: `--config=configs/i2vgen_xl.py:ARG`.

| ARG | trains |
|---|---|
| base | the paper's base stage: picture only, D.Enc and G.Enc, 448x256x32 |
| refine | the paper's refine stage, public variant (b): text, 1280x720x32 |
| released | public variant (c): picture and text, 1280x704x16 |
| image_to_video | public variant (a): CLIP vector only, 448x256x32 |
| tiny_vae, tiny_clip, tiny, tiny_refine | the bundled cascade, in order |

    i2vgen train --config=configs/i2vgen_xl.py:tiny --workdir=runs/tiny

The bundled cascade is what `launch/make_tiny.sh` builds; its scores are in
the README.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from i2vgen_jax.variants import VARIANTS


def get_config(arg: str = "tiny") -> ConfigDict:
  """The config of one training run."""
  builders = {
    "base": base,
    "refine": refine,
    "released": released,
    "image_to_video": image_to_video,
    "tiny": tiny,
    "tiny_refine": tiny_refine,
    "tiny_vae": tiny_vae,
    "tiny_clip": tiny_clip,
  }
  if arg not in builders:
    raise ValueError(
      f"unknown config argument {arg!r}; choose one of {', '.join(builders)}"
    )
  return builders[arg]().lock()


def common() -> ConfigDict:
  """What every run has."""
  return ConfigDict(
    {
      # The folder of the cascade this network belongs to; see weights.py.
      "component": placeholder(str),
      # diffusion, autoencoder or contrastive.
      "objective": "diffusion",
      # Of the weights that a finished run leaves in workdir/export.
      "export_dtype": "float32",
      # A cascade folder with the networks that stay frozen; and weights to
      # start from, if any: of the same network in any form, or, for a U-Net,
      # those of Stable Diffusion 2.1.
      "frozen": placeholder(str),
      "init_from": placeholder(str),
      "data": {
        # Either directories, drawn from by size, or (directory, weight) each,
        # drawn from by weight.
        "video_dirs": ("data/text_video/1.0.0",),
        "image_dirs": ("data/text_image/1.0.0",),
        # Clips kept apart, whose loss is told beside that of the training.
        "unseen_dirs": (),
        # Encode each clip once and keep its latents in host memory: for sets
        # that are small beside the run.
        "keep_latents": False,
        # (width, height) in pixels.
        "size": (448, 256),
        # (frames, fps, weight) or (frames, fps, weight, (width, height)), for
        # steps of another size or shape than `size`. A clip is drawn by the
        # buckets of the ratio nearest to its own, if it is long enough for
        # them. Paper, 1:1:1:5 over frames and 1:2:4:1 over rates, here as
        # their product for more than one frame.
        "buckets": _paper_buckets(),
        "augmentation": {
          # Smallest share of each side that a random crop keeps; 1 is off.
          "min_crop": 1.0,
          # Chance of the mirror image, unless the caption names a side or a
          # sense of turning. Writing is mirrored too, hence 0.
          "flip": 0.0,
        },
      },
      # All devices along data; -1 takes what the other axes leave.
      "mesh": {"data": -1, "fsdp": 1, "frames": 1},
      "train": {
        "num_steps": 1_000_000,
        "batch_size": 256,
        "seed": 0,
        "learning_rate": 8e-5,
        "warmup_steps": 0,
        "decay": "constant",
        "beta2": 0.999,
        "weight_decay": 0.0,
        "grad_clip": placeholder(float),
        # γ of the paper: strength of the layers that came from an image
        # model. 1 where nothing did.
        "spatial_grad_scale": 1.0,
        "ema_decay": 0.9999,
        "log_every": 50,
        "checkpoint_every": 1000,
        "sample_every": 1000,
        "keep_checkpoints": 2,
      },
    }
  )


def _paper_buckets() -> tuple[tuple[int, float, float], ...]:
  rates = ((4.0, 2 / 7), (8.0, 4 / 7), (16.0, 1 / 7))
  frames = ((8, 1.0), (16, 1.0), (32, 5.0))
  moving = tuple((f, fps, n * p) for f, n in frames for fps, p in rates)
  return ((1, 1.0, 1.0), *moving)


def denoiser(variant: str) -> ConfigDict:
  """What every training of a denoiser has, with a public variant's values."""
  public = VARIANTS[variant]
  config = common()
  config.component = public.component
  config.unet = public.unet | {
    "dropout": 0.1,
    "remat": True,
    "dtype": "bfloat16",
  }
  config.diffusion = public.diffusion | {
    "noise_offset": 0.1,
    # Noise levels trained on: [0, max_timestep); None is all.
    "max_timestep": placeholder(int),
    # Above 1, noisy levels are trained on more often than others.
    "timestep_shift": 1.0,
    # Chances of the null text and of the zero CLIP vector, for guidance.
    "text_dropout": 0.1,
    "image_dropout": 0.1,
  }
  # Defaults of the sampler, stored beside the weights.
  config.sampling = public.sampling | {"start_timestep": placeholder(int)}
  config.sampling.start_timestep = public.sampling["start_timestep"]
  config.data.size = public.sampling["size"]
  return config


def base() -> ConfigDict:
  """The paper's base stage: Fig. 2, with no text."""
  config = denoiser("image_to_video")
  config.unet.local_image = "content"
  config.train.spatial_grad_scale = 0.2
  config.sampling.decode_chunk = 2
  return config


def image_to_video() -> ConfigDict:
  """Public variant (a), the early base stage."""
  config = denoiser("image_to_video")
  config.data.buckets = ((32, 8.0, 1.0),)
  config.train.learning_rate = 5e-5
  config.train.spatial_grad_scale = 0.2
  return config


def released() -> ConfigDict:
  """Public variant (c), one stage; values of its training yaml."""
  config = denoiser("released")
  config.data.buckets = ((16, 8.0, 3.0), (16, 16.0, 3.0), (32, 16.0, 2.0))
  config.train.learning_rate = 3e-5
  config.train.spatial_grad_scale = 0.5
  return config


def refine() -> ConfigDict:
  """The refine stage, public variant (b): text only, low noise levels."""
  config = denoiser("refine")
  config.diffusion.max_timestep = 600
  config.train.learning_rate = 5e-5
  # That of the public weights asks for the look of the data they saw.
  config.sampling.prompt_suffix = ""
  return config


# ---- The bundled cascade: same code, small widths, the procedural set ----


def tiny_common(config: ConfigDict) -> ConfigDict:
  """What the four small runs share."""
  config.frozen = "tiny"
  config.export_dtype = "float16"
  config.data.image_dirs = ()
  config.data.keep_latents = True
  config.data.size = (64, 64)
  config.data.buckets = ((8, 8.0, 1.0),)
  config.train.warmup_steps = 100
  config.train.decay = "cosine"
  config.train.grad_clip = 1.0
  config.train.ema_decay = 0.998
  config.train.checkpoint_every = 500
  config.train.sample_every = 500
  return config


def tiny_vae() -> ConfigDict:
  """Autoencoder of 8x8 pixels to 8 channels, at 128 and 64 pixels."""
  config = tiny_common(common())
  config.component = "vae"
  config.objective = "autoencoder"
  config.data.size = (128, 128)
  config.vae = {
    "block_channels": (16, 32, 64, 64),
    "layers_per_block": 1,
    "latent_channels": 8,
    # Eight channels and more in a group: a norm over few takes away the
    # colour of even areas, which one channel alone would carry.
    "norm_groups": 2,
  }
  config.autoencoder = {
    # (shrink factor, rows of the batch): 2 frames of 128 and 12 of 64.
    "scales": ((1, 2), (2, 12)),
    # Mostly squared error: absolute error alone is slow to find colours.
    "l1_weight": 0.2,
    "l2_weight": 10.0,
    "edge_weight": 0.2,
    "kl_weight": 1e-4,
    # Go on from config.init_from and leave its latents as they are.
    "decoder_only": False,
  }
  # One frame of each clip, for as many scenes as possible.
  config.data.buckets = ((1, 8.0, 1.0),)
  config.train.num_steps = 5500
  config.train.batch_size = 14
  config.train.learning_rate = 2e-3
  return config


def tiny_clip() -> ConfigDict:
  """Both CLIP towers, from scratch, on first frames and their captions."""
  config = tiny_common(common())
  config.component = "clip"
  config.objective = "contrastive"
  config.text_encoder = {
    "vocab_size": 666,
    "width": 64,
    # The denoiser reads all layers but the last: here the embeddings alone.
    # Trained on so few words, a layer more blends the motion, which no single
    # frame shows, into the colour, and the denoiser never learns to read it.
    "num_layers": 1,
    "num_heads": 2,
    "mlp_width": 256,
    "max_length": 16,
  }
  config.image_encoder = {
    "width": 64,
    "num_layers": 3,
    "num_heads": 2,
    "mlp_width": 256,
    "patch_size": 8,
    "image_size": 64,
    "projection_dim": 64,
  }
  # One frame of each clip; a caption that names its motion as well.
  config.data.buckets = ((1, 8.0, 1.0),)
  config.train.num_steps = 300
  config.train.batch_size = 64
  config.train.learning_rate = 1e-3
  return config


def tiny() -> ConfigDict:
  """Base stage of the bundled cascade: variant (c), 64x64x8."""
  config = tiny_common(denoiser("released"))
  config.unet.update(
    {
      "latent_channels": 8,
      "block_channels": (64, 96),
      "layers_per_block": 1,
      "head_dim": 32,
      "input_heads": 2,
      "context_dim": 64,
      "norm_groups": 8,
      "dropout": 0.0,
      # Few tokens beside those of the text, and few of the text: attention
      # that begins even over all of them hardly sees one word among many.
      "image_grid": 2,
      "remat": False,
      "dtype": "float32",
    }
  )
  # The noisiest schedule, and its noisy end more often: elsewhere the clip
  # shows its motion through the noise, and the text, which says it too, is
  # not learned.
  config.diffusion.schedule = "logsnr_cosine_interp"
  config.diffusion.timestep_shift = 3.0
  config.sampling.update(
    {
      "size": (64, 64),
      "num_frames": 8,
      "fps": 8.0,
      "negative_prompt": "",
      "spacing": "trailing",
      "num_steps": 20,
      "guidance_scale": 2.0,
      "decode_chunk": 8,
    }
  )
  config.train.num_steps = 17_000
  config.train.beta2 = 0.99
  config.train.batch_size = 8
  config.train.learning_rate = 1e-3
  return config


def tiny_refine() -> ConfigDict:
  """Refine stage of the bundled cascade: text only, 128x128x8."""
  config = tiny()
  config.component = "refine"
  config.data.size = (128, 128)
  # Half of each clip at a time, from any start: most of a step is spent on
  # encoding, and sharpening needs few frames.
  config.data.buckets = ((4, 8.0, 1.0),)
  config.data.keep_latents = False
  config.unet.update(
    {
      "block_channels": (48, 64),
      "head_dim": 16,
      "use_image_embeds": False,
      "use_fps": False,
      "local_image": "none",
    }
  )
  config.diffusion.schedule = "cosine"
  # Nearly clean levels more often: sampling starts there.
  config.diffusion.timestep_shift = 0.35
  config.diffusion.max_timestep = 600
  config.diffusion.noise_offset = 0.0
  config.sampling.update(
    {
      "size": (128, 128),
      "solver": "dpmpp_2m",
      "num_steps": 4,
      "guidance_scale": 1.0,
      # Far below T_r: more noise would cost detail that the small base has.
      "start_timestep": 150,
    }
  )
  config.train.num_steps = 5000
  config.train.batch_size = 4
  return config
