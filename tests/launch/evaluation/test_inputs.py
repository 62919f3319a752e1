"""What clips are made of: folders and lists of pictures, and datasets."""

import numpy as np
import pytest
from dataset_standin import counting_clip, write_dataset
from PIL import Image

from data_pipelines.media import pictures
from data_pipelines.shards.dataset import Example
from i2vgen_jax.errors import InputError
from i2vgen_jax.stage import Sampling
from launch.evaluation import inputs

SAMPLING = Sampling(size=(48, 32), num_frames=3, fps=4.0)


def write_picture(path, level):
  Image.new("RGB", (60, 40), (level,) * 3).save(path)


def test_folder_and_list_of_pictures(tmp_path):
  for n in range(3):
    write_picture(tmp_path / f"{n}.png", 10 * n)
    (tmp_path / f"{n}.txt").write_text(f"prompt {n}\nanother\n")
  (tmp_path / "list.csv").write_text("path,caption\n2.png,from a list\n")
  found = inputs.of_pictures(tmp_path)
  assert found.count == 3
  for n in range(3):
    given = found.read(n, SAMPLING)
    assert (given.name, given.prompt) == (f"{n}.png", f"prompt {n}")
    assert given.picture.shape == (40, 60, 3)
    assert (given.picture == 10 * n).all()
    assert given.real is None
  given = inputs.of_pictures(tmp_path / "list.csv").read(0, SAMPLING)
  assert given.prompt == "from a list"
  assert (given.picture == 20).all()


def test_unusable_pictures_are_named(tmp_path):
  with pytest.raises(InputError, match="no pictures in"):
    inputs.of_pictures(tmp_path)
  write_picture(tmp_path / "a.png", 0)
  with pytest.raises(InputError, match=r"row 1 \(a.png\).* no caption"):
    inputs.of_pictures(tmp_path)
  (tmp_path / "a.txt").write_text("a")
  (tmp_path / "b.mp4").write_bytes(b"x")
  (tmp_path / "b.txt").write_text("b")
  with pytest.raises(InputError, match=r"b.mp4 in .* is not a picture"):
    inputs.of_pictures(tmp_path)


def test_some_are_drawn_at_random(tmp_path):
  found = inputs.Inputs(100, lambda n, _: n)
  drawn = [found.drawn(10, seed) for seed in (0, 0, 1)]
  numbers = [
    [some.read(n, SAMPLING) for n in range(some.count)] for some in drawn
  ]
  assert numbers[0] == numbers[1] == sorted(set(numbers[0]))
  assert numbers[0] != numbers[2]
  assert found.drawn(200, 0).count == 100


def test_clips_are_cut_to_the_stage(tmp_path):
  """Every second of the frames at 8 fps, at a stage of 4 fps."""
  clips = [counting_clip(f"c{n}", (96, 64), 9, [f"clip {n}"]) for n in range(3)]
  found = inputs.of_dataset(write_dataset(tmp_path, "text_video", clips), 3, 0)
  starts = set()
  for n in range(found.count):
    given = found.read(n, SAMPLING)
    assert (given.name, given.prompt) == (f"c{n}", f"clip {n}")
    assert given.real.shape == (3, 32, 48, 3)
    assert given.picture.shape == (64, 96, 3)
    assert given.fps == 4
    levels = np.median(given.real[:, :, :20], axis=(1, 2, 3))
    np.testing.assert_allclose(np.diff(levels), 40, atol=2)
    assert np.median(given.picture[:, :40]) == pytest.approx(levels[0], abs=2)
    starts.add(round(levels[0] / 20))
  assert len(starts) > 1


def test_pictures_of_a_dataset_have_no_real_clip(tmp_path):
  jpeg = pictures.encode_jpeg(np.full((32, 48, 3), 90, np.uint8))
  directory = write_dataset(
    tmp_path, "text_image", [Example(jpeg, ["a wall"], "s", 1, 48, 32)]
  )
  given = inputs.of_dataset(directory, 3, 0).read(0, SAMPLING)
  assert given.prompt == "a wall"
  assert given.real is None
  assert (given.picture == 90).all()


def test_short_clips_are_left_out_and_counted(tmp_path, capsys):
  clips = [counting_clip(f"c{n}", (48, 32), 1 + n, ["x"]) for n in range(4)]
  directory = write_dataset(tmp_path / "some", "text_video", clips)
  assert inputs.of_dataset(directory, 3, 0).count == 2
  assert "2 of 4 clips have fewer than 3 frames" in capsys.readouterr().err
  directory = write_dataset(tmp_path / "none", "text_video", clips[:2])
  with pytest.raises(InputError, match=r"none of the 2 clips .* has 3 frames"):
    inputs.of_dataset(directory, 3, 0)
