"""Inputs of the U-Net in the loss, kept latents, and the sample picture."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_standins import VAE, UNet, make_batch, make_denoising, make_frozen

from i2vgen_jax.errors import InputError
from i2vgen_jax.training.denoising import (
  LatentsMemory,
  drawn_rows,
  motion_weights,
)
from i2vgen_jax.training.task import row_noise

RNG = jax.random.key(3)
# Rows for shares and scatters; one size, so that programs are compiled once.
MANY = 320


class Recorder(UNet):
  """A U-Net that records its inputs and predicts zero."""

  def apply(self, variables, latents, timesteps, *, rngs, **inputs):
    self.seen.append({"latents": latents, "timesteps": timesteps, **inputs})
    return 0 * latents


def record(batch, fields=(), **changes):
  """The inputs of a Recorder in the loss of a batch, and the loss."""
  unet = Recorder(**dict(fields))
  object.__setattr__(unet, "seen", [])
  dropouts = {"text_dropout": 0.0, "image_dropout": 0.0}
  task = make_denoising(unet=unet, **dropouts | changes)
  stage = task.stage.with_sampling(decode_chunk=3)
  task = dataclasses.replace(task, stage=stage)
  loss, _ = task.loss({}, task.frozen, batch, RNG)
  (seen,) = unet.seen
  return seen, loss


@pytest.mark.parametrize(
  ("fields", "absent"),
  [
    ({}, set()),
    ({"use_text": False, "local_image": "content"}, {"text_context"}),
    (
      {"use_image_embeds": False, "use_fps": False, "local_image": "none"},
      {"image_embeds", "fps", "image_latents"},
    ),
    (
      {"use_text": False, "local_image": "none"},
      {"text_context", "image_latents"},
    ),
  ],
  ids=["released", "base", "refine", "image_to_video"],
)
def test_each_variant_gets_only_its_conditions(fields, absent):
  seen, _ = record(make_batch(0), fields)
  names = {"text_context", "image_embeds", "fps", "image_latents"}
  assert {name for name in names if seen[name] is None} == absent
  assert seen["deterministic"] is False


def test_conditions_are_the_outputs_of_the_towers():
  batch, frozen = make_batch(0), make_frozen()
  seen, _ = record(batch)
  text = frozen["text_encoder"]["token_embedding"]["embedding"]
  np.testing.assert_allclose(
    seen["text_context"], text[batch.token_ids], rtol=1e-6
  )
  image = frozen["image_encoder"]["projection"]
  expected = batch.clip_images.reshape(8, -1) @ image["kernel"]
  np.testing.assert_allclose(
    seen["image_embeds"], expected + image["bias"], rtol=1e-4
  )
  np.testing.assert_array_equal(seen["fps"], batch.fps)


def test_image_latents_are_those_of_the_first_frame():
  """Other frames do not change them; frame 0 does."""
  batch = make_batch(0)
  latents = record(batch)[0]["image_latents"]

  def with_frame(i):
    frames = batch.frames.copy()
    frames[:, i] = 255 - frames[:, i]
    changed = dataclasses.replace(batch, frames=frames)
    return record(changed)[0]["image_latents"]

  np.testing.assert_array_equal(with_frame(1), latents)
  assert np.abs(with_frame(0) - latents).min() > 0


def test_latents_have_the_scale_of_the_posterior():
  """A clip that is repeated under new indices varies as the posterior."""
  one = make_batch(0, size=1, num_frames=1)
  batch = jax.tree.map(lambda x: np.repeat(x, MANY, axis=0), one)
  batch = dataclasses.replace(batch, index=np.arange(MANY, dtype=np.int32))
  latents = record(batch)[0]["image_latents"]
  pixels = jnp.asarray(one.frames[0], jnp.float32) / 127.5 - 1
  posterior = VAE().apply(
    {"params": make_frozen()["vae"]}, pixels, method="encode"
  )
  deviation = 0.5 * jnp.exp(0.5 * posterior.logvar[0])
  z = (latents.mean(axis=0) - 0.5 * posterior.mean[0]) / deviation
  assert np.abs(z).max() < 5 / np.sqrt(MANY)
  np.testing.assert_allclose(latents.std(axis=0), deviation, rtol=0.2)


def test_stored_moments_replace_the_frames():
  batch = make_batch(0)
  seen, loss = record(batch)
  pixels = jnp.asarray(batch.frames, jnp.float32).reshape(-1, 8, 8, 3)
  posterior = VAE().apply(
    {"params": make_frozen()["vae"]}, pixels / 127.5 - 1, method="encode"
  )
  moments = np.array(posterior.moments).reshape(8, 4, 4, 4, 8)
  known = dataclasses.replace(batch, frames=None, moments=moments)
  same, same_loss = record(known)
  np.testing.assert_allclose(seen["latents"], same["latents"], atol=1e-5)
  assert float(loss) == pytest.approx(float(same_loss), rel=1e-5)


def test_a_stored_clip_vector_replaces_the_view():
  batch = make_batch(0)
  seen, loss = record(batch)
  known = dataclasses.replace(
    batch, clip_images=None, image_embeds=seen["image_embeds"]
  )
  same, same_loss = record(known)
  np.testing.assert_array_equal(seen["image_embeds"], same["image_embeds"])
  assert float(loss) == pytest.approx(float(same_loss), rel=1e-6)
  zeros = np.zeros_like(seen["image_embeds"])
  other, _ = record(dataclasses.replace(known, image_embeds=zeros))
  np.testing.assert_array_equal(other["image_embeds"], zeros)


def test_draws_depend_on_the_example_not_on_the_row():
  batch = make_batch(0)
  swap = np.array([3, 1, 2, 0, 7, 5, 6, 4])
  swapped = jax.tree.map(lambda x: x[swap], batch)
  dropouts = {"text_dropout": 0.5, "image_dropout": 0.5}
  seen, loss = record(batch, **dropouts)
  moved, same_loss = record(swapped, **dropouts)
  assert float(loss) == pytest.approx(float(same_loss), rel=1e-6)
  for name in ("latents", "timesteps", "text_context", "image_embeds"):
    np.testing.assert_allclose(seen[name][swap], moved[name], rtol=1e-5)


def test_noise_levels_stay_below_max_timestep():
  batch = make_batch(0, size=MANY, num_frames=1)
  bounded = record(batch, max_timestep=600)[0]["timesteps"]
  free = record(batch)[0]["timesteps"]
  assert 550 < bounded.max() < 600
  assert 950 < free.max() < 1000


def dropped_in(seen):
  """Rows without the text, the CLIP vector and the picture's latents."""
  null = make_frozen()["text_encoder"]["token_embedding"]["embedding"][0]
  text = (seen["text_context"] == null).all(axis=(1, 2))
  image = (seen["image_embeds"] == 0).all(axis=1)
  return text, image, (seen["image_latents"] == 0).all(axis=(1, 2, 3))


def test_dropped_rows_get_the_null_text_and_a_zero_vector():
  batch = make_batch(0, size=MANY, num_frames=1)
  kept, _ = record(batch)
  seen, _ = record(batch, text_dropout=0.2, image_dropout=0.4)
  text, image, _ = dropped_in(seen)
  np.testing.assert_array_equal(
    seen["text_context"][~text], kept["text_context"][~text]
  )
  np.testing.assert_array_equal(
    seen["image_embeds"][~image], kept["image_embeds"][~image]
  )
  # Five standard deviations of each share, and of the share of both.
  for share, expected in [
    (text.mean(), 0.2),
    (image.mean(), 0.4),
    ((text & image).mean(), 0.08),
  ]:
    assert abs(share - expected) < 5 * np.sqrt(expected / MANY)
  np.testing.assert_array_equal(seen["image_latents"], kept["image_latents"])


def test_conditions_are_dropped_alone_and_together():
  batch = make_batch(0, size=MANY, num_frames=1)
  alone, _ = record(batch, text_dropout=0.2, local_dropout=0.3)
  text, image, local = dropped_in(alone)
  both, _ = record(
    batch, text_dropout=0.2, local_dropout=0.3, joint_dropout=0.2
  )
  together = dropped_in(both)[1]
  # The draws of each alone do not change.
  np.testing.assert_array_equal(dropped_in(both)[0], text | together)
  np.testing.assert_array_equal(dropped_in(both)[2], local | together)
  np.testing.assert_array_equal(both["fps"], batch.fps)
  assert not image.any()
  for rows, share in [
    (text, 0.2),
    (local, 0.3),
    (text & local, 0.06),
    (together, 0.2),
    (together & text, 0.04),
  ]:
    assert abs(rows.mean() - share) < 5 * np.sqrt(share / MANY)


def test_the_held_out_loss_drops_nothing():
  batch = make_batch(0)
  seen = []
  unet = Recorder()
  object.__setattr__(unet, "seen", seen)
  task = make_denoising(unet=unet, joint_dropout=1.0)
  task.held_out_loss({}, task.frozen, batch, RNG)
  task.loss({}, task.frozen, batch, RNG)
  whole, dropped = seen
  assert set(np.array(whole["timesteps"])) <= {125, 375, 625, 875}
  kept, _ = record(batch)
  for name in ("text_context", "image_embeds", "image_latents"):
    np.testing.assert_array_equal(whole[name], kept[name])
  assert whole["deterministic"] and not dropped["deterministic"]
  assert np.all(dropped_in(dropped))


@pytest.mark.parametrize(
  ("settings", "levels"),
  [
    ({}, (125, 375, 625, 875)),
    ({"max_timestep": 600}, (75, 225, 375, 525)),
    ({"max_timestep": 8, "timestep_shift": 100.0}, (7,)),
  ],
)
def test_the_held_out_loss_is_split_by_noise_level(settings, levels):
  batch = make_batch(0, size=MANY, num_frames=1)
  seen = []
  unet = Recorder()
  object.__setattr__(unet, "seen", seen)
  task = make_denoising(unet=unet, **settings)
  loss, sums = task.held_out_loss({}, task.frozen, batch, RNG)
  again, _ = task.held_out_loss({}, task.frozen, batch, RNG)
  assert float(loss) == float(again)
  assert set(sums) == {f"timestep {level}" for level in levels}
  for level in levels:
    total, count = sums[f"timestep {level}"]
    rows = np.array(seen[0]["timesteps"]) == level
    assert count == rows.sum() > 0.7 * MANY / len(levels)
    one = jax.tree.map(lambda x, rows=rows: x[rows], batch)
    alone, _ = task.held_out_loss({}, task.frozen, one, RNG)
    assert float(total / count) == pytest.approx(float(alone), rel=1e-4)
  assert float(loss) == pytest.approx(
    sum(float(total) for total, _ in sums.values()) / MANY, rel=1e-5
  )


def test_loss_falls_on_one_batch():
  """The draws of a batch repeat, so that Adam can overfit it."""
  batch = make_batch(0, size=2, num_frames=2)
  task = make_denoising(
    unet=UNet(hidden=64), text_dropout=0.0, image_dropout=0.0
  )
  tx = optax.adam(1e-2)
  params = task.init_params(jax.random.key(0))

  @jax.jit
  def run(params):
    def step(carry, _):
      params, opt_state = carry
      (loss, _), grads = jax.value_and_grad(task.loss, has_aux=True)(
        params, task.frozen, batch, RNG
      )
      updates, opt_state = tx.update(grads, opt_state)
      return (optax.apply_updates(params, updates), opt_state), loss

    return jax.lax.scan(step, (params, tx.init(params)), length=200)[1]

  losses = run(params)
  assert losses[-1] < 0.1 * losses[0]


def test_weights_favour_what_differs_from_the_first_frame():
  moving = np.zeros((2, 4, 5, 10, 3), np.float32)
  moving[0, 1:, 2, 3] = 1  # One latent in fifty; the second clip is still.
  weights = np.asarray(motion_weights(jnp.asarray(moving), 0.5))
  mean = 3 / 4 / 50
  assert weights[0, 1, 2, 3] == pytest.approx(0.5 + 0.5 / (mean + 0.05))
  assert np.all(weights[0, 0] == 0.5) and np.all(weights[1] == 0.5)
  assert np.all(motion_weights(jnp.asarray(moving), 0.0) == 1)


def test_the_loss_of_a_clip_is_weighted():
  batch = make_batch(0)
  (_, plain), (_, weighted) = record(batch), record(batch, motion_weight=0.5)
  assert float(weighted) != pytest.approx(float(plain))
  # Nothing differs from the first frame of a picture.
  batch = dataclasses.replace(batch, frames=batch.frames[:, :1])
  (_, plain), (_, weighted) = record(batch), record(batch, motion_weight=0.5)
  assert float(weighted) == pytest.approx(0.5 * float(plain))


def with_base():
  """Settings of a refine stage that restores what a base stage makes."""
  unet = UNet(hidden=8)
  base = make_denoising(unet=unet)
  params = base.init_params(jax.random.key(5))
  stage = base.stage.with_sampling(size=(4, 8), num_frames=1)
  frozen = {**make_frozen(), "base": params}
  return {"base": stage, "base_steps": 2, "frozen": frozen}


def test_the_noisiest_level_shows_what_the_base_stage_makes():
  """At each level the noise is the same as without a base stage."""
  batch, settings = make_batch(0, size=MANY, num_frames=1), with_base()
  plain, _ = record(batch, max_timestep=300)
  seen, _ = record(batch, max_timestep=300, **settings)
  task = make_denoising(max_timestep=300, **settings)
  rng = jax.random.split(RNG, 4)[0]
  posterior = task.posterior(task.frozen, batch)
  noise = row_noise(rng, batch.index, posterior.mean.shape[1:])
  clip = task.stage.scaling_factor * posterior.sample(noise)
  change = task.made_by_base(task.frozen, batch, rng) - clip
  assert np.abs(change).mean() > 0.01
  schedule, t = task.stage.schedule, seen["timesteps"]
  np.testing.assert_array_equal(t, plain["timesteps"])
  share = schedule.sigmas[t] * schedule.alphas[299] / schedule.sigmas[299]
  assert share.min() < 0.05 * share.max()
  np.testing.assert_allclose(
    seen["latents"] - plain["latents"],
    share[:, None, None, None, None] * change,
    atol=1e-4,
  )


def test_the_base_stage_is_given_first_frames_and_captions():
  batch = make_batch(0, size=3, num_frames=2)
  task = make_denoising(**with_base())
  made = task.made_by_base(task.frozen, batch, RNG)
  assert made.shape == task.posterior(task.frozen, batch).mean.shape
  later = batch.frames.copy()
  later[:, 1:] = 255 - later[:, 1:]
  same = task.made_by_base(
    task.frozen, dataclasses.replace(batch, frames=later), RNG
  )
  np.testing.assert_array_equal(made, same)
  for change in (
    {"frames": 255 - batch.frames},
    {"token_ids": 1 + 0 * batch.token_ids},
  ):
    other = dataclasses.replace(batch, **change)
    assert (
      np.abs(task.made_by_base(task.frozen, other, RNG) - made).max() > 1e-3
    )


def test_a_base_stage_without_frames_is_refused():
  batch = make_batch(0)
  moments = make_denoising().posterior(make_frozen(), batch).moments
  latents = dataclasses.replace(batch, frames=None, moments=moments)
  with pytest.raises(InputError, match="the base stage needs frames"):
    record(latents, **with_base())


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_motion_weight_out_of_range_is_refused(share):
  with pytest.raises(InputError, match=r"motion_weight -?\d\.1"):
    motion_weights(jnp.zeros((1, 2, 2, 2, 3)), share)


def test_draws_with_probability_zero_and_one():
  index = np.arange(3)
  assert not drawn_rows(RNG, index, 0.0).any()
  assert drawn_rows(RNG, index, 1.0).all()


def test_kept_latents_are_encoded_once(monkeypatch):
  task, batch = make_denoising(), make_batch(0)
  memory = LatentsMemory(task)
  first = memory(batch)
  expected = task.posterior(task.frozen, batch).moments
  np.testing.assert_allclose(first.moments, expected, rtol=1e-3, atol=1e-4)
  monkeypatch.setattr(memory, "_encode", None)
  swap = np.array([3, 1, 2, 0, 7, 5, 6, 4])
  again = memory(jax.tree.map(lambda x: x[swap], batch))
  np.testing.assert_array_equal(again.moments, first.moments[swap])


@pytest.mark.parametrize(
  ("guidance_scale", "use_text"), [(1.0, True), (2.0, True), (2.0, False)]
)
def test_picture_has_clips_above_their_samples(guidance_scale, use_text):
  task = make_denoising(unet=UNet(use_text=use_text))
  batch = make_batch(0, size=2)
  stage = task.stage.with_sampling(guidance_scale=guidance_scale)
  ids = task.negative_ids if use_text else None
  task = dataclasses.replace(task, stage=stage, negative_ids=ids)
  params = jax.jit(task.init_params)(RNG)
  picture = np.array(jax.jit(task.sample_picture)(params, task.frozen, batch))
  rows = picture.reshape(2, 2, 8, 4, 8, 3).transpose(1, 0, 3, 2, 4, 5)
  np.testing.assert_array_equal(rows[0], batch.frames)
  assert np.abs(rows[1].astype(int) - rows[0]).mean() > 1
