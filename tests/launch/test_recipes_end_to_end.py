"""The commands of docs/recipes.md, one after another, with small networks."""

import subprocess

import av
import diffusers
import public_standin
import pytest
from documentation import REPOSITORY, in_blocks

from data_pipelines.procedural.build import build_procedural

pytestmark = [
  pytest.mark.slow,  # It compiles six trainings.
  pytest.mark.usefixtures("no_job", "fresh_flags", "quick_compiler"),
]

# Of what a recipe does not set.
SIZES = (
  *(f"--config.unet.{k}={v}" for k, v in public_standin.SMALL_UNET.items()),
  "--config.unet.dtype=float32",
  "--config.unet.remat=False",
  "--config.data.size=(32, 32)",
  "--config.data.buckets=((2, 8.0, 1.0),)",
  "--config.sampling.size=(32, 32)",
  "--config.sampling.num_frames=2",
  "--config.sampling.num_steps=1",
)
# In place of those of a recipe.
SHORT = (
  "--config.train.num_steps=2",
  "--config.train.warmup_steps=0",
  "--config.train.batch_size=8",
  "--config.train.log_every=1",
  # Shows in few steps what has been trained.
  "--config.train.ema_decay=0",
  "--config.mesh.fsdp=4",
)


@pytest.fixture
def place(tmp_path, monkeypatch, photos):
  """A folder with what the commands name."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
  public_standin.write_repository(tmp_path / "ali-vilab" / "i2vgen-xl")
  small = public_standin.SMALL_UNET
  image_model = diffusers.UNet2DConditionModel(
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=small["block_channels"],
    layers_per_block=small["layers_per_block"],
    cross_attention_dim=small["context_dim"],
    # In this class, the number of heads.
    attention_head_dim=small["block_channels"][0] // small["head_dim"],
    use_linear_projection=True,
  )
  image_model.save_pretrained(tmp_path / "stable-diffusion-2-1" / "unet")
  build_procedural(tmp_path / "data" / "clips", 8, "train", size=(32, 32))
  for name in ("pictures", "unseen", "hd", "best"):
    (tmp_path / "data" / name).symlink_to("clips")
  (tmp_path / "photo.jpg").symlink_to(photos["landscape"])
  return tmp_path


def test_the_recipes_train_a_cascade_and_adapt_the_released_one(
  place, run, fresh_flags
):
  printed = {}
  for words in in_blocks((REPOSITORY / "docs" / "recipes.md").read_text()):
    program, command, *argv = words
    if program != "i2vgen":
      subprocess.run(words, check=True)
      continue
    if command == "train":
      given = {word.partition("=")[0] for word in argv}
      argv += [word for word in SIZES if word.partition("=")[0] not in given]
      argv += SHORT
    fresh_flags()
    status, lines = run(command, *argv)
    assert status == 0, (words, lines)
    if command == "train":
      [workdir] = (w.partition("=")[2] for w in argv if "--workdir" in w)
      printed[workdir] = "\n".join(lines)
  # Layers of time and of the picture are not in an image model.
  assert "starting from" in printed["runs/pictures"]
  assert "drawn, as they are not in it" in printed["runs/pictures"]
  for name in ("base", "refine", "best"):
    assert "drawn" not in printed[f"runs/{name}"]
  # The conditions of the base stage that the refine stage does not have.
  assert "not used of it" not in printed["runs/base"]
  assert "not used of it" in printed["runs/refine"]
  assert "not used of it" not in printed["runs/best"]
  for name in ("cascade", "tuned", "lora"):
    with av.open(f"{name}.mp4") as video:
      assert sum(1 for _ in video.decode(video=0)) == 2
