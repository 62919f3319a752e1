"""Configs of training runs: `--config=configs/i2vgen_xl.py:NAME`.

| NAME | what is trained |
|---|---|
| base | the paper's base stage: picture only, D.Enc and G.Enc, 448x256x32 |
| refine | the paper's refine stage, public variant (b): text, 1280x720x32 |
| released | public variant (c): picture and text, 1280x704x16 |
| image_to_video | public variant (a): CLIP vector only, 448x256x32 |
| released_tuned | all of public variant (c), on your own clips |
| released_lora | a LoRA of public variant (c), on your own clips |
| tiny_vae, tiny_clip, tiny, tiny_refine | a small cascade, in this order |
| tiny_lora | a LoRA of the bundled base stage, in seconds |

`launch/make_tiny.sh` runs the four of the small cascade. `docs/recipes.md` has
the commands of the paper's recipes.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from i2vgen_jax.variants import VARIANTS


def get_config(arg: str = "tiny") -> ConfigDict:
  """The config of one training run."""
  configs = (base, refine, released, image_to_video, released_tuned)
  configs += (released_lora, tiny_lora, tiny, tiny_refine, tiny_vae, tiny_clip)
  builders = {config.__name__: config for config in configs}
  if arg not in builders:
    raise ValueError(
      f"unknown config argument {arg!r}; choose one of {', '.join(builders)}"
    )
  return builders[arg]().lock()


def common() -> ConfigDict:
  """The keys of every config, with their defaults."""
  return ConfigDict(
    {
      # Name of the network's folder in a cascade, such as base or vae.
      "component": placeholder(str),
      # diffusion, lora, autoencoder or contrastive.
      "objective": "diffusion",
      # Type of the weights that a finished run leaves in workdir/export.
      "export_dtype": "float32",
      # Cascade folder with the tokenizer and the frozen networks.
      "frozen": placeholder(str),
      # Weights to start from, in any form: of the same network, or, for a
      # U-Net, of one with other conditions or of Stable Diffusion 2.1.
      "init_from": placeholder(str),
      "data": {
        # Directories, drawn from in proportion to their size, or
        # (directory, weight) pairs, drawn from in proportion to the weights.
        "video_dirs": ("data/text_video/1.0.0",),
        "image_dirs": ("data/text_image/1.0.0",),
        # Largest share of damaged records; others are read in their place.
        "max_damaged": 0.01,
        # Held-out clips, whose loss is logged as unseen_loss.
        "unseen_dirs": (),
        # Encodes each clip once and keeps its latents in host memory; for
        # datasets that are small beside the run.
        "keep_latents": False,
        # (width, height) in pixels.
        "size": (448, 256),
        # (frames, fps, weight) or, for another size than `size`, (frames, fps,
        # weight, (width, height)). A clip is drawn in the buckets whose aspect
        # ratio is nearest to its own, if it is long enough for them. The paper
        # has 1:1:1:5 over frames and 1:2:4:1 over rates; here they are
        # multiplied for more than one frame.
        "buckets": _paper_buckets(),
        # Clips with fewer pixels than the largest have more rows in a batch, in
        # proportion, so that all steps take as long; as in the public code.
        # Pictures are not split over mesh.frames: False saves memory there.
        "equal_work": True,
        "augmentation": {
          # Smallest fraction of each side in a random crop; 1 is off.
          "min_crop": 1.0,
          # Probability of a horizontal flip, unless the caption names a side
          # or a direction of rotation. It mirrors written text, hence 0.
          "flip": 0.0,
        },
      },
      # Devices along each mesh axis; -1 takes all that remain.
      "mesh": {"data": -1, "fsdp": 1, "frames": 1},
      "train": {
        "num_steps": 1_000_000,
        # Rows of the buckets with the most pixels; see data.equal_work.
        "batch_size": 256,
        # Number of parts of a batch that are worked on one after another.
        "accumulate": 1,
        "seed": 0,
        "optimizer": "adamw",
        "learning_rate": 8e-5,
        "warmup_steps": 0,
        "decay": "constant",
        "beta2": 0.999,
        "weight_decay": 0.0,
        "grad_clip": placeholder(float),
        # γ of the paper: scale of the updates of layers that were initialised
        # from an image model; 1 if none were.
        "spatial_grad_scale": 1.0,
        "ema_decay": 0.9999,
        "log_every": 50,
        "checkpoint_every": 1000,
        # Sample picture and held-out loss; 0 is never.
        "sample_every": 1000,
        # The newest ones, beside the one with the lowest held-out loss.
        "keep_checkpoints": 2,
        # Checkpoints at multiples of it are kept as well; 0 is none.
        "keep_every": 0,
        # Number of times that a run which diverges goes on from the checkpoint
        # before, with other data; then it stops.
        "max_rollbacks": 3,
        # Seconds without a step after which the process ends, so that its
        # supervisor starts it again; 0 is never.
        "stall_timeout": 1800,
        # Project of Weights & Biases to log to as well; needs its package.
        "wandb": placeholder(str),
      },
    }
  )


def _paper_buckets() -> tuple[tuple[int, float, float], ...]:
  rates = ((4.0, 2 / 7), (8.0, 4 / 7), (16.0, 1 / 7))
  frames = ((8, 1.0), (16, 1.0), (32, 5.0))
  moving = tuple((f, fps, n * p) for f, n in frames for fps, p in rates)
  return ((1, 1.0, 1.0), *moving)


def denoiser(variant: str) -> ConfigDict:
  """Config of a U-Net, with the values of a public variant."""
  public = VARIANTS[variant].config()
  config = common()
  config.component = VARIANTS[variant].component
  config.unet = public["module"] | {
    "dropout": 0.1,
    "remat": True,
    # What remat computes again: each block (nothing of it is kept), each of the
    # layers, or each block from their results on the host (offload).
    "remat_policy": "nothing",
    "dtype": "bfloat16",
  }
  config.diffusion = public["diffusion"] | {
    "noise_offset": 0.1,
    # Noise levels are drawn from [0, max_timestep); None is all.
    "max_timestep": placeholder(int),
    # Above 1, noisy levels are drawn more often.
    "timestep_shift": 1.0,
    # Part of the loss that is weighted by motion; not in the paper.
    "motion_weight": 0.0,
    # Number of steps in which the base stage of config.frozen makes the clips
    # that a refine stage learns to restore; 0, as in the paper, trains on noise
    # alone.
    "base_steps": 0,
    # Probabilities of the null text and of a zero CLIP vector, for guidance; of
    # zero latents of the picture; and of all of them together.
    "text_dropout": 0.1,
    "image_dropout": 0.1,
    "local_dropout": 0.0,
    "joint_dropout": 0.0,
  }
  # For the objective `lora`, which trains two matrices beside each kernel of an
  # attention layer: the change is alpha / rank times their product.
  config.lora = {
    "rank": 16,
    "alpha": 16.0,
    # Type in which the weights of init_from are kept. bfloat16 halves their
    # memory, but rounds small changes of them away in bfloat16 computation.
    "pretrained_dtype": "float32",
  }
  # Sampling settings that are stored with the weights.
  config.sampling = public["sampling"] | {"start_timestep": placeholder(int)}
  config.sampling.start_timestep = public["sampling"]["start_timestep"]
  config.data.size = public["sampling"]["size"]
  return config


def base() -> ConfigDict:
  """The paper's base stage (Fig. 2), without text.

  With `config.init_from` it starts from Stable Diffusion 2.1. Deviations: the
  paper does not give the batch, number of steps and rates of dropout, and its
  rates and numbers of frames are not said to be independent.
  """
  config = denoiser("image_to_video")
  config.unet.local_image = "content"
  # The kernels of a TPU compute their layers again in any case.
  config.unet.remat_policy = "layers"
  config.train.spatial_grad_scale = 0.2
  return config


def image_to_video() -> ConfigDict:
  """Public variant (a), the early base stage."""
  config = denoiser("image_to_video")
  config.data.buckets = ((32, 8.0, 1.0),)
  config.train.learning_rate = 5e-5
  config.train.spatial_grad_scale = 0.2
  return config


def released() -> ConfigDict:
  """Public variant (c), a single stage; values of its training yaml.

  Two clips of 16 frames take the place of one of 32, as there. Deviations: the
  yaml has one clip of 32 frames for each GPU, of which it does not say the
  number, and its ranks draw other buckets in the same step.
  """
  config = denoiser("released")
  config.data.buckets = (
    (16, 8.0, 2.0), (16, 16.0, 3.0), (32, 8.0, 1.0), (32, 16.0, 2.0)
  )  # fmt: skip
  config.diffusion.update(text_dropout=0.0, image_dropout=0.0)
  config.train.update(learning_rate=3e-5, warmup_steps=10, decay="cosine")
  config.train.spatial_grad_scale = 0.5
  return config


def released_tuned() -> ConfigDict:
  """Public variant (c), trained on for a style or a subject of your own clips.

  Neither the paper nor the public code has such a run: all values are ours. All
  layers have the full rate, since the spatial ones are no longer those of an
  image model; the rate is a third of that of the yaml. Conditions are dropped,
  as the weights must not lose what guidance needs.
  """
  config = released()
  config.frozen = config.init_from = "ali-vilab/i2vgen-xl"
  config.data.image_dirs = ()
  config.data.buckets = ((16, 8.0, 1.0),)
  config.diffusion.update(text_dropout=0.1, image_dropout=0.1)
  config.train.update(num_steps=2000, batch_size=8, learning_rate=1e-5)
  config.train.update(decay="constant", grad_clip=1.0, ema_decay=0.99)
  config.train.update(checkpoint_every=250, sample_every=250)
  config.train.spatial_grad_scale = 1.0
  return config


def released_lora() -> ConfigDict:
  """A LoRA of public variant (c), for a style or a subject of your own clips.

  It trains 6.6 million parameters, 0.5 % of those of the U-Net. The held-out
  loss should fall from its first report on, below that of the weights without
  the LoRA; when it rises again, stop.
  """
  config = released_tuned()
  config.objective = "lora"
  config.train.learning_rate = 1e-4
  return config


def refine() -> ConfigDict:
  """The refine stage, public variant (b): text only, low noise levels.

  It starts from the trained base stage, and has two steps: all high-quality
  clips, then the best of them; see `docs/recipes.md`.
  """
  config = denoiser("refine")
  config.diffusion.max_timestep = 600
  config.train.learning_rate = 5e-5
  # The suffix of the public weights fits only the data they were trained on.
  config.sampling.prompt_suffix = ""
  return config


# ---- A small cascade: a moving camera and moving objects ----


def tiny_common(config: ConfigDict) -> ConfigDict:
  """Settings of all four small runs."""
  config.frozen = "tiny"
  config.export_dtype = "float16"
  config.data.image_dirs = ()
  config.data.keep_latents = True
  config.data.size = (96, 64)
  config.data.buckets = ((8, 8.0, 1.0),)
  config.train.optimizer = "muon"
  config.train.warmup_steps = 100
  config.train.decay = "cosine"
  config.train.grad_clip = 1.0
  config.train.beta2 = 0.99
  config.train.ema_decay = 0.998
  config.train.checkpoint_every = 500
  config.train.sample_every = 500
  return config


def tiny_vae() -> ConfigDict:
  """Autoencoder of 8x8 pixels to 24 channels, for 192x128 and 96x64."""
  config = tiny_common(common())
  config.component = "vae"
  config.objective = "autoencoder"
  config.data.size = (192, 128)
  config.vae = {
    "block_channels": (128,),
    "layers_per_block": 1,
    "latent_channels": 24,
    "norm_groups": 8,
    "patch_size": 8,
  }
  config.autoencoder = {
    # (shrink factor, rows of the batch): 4 frames of 192x128, 8 of 96x64.
    "scales": ((1, 4), (2, 8)),
    # Mostly squared error: with absolute error alone, colours are learned late.
    "l1_weight": 0.2,
    "l2_weight": 10.0,
    "edge_weight": 0.2,
    "kl_weight": 1e-5,
    # Starts from config.init_from and keeps its encoder.
    "decoder_only": False,
  }
  # One frame per clip, for as many scenes as possible.
  config.data.buckets = ((1, 8.0, 1.0),)
  config.train.update(num_steps=600, batch_size=12, learning_rate=5e-4)
  return config


def tiny_clip() -> ConfigDict:
  """Both CLIP towers, on first frames and their captions."""
  config = tiny_common(common())
  config.component = "clip"
  config.objective = "contrastive"
  config.text_encoder = {
    "vocab_size": 907,
    "width": 64,
    # The denoiser reads the output before the last layer: here the embeddings.
    # With another layer, trained on so few words, the motion, which a single
    # frame does not show, is mixed with the colour, and the denoiser does not
    # learn to read it.
    "num_layers": 1,
    "num_heads": 2,
    "mlp_width": 256,
    "max_length": 77,
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
  # One frame per clip; the captions name the motion too.
  config.data.buckets = ((1, 8.0, 1.0),)
  config.train.update(num_steps=300, batch_size=64, learning_rate=1e-3)
  return config


def tiny() -> ConfigDict:
  """Base stage of the small cascade: variant (c), 96x64x8."""
  config = tiny_common(denoiser("released"))
  config.unet.update(
    latent_channels=24,
    block_channels=(96, 128),
    layers_per_block=1,
    head_dim=32,
    input_heads=2,
    context_dim=64,
    norm_groups=8,
    dropout=0.0,
    # Few image tokens beside the words: attention starts uniform, and a single
    # word among many tokens has almost no weight.
    image_grid=2,
    remat=False,
    dtype="float32",
  )
  # The noisiest schedule, with noisy levels drawn more often: at lower noise
  # the motion is visible in the clip itself, and the text is not learned.
  # Without weights small objects are a seventh of the loss, and are blurred.
  config.diffusion.update(
    schedule="logsnr_cosine_interp", timestep_shift=3.0, motion_weight=0.7
  )
  config.sampling.update(
    size=(96, 64),
    num_frames=8,
    fps=8.0,
    negative_prompt="",
    spacing="trailing",
    # More steps and guidance add grain, and do not improve the motion.
    num_steps=2,
    guidance_scale=1.0,
    decode_chunk=8,
  )
  config.train.update(num_steps=7000, batch_size=8, learning_rate=2e-3)
  return config


def tiny_refine() -> ConfigDict:
  """Refine stage of the small cascade: text only, 192x128x8."""
  config = tiny()
  config.component = "refine"
  config.data.size = (192, 128)
  config.data.keep_latents = False
  config.unet.update(
    block_channels=(64, 96),
    use_image_embeds=False,
    use_fps=False,
    local_image="none",
  )
  config.diffusion.schedule = "cosine"
  # Hardly any noise: what is left of it after sampling must be less than what
  # the stage corrects in the clips of the base stage, from which it learns.
  # Sampling takes one step from the noisiest level, so that one is trained.
  config.diffusion.update(
    timestep_shift=100.0,
    max_timestep=8,
    noise_offset=0.0,
    motion_weight=0.5,
    base_steps=2,
  )
  config.sampling.update(
    size=(192, 128),
    solver="dpmpp_2m",
    num_steps=1,
    guidance_scale=1.0,
    start_timestep=7,
  )
  config.train.update(num_steps=3600, batch_size=2, learning_rate=1e-3)
  return config


def tiny_lora() -> ConfigDict:
  """A LoRA of the bundled base stage; run it at the root of the repository.

  i2vgen data build procedural --output data --num-clips 200
  i2vgen train --config=configs/i2vgen_xl.py:tiny_lora --workdir=runs/lora
  i2vgen sample --lora runs/lora/export/lora --image photo.jpg ...
  """
  config = tiny()
  config.objective = "lora"
  config.frozen = "i2vgen_jax/assets/tiny"
  config.init_from = "i2vgen_jax/assets/tiny/base"
  config.export_dtype = "float32"
  config.lora.update(rank=8, alpha=8.0)
  config.train.update(num_steps=60, warmup_steps=5, learning_rate=2e-3)
  config.train.update(optimizer="adamw", ema_decay=0.9)
  config.train.update(log_every=10, checkpoint_every=30, sample_every=20)
  return config
