"""A forward pass of diffusers' U-Net of public variant (c)."""

import numpy as np
import torch


def draw_inputs(batch, frames, height, width, context_dim=20):
  """Arguments of our U-Net of public variant (c)."""
  rng = np.random.default_rng(frames)

  def draw(*shape):
    return rng.normal(size=shape).astype(np.float32)

  return {
    "latents": draw(batch, frames, height, width, 4),
    "timesteps": np.linspace(981, 17, batch, dtype=np.int32),
    "fps": np.linspace(16, 1, batch, dtype=np.int32),
    "image_latents": draw(batch, height, width, 4),
    "image_embeds": draw(batch, context_dim),
    "text_context": draw(batch, 7, context_dim),
  }


def their_output(module, latents, image_latents, **inputs):
  """What diffusers' U-Net answers, in our layout.

  It takes the mask frames ready-made.
  """
  steps = latents.shape[1] - 1
  frames = [image_latents] + [
    np.full_like(image_latents, (j + 1) / steps) for j in range(steps)
  ]
  out = module(
    channels_second(latents),
    torch.from_numpy(inputs["timesteps"]),
    fps=torch.from_numpy(inputs["fps"]),
    image_latents=channels_second(np.stack(frames, axis=1)),
    image_embeddings=torch.from_numpy(inputs["image_embeds"])[:, None],
    encoder_hidden_states=torch.from_numpy(inputs["text_context"]),
  ).sample
  return out.permute(0, 2, 3, 4, 1)


def channels_second(x):
  """From `[b f h w c]` to torch's `[b c f h w]`."""
  return torch.from_numpy(x).permute(0, 4, 1, 2, 3).contiguous()
