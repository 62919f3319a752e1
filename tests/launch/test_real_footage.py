"""A base stage trained on a real film gets better at held-out clips."""

import cascade_standin
import pytest
from PIL import Image

from data_pipelines.footage.build import build_footage
from data_pipelines.footage.settings import FootageSettings, ScanSettings
from i2vgen_jax.training import record
from launch import train

# It takes minutes to decode the film and to train.
pytestmark = pytest.mark.slow

REPOSITORY = cascade_standin.CONFIGS.parents[1]
# Number of first rows that are used of the lists in docs/real-footage.
NUM_ROWS = {"train": 16, "unseen": 6}


@pytest.fixture(scope="module")
def shards(film, tmp_path_factory):
  """text_video directories of different shots of the film, by name."""
  folder = tmp_path_factory.mktemp("footage")
  (folder / "bbb.mp4").symlink_to(film("bbb"))
  scan = ScanSettings(split_shots=False, max_seconds=3)
  for name, count in NUM_ROWS.items():
    text = (REPOSITORY / f"docs/real-footage/{name}.csv").read_text()
    rows = folder / f"{name}.csv"
    rows.write_text("\n".join(text.splitlines()[: 1 + count]))
    built = build_footage(
      rows, folder / name, FootageSettings(scan=scan, short_side=128)
    )
    assert built.num_videos >= count
    assert set(built.dropped) <= {"duplicate"}
  return {name: folder / name / "text_video" / "1.0.0" for name in NUM_ROWS}


def test_the_loss_on_held_out_clips_falls(shards, tmp_path):
  config = cascade_standin.get_config("tiny")
  config.frozen = str(REPOSITORY / "i2vgen_jax" / "assets" / "tiny")
  config.data.video_dirs = (str(shards["train"]),)
  config.data.unseen_dirs = (str(shards["unseen"]),)
  config.unet.update(
    {"block_channels": (8, 16), "head_dim": 8, "norm_groups": 4}
  )
  config.sampling.num_steps = 2
  config.train.update({"num_steps": 40, "log_every": 5, "sample_every": 20})
  config.train.update({"learning_rate": 3e-3, "warmup_steps": 10})
  train.run(config, tmp_path)

  reports = record.read(tmp_path)
  assert [report["step"] for report in reports] == list(range(5, 41, 5))
  assert all(report["loss"] > 0 for report in reports)
  unseen = {r["step"]: r["unseen_loss"] for r in reports if "unseen_loss" in r}
  assert sorted(unseen) == [20, 40]
  assert unseen[40] < 0.95 * unseen[20]
  assert Image.open(tmp_path / "curve.png").format == "PNG"
  assert Image.open(tmp_path / "samples" / "step_00000040.png").width == 8 * 64
