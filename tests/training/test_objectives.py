"""What each objective asks of its network, seen from outside."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_standins import (
  VAE,
  WIDTH,
  ImageTower,
  TextTower,
  UNet,
  init_unet,
  make_batch,
  make_frozen,
)

from i2vgen_jax.diffusion.schedules import make_schedule
from i2vgen_jax.errors import InputError
from i2vgen_jax.models import build
from i2vgen_jax.models.clip import TextOutput
from i2vgen_jax.models.vae import AutoencoderKL, Posterior
from i2vgen_jax.sharding import make_mesh
from i2vgen_jax.training.objectives import (
  autoencoder_objective,
  contrastive_objective,
  diffusion_objective,
  drop_rows,
  shrink,
)

RNG = jax.random.key(3)
# Rows for shares and scatters; one size, so that programs are compiled once.
MANY = 320


class Recorder(UNet):
  """A U-Net that hands its inputs out and predicts zero."""

  def apply(self, variables, latents, timesteps, **inputs):
    del inputs["rngs"]
    self.seen.append({"latents": latents, "timesteps": timesteps, **inputs})
    return 0 * latents


def record(batch, fields=(), max_timestep=None, **dropouts):
  """Runs the objective with a Recorder; its inputs and the loss."""
  unet = Recorder(**dict(fields))
  object.__setattr__(unet, "seen", [])
  objective = diffusion_objective(
    unet=unet,
    vae=VAE(),
    text_encoder=TextTower(),
    image_encoder=ImageTower(),
    schedule=make_schedule("cosine", True),
    mesh=make_mesh(devices=jax.devices()[:1]),
    scaling_factor=0.5,
    encode_chunk=3,
    prediction_type="v",
    noise_offset=0.1,
    max_timestep=max_timestep,
    timestep_shift=1.0,
    **{"text_dropout": 0.0, "image_dropout": 0.0} | dropouts,
  )
  loss, _ = objective({}, make_frozen(), batch, RNG)
  (seen,) = unet.seen
  return seen, loss


class TestDiffusion:
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
  def test_the_variant_gets_its_conditions_alone(self, fields, absent):
    seen, _ = record(make_batch(0), fields)
    names = {"text_context", "image_embeds", "fps", "image_latents"}
    assert {name for name in names if seen[name] is None} == absent
    assert seen["deterministic"] is False

  def test_conditions_are_what_the_towers_say(self):
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

  def test_picture_is_the_first_frame_of_the_very_latents(self):
    """Of frame 0 alone: other frames cannot change it; frame 0 does."""
    batch = make_batch(0)
    latents = record(batch)[0]["image_latents"]

    def with_frame(i):
      frames = batch.frames.copy()
      frames[:, i] = 255 - frames[:, i]
      changed = dataclasses.replace(batch, frames=frames)
      return record(changed)[0]["image_latents"]

    np.testing.assert_array_equal(with_frame(1), latents)
    assert np.abs(with_frame(0) - latents).min() > 0

  def test_latents_have_the_scale_of_the_posterior(self):
    """A clip repeated with new numbers scatters as the posterior says."""
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

  def test_known_moments_stand_for_the_frames(self):
    batch = make_batch(0)
    seen, loss = record(batch)
    pixels = jnp.asarray(batch.frames, jnp.float32).reshape(-1, 8, 8, 3)
    posterior = VAE().apply(
      {"params": make_frozen()["vae"]}, pixels / 127.5 - 1, method="encode"
    )
    moments = np.concatenate([posterior.mean, posterior.logvar], axis=-1)
    known = dataclasses.replace(
      batch,
      frames=None,
      moments=moments.reshape(8, 4, 4, 4, 8),
    )
    same, same_loss = record(known)
    np.testing.assert_allclose(seen["latents"], same["latents"], atol=1e-5)
    assert float(loss) == pytest.approx(float(same_loss), rel=1e-5)

  def test_a_known_vector_stands_for_the_view(self):
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

  def test_draws_follow_the_example_not_the_row(self):
    batch = make_batch(0)
    swap = np.array([3, 1, 2, 0, 7, 5, 6, 4])
    swapped = jax.tree.map(lambda x: x[swap], batch)
    dropouts = {"text_dropout": 0.5, "image_dropout": 0.5}
    seen, loss = record(batch, **dropouts)
    moved, same_loss = record(swapped, **dropouts)
    assert float(loss) == pytest.approx(float(same_loss), rel=1e-6)
    for name in ("latents", "timesteps", "text_context", "image_embeds"):
      np.testing.assert_allclose(seen[name][swap], moved[name], rtol=1e-5)

  def test_levels_stay_below_the_bound_of_the_refine_stage(self):
    batch = make_batch(0, size=MANY, num_frames=1)
    bounded = record(batch, max_timestep=600)[0]["timesteps"]
    free = record(batch)[0]["timesteps"]
    assert 550 < bounded.max() < 600
    assert 950 < free.max() < 1000

  def test_dropped_rows_get_the_null_caption_and_a_zero_vector(self):
    batch = make_batch(0, size=MANY, num_frames=1)
    kept, _ = record(batch)
    seen, _ = record(batch, text_dropout=0.2, image_dropout=0.4)
    null = make_frozen()["text_encoder"]["token_embedding"]["embedding"][0]
    text = (seen["text_context"] == null).all(axis=(1, 2))
    image = (seen["image_embeds"] == 0).all(axis=1)
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

  def test_loss_falls_on_one_batch(self):
    """Adam on one batch: the draws repeat, so it can be learnt by heart."""
    batch = make_batch(0, size=2, num_frames=2)
    objective = diffusion_objective(
      unet=UNet(hidden=64),
      vae=VAE(),
      text_encoder=TextTower(),
      image_encoder=ImageTower(),
      schedule=make_schedule("cosine", True),
      mesh=make_mesh(devices=jax.devices()[:1]),
      scaling_factor=0.5,
      encode_chunk=2,
      text_dropout=0.0,
      image_dropout=0.0,
      prediction_type="v",
      noise_offset=0.1,
      max_timestep=None,
      timestep_shift=1.0,
    )
    tx = optax.adam(1e-2)
    params = init_unet(UNet(hidden=64))(jax.random.key(0))
    frozen = make_frozen()

    @jax.jit
    def run(params):
      def step(carry, _):
        params, opt_state = carry
        (loss, _), grads = jax.value_and_grad(objective, has_aux=True)(
          params, frozen, batch, RNG
        )
        updates, opt_state = tx.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), loss

      return jax.lax.scan(step, (params, tx.init(params)), length=200)[1]

    losses = run(params)
    assert losses[-1] < 0.1 * losses[0]


def test_drop_rows_never_and_always():
  values, index = jnp.arange(1.0, 7.0).reshape(3, 2), np.arange(3)
  never = drop_rows(RNG, index, 0.0, values, jnp.zeros(2))
  always = drop_rows(RNG, index, 1.0, values, jnp.zeros(2))
  np.testing.assert_array_equal(never, values)
  np.testing.assert_array_equal(always, 0)


# ---- The autoencoder ----


@dataclasses.dataclass(frozen=True)
class FixedVAE:
  """Posterior and reconstruction are given, whatever the frames."""

  mean: float
  logvar: float
  error: object

  def apply(self, variables, x, method):
    if method == "encode":
      shape = (*x.shape[:-1], 4)
      # Remembers the frames, so that the decoder can miss them by `error`.
      object.__setattr__(self, "frames", x)
      return Posterior(jnp.full(shape, self.mean), jnp.full(shape, self.logvar))
    return self.frames + self.error


class TestAutoencoder:
  def loss(self, vae, rows=8, **weights):
    zero = {"l1_weight": 0.0, "l2_weight": 0.0}
    zero |= {"edge_weight": 0.0, "kl_weight": 0.0}
    objective = autoencoder_objective(
      vae=vae, scales=((1, rows),), decoder_only=False, **zero | weights
    )
    return objective({}, {}, make_batch(0), RNG)

  def test_constant_error(self):
    vae = FixedVAE(0.0, 0.0, -0.2)
    loss, metrics = self.loss(vae, l1_weight=1.0, l2_weight=10.0)
    assert float(loss) == pytest.approx(0.2 + 10 * 0.04, rel=1e-4)
    # A constant has no edges, and 0.2 of a range of 2 is 20 dB.
    assert float(self.loss(vae, edge_weight=1.0)[0]) < 1e-6
    assert float(metrics["psnr_8"]) == pytest.approx(20, rel=1e-4)

  def test_step_in_the_error_is_an_edge(self):
    # One column in eight: 1 of 7 horizontal differences is 0.7.
    step = 0.7 * (np.arange(8) >= 4)[None, None, :, None]
    loss, _ = self.loss(FixedVAE(0.0, 0.0, step), edge_weight=1.0)
    assert float(loss) == pytest.approx(0.1, rel=1e-4)

  @pytest.mark.parametrize(("mean", "logvar"), [(0, 0), (2, 0), (0, 1.5)])
  def test_kl_is_the_expected_log_ratio(self, mean, logvar):
    vae = FixedVAE(float(mean), float(logvar), 0.0)
    _, metrics = self.loss(vae)
    # Monte Carlo of E[log q - log p] under q, the definition.
    draws = np.random.default_rng(0).normal(size=10**6)
    x = mean + np.exp(logvar / 2) * draws
    ratio = -0.5 * draws**2 - logvar / 2 + 0.5 * x**2
    assert float(metrics["kl_8"]) == pytest.approx(ratio.mean(), abs=0.01)

  def test_latents_std_is_that_of_the_samples(self):
    vae = FixedVAE(1.0, 2 * np.log(3.0), 0.0)
    _, metrics = self.loss(vae)
    assert float(metrics["latents_std_8"]) == pytest.approx(3, rel=0.05)

  def test_scales_are_averaged_and_named_by_their_width(self):
    objective = autoencoder_objective(
      vae=VAE(),
      scales=((1, 2), (2, 6)),
      l1_weight=1.0,
      l2_weight=1.0,
      edge_weight=0.0,
      kl_weight=0.0,
      decoder_only=False,
    )
    loss, metrics = objective(make_frozen()["vae"], {}, make_batch(0), RNG)
    assert {"psnr_8", "psnr_4"} <= metrics.keys()
    assert np.isfinite(float(loss))

  def test_scales_that_miss_rows(self):
    with pytest.raises(InputError, match="scales of 7 rows in a batch of 8"):
      self.loss(FixedVAE(0.0, 0.0, 0.0), rows=7)


def test_shrink_takes_means_of_squares():
  image = np.arange(16.0, dtype=np.float32).reshape(1, 1, 4, 4, 1)
  frames = image * np.ones(3, np.float32)
  small = shrink(frames, 2)[0, 0, :, :, 0]
  np.testing.assert_array_equal(small, [[2.5, 4.5], [10.5, 12.5]])


# ---- The CLIP towers ----


@dataclasses.dataclass(frozen=True)
class Table:
  """A tower that returns rows of its params."""

  text: bool

  def apply(self, variables, _):
    rows = variables["params"]
    return TextOutput(context=None, pooled=rows) if self.text else rows


class TestContrastive:
  def run(self, text, image, captions, logit_scale):
    batch = dataclasses.replace(
      make_batch(0, size=len(captions)),
      token_ids=np.array(captions, np.int32)[:, None],
    )
    params = {
      "text_encoder": jnp.asarray(text, jnp.float32),
      "image_encoder": jnp.asarray(image, jnp.float32),
      "logit_scale": jnp.float32(logit_scale),
    }
    objective = contrastive_objective(
      text_encoder=Table(True), image_encoder=Table(False)
    )
    return objective(params, {}, batch, RNG)

  def test_lengths_do_not_matter_and_matches_win(self):
    loss, metrics = self.run(
      5 * np.eye(4, WIDTH), 0.1 * np.eye(4, WIDTH), range(4), np.log(50)
    )
    assert float(loss) < 1e-6
    assert float(metrics["accuracy"]) == 1

  def test_indifference_is_the_entropy_of_chance(self):
    same = np.ones((4, WIDTH))
    loss, _ = self.run(same, same, range(4), 1.0)
    assert float(loss) == pytest.approx(np.log(4), rel=1e-5)

  def test_equal_captions_match_each_other(self):
    """Rows 0 and 1 say the same: each is then half the answer."""
    pair = np.eye(4, WIDTH)[[0, 0, 1, 2]]
    loss, metrics = self.run(pair, pair, [7, 7, 8, 9], np.log(50))
    assert float(loss) == pytest.approx(np.log(2) / 2, rel=1e-4)
    assert float(metrics["accuracy"]) == 1

  def test_scale_is_capped_at_100(self):
    eye = np.eye(4, WIDTH)
    assert float(self.run(eye, eye, range(4), 9.0)[1]["logit_scale"]) == (
      pytest.approx(100, rel=1e-4)
    )

  def test_mismatched_pairs_cost(self):
    eye = np.eye(2, WIDTH)
    loss, metrics = self.run(eye, eye[::-1], [0, 1], np.log(10))
    # Softmax of (0, 10) read at the 0.
    assert float(loss) == pytest.approx(np.log1p(np.exp(10.0)), rel=1e-5)
    assert float(metrics["accuracy"]) == 0

  @pytest.mark.parametrize("decoder_only", [False, True])
  def test_decoder_only_leaves_the_encoder_alone(self, decoder_only):
    vae = AutoencoderKL((8, 8), layers_per_block=1, norm_groups=4)
    params = build.init_params(vae, RNG)
    objective = autoencoder_objective(
      vae=vae,
      scales=((1, 8),),
      l1_weight=1.0,
      l2_weight=1.0,
      edge_weight=1.0,
      kl_weight=1.0,
      decoder_only=decoder_only,
    )
    grads = jax.grad(lambda p: objective(p, {}, make_batch(0), RNG)[0])(params)
    size = {name: optax.global_norm(tree) for name, tree in grads.items()}
    assert size["decoder"] > 0 and size["post_quant_conv"] > 0
    assert (size["encoder"] == 0) == decoder_only
    assert (size["quant_conv"] == 0) == decoder_only
