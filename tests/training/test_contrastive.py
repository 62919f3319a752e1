"""CLIP's loss on towers whose outputs are given."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_standins import WIDTH, make_batch

from i2vgen_jax.models.clip import TextOutput
from i2vgen_jax.training.contrastive import Contrastive


@dataclasses.dataclass(frozen=True)
class Table:
  """A tower whose outputs are its params."""

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
    task = Contrastive(text_encoder=Table(True), image_encoder=Table(False))
    return task.loss(params, {}, batch, jax.random.key(0))

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
    """Rows 0 and 1 have one caption, so each has half of the target."""
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
