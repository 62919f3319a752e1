"""Which timesteps are visited, against the lists of the references."""

import diffusers
import numpy as np
import pytest

from i2vgen_jax.diffusion.timesteps import ddim_timesteps, spaced_timesteps
from i2vgen_jax.errors import InputError


def test_fifty_ddim_steps_are_the_published_list():
  timesteps = ddim_timesteps(50)
  assert timesteps[:3].tolist() == [981, 961, 941]
  assert timesteps[-2:].tolist() == [21, 1]
  assert len(timesteps) == 50


@pytest.mark.parametrize("num_steps", [1, 2, 7, 30, 50, 334, 600, 999])
def test_ddim_timesteps_equal_those_of_diffusers(num_steps):
  oracle = diffusers.DDIMScheduler(timestep_spacing="leading", steps_offset=1)
  oracle.set_timesteps(num_steps)
  assert ddim_timesteps(num_steps).tolist() == oracle.timesteps.tolist()


def test_ddim_with_all_timesteps_stays_in_range():
  assert ddim_timesteps(1000).tolist() == list(range(999, -1, -1))
  assert ddim_timesteps(600, t_max=599).tolist() == list(range(599, -1, -1))


def test_ddim_timesteps_below_a_bound():
  assert ddim_timesteps(4, t_max=599).tolist() == [451, 301, 151, 1]


def test_refine_timesteps_are_trailing_without_the_last():
  timesteps = spaced_timesteps(30, 599, drop_last=True)
  assert len(timesteps) == 30
  np.testing.assert_allclose(
    timesteps[[0, 1, -1]], [599, 579.645, 37.710], atol=5e-4
  )
  one_more = spaced_timesteps(31, 599)
  np.testing.assert_allclose(one_more[-1], 18.355, atol=5e-4)
  np.testing.assert_array_equal(one_more[:-1], timesteps)


def test_heun_timesteps_are_integers():
  timesteps = spaced_timesteps(50, 599)
  assert len(timesteps) == 50
  assert timesteps[[0, 1, -1]].tolist() == [599, 587, 11]


def test_spacings_differ_in_their_ends():
  by_hand = {
    "trailing": [599, 449, 299, 149],
    "leading": [450, 300, 150, 0],
    "linspace": [599, 599 * 2 / 3, 599 / 3, 0],
  }
  for spacing, expected in by_hand.items():
    timesteps = spaced_timesteps(4, 599, spacing=spacing)
    np.testing.assert_allclose(timesteps, expected, atol=1e-9)


def test_the_range_can_end_above_zero():
  assert spaced_timesteps(3, 32, 3).tolist() == [32, 22, 12]
  assert spaced_timesteps(3, 32, 3, spacing="leading").tolist() == [23, 13, 3]


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("num_steps", [1, 2, 49, 599])
def test_any_number_of_timesteps_descends_within_the_range(spacing, num_steps):
  for drop_last in (False, True):
    timesteps = spaced_timesteps(
      num_steps, 599, spacing=spacing, drop_last=drop_last
    )
    assert len(timesteps) == num_steps
    assert np.all(np.diff(timesteps) < 0)
    assert timesteps[0] <= 599 and timesteps[-1] >= 0


@pytest.mark.parametrize("num_steps", [0, -3, 601])
def test_error_of_a_bad_number_of_steps_names_the_range(num_steps):
  with pytest.raises(InputError, match="use 1 to 600"):
    ddim_timesteps(num_steps, t_max=599)
  with pytest.raises(InputError, match="use 1 to 600"):
    spaced_timesteps(num_steps, 599)


def test_error_of_an_unknown_spacing_lists_the_known_spacings():
  with pytest.raises(InputError, match="trailing, leading or linspace"):
    spaced_timesteps(4, 599, spacing="karras")
