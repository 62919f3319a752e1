"""`i2vgen data benchmark`: complete tables and correct arithmetic; no times."""

import math

import pytest

from data_pipelines.loading.buckets import Bucket
from data_pipelines.media import video
from data_pipelines.procedural.build import build_procedural
from data_pipelines.shards.dataset import dataset_dir
from launch import cli
from launch.benchmarks import (
  attention,
  demand,
  denoising,
  peers,
  reading,
  shortcuts,
  training,
  videos,
)
from launch.benchmarks.demand import Case
from launch.benchmarks.reading import DECODER, Way

SIZE = (64, 32)
CASES = (
  Case("text_video", Bucket(8, 8, 1, SIZE), 4.0, 1.0),
  Case("text_video", Bucket(1, 1, 1, SIZE), 1.0, 1.0),
  Case("text_video", Bucket(99, 8, 1, SIZE), 9.0, 9.0),
  Case("text_image", Bucket(1, 1, 1, SIZE), 1.0, 1.0),
)
LATER = ["JPEG q95, this size", "raw, this size", "latents (stand-in)"]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("benchmark") / "set"
  build_procedural(folder, 3, "train", size=(48, 32), num_frames=12)
  return folder


def test_tables_are_complete(data_dir, capsys, monkeypatch):
  monkeypatch.setattr(demand, "CASES", CASES)
  cli.main(["data", "benchmark", str(data_dir), "--count=4", "--repeats=2"])
  text, errors = capsys.readouterr()
  assert "99 frames, 8 fps, 64x32: left out" in errors
  blocks = text.strip().split("\n\n")
  titles = [block.splitlines()[0].partition(";")[0] for block in blocks]
  assert titles[1:4] == [str(CASES[n]) for n in (0, 1, 3)]
  for block, case in zip(blocks[1:4], (CASES[0], *CASES[1::2]), strict=True):
    frames = case.bucket.num_frames
    rows = {line[2:26].strip(): line[26:].split() for line in lines_of(block)}
    h264 = ["H.264 crf 18, this size"] if frames > 1 else []
    assert list(rows) == ["as built", DECODER, *h264, *LATER]
    for way, cells in rows.items():
      assert len(cells) == (4 if way == DECODER else 7)
      assert float(cells[0]) > 0 and float(cells[2]) > 0
    kb, psnr, *_ = rows["raw, this size"]
    assert psnr == "inf"
    assert float(kb) == pytest.approx(frames * 64 * 32 * 3 / 1e3, abs=0.1)
    kb, psnr, *_ = rows["latents (stand-in)"]
    assert psnr == "-"
    assert float(kb) == pytest.approx(frames * 8 * 4 * 8 * 2 / 1e3, abs=0.1)
    assert float(rows["JPEG q95, this size"][1]) > 35
    assert rows["decoder alone"][3] == "1.00"
  built = blocks[4].splitlines()
  assert built[2].split()[:2] == ["text_video", "12.0"]
  assert built[3].split()[:2] == ["text_image", "1.0"]
  assert all(float(cell) > 0 for cell in built[3].split()[1:])
  overhead = [line[2:26].strip() for line in blocks[5].splitlines()[2:]]
  assert overhead == ["in order", "by Beam", "a child"]


def lines_of(block):
  return block.splitlines()[2:]


def test_demand_of_a_host():
  host = 4 * 459 * 0.45
  case = demand.CASES[0]
  assert case.wanted(False) == pytest.approx(host / (3 * 8.744 + 7.68))
  assert case.wanted(True) == pytest.approx(host / (3 * 8.744))
  speeds = {
    Way("as built", 200, math.nan, print): 10.0,
    Way(DECODER, 200, math.nan, print): 40.0,
  }
  row = reading.table(case, speeds).splitlines()[2]
  assert row.split()[2:] == ["200.0", "-", "10.0", "0.25", "24.4", "2.4", "4.9"]


def test_reader_and_decoder_see_the_same_frames(data_dir):
  case, counted = CASES[0], []
  reader = reading.make_reader(dataset_dir(data_dir, case.kind), case, 0)
  reader.read(3)
  assert len({record["id"] for record, *_ in reader.decoded}) == 3
  for record, window, _ in reader.decoded:
    until = window.seconds(record["fps"])[-1]
    counted.append(video.count_frames(record["video"], until=until))
    last = window.start + (window.num_frames - 1) * window.stride
    assert counted[-1] in (last + 1, last + 2)


def test_a_folder_without_a_dataset(refused, tmp_path):
  assert "no dataset to measure" in refused("data", "benchmark", tmp_path)
  assert "--count" in refused("data", "benchmark", tmp_path, "--count=0")


@pytest.mark.slow
def test_command(run, data_dir, capsys):
  argv = ("data", "benchmark", data_dir, "--count=1", "--repeats=1")
  assert run(*argv)[0] == 0


def test_denoising_beside_diffusers(capsys):
  size = ["--size=64x64", "--num-frames=2", "--repeats=1"]
  denoising.main(["--channels", "64", "64", "64", "64", *size])
  title, *rows = capsys.readouterr().out.splitlines()
  assert title.startswith("U-Net of variant (c), 2 frames of 64x64")
  assert [row.split()[0] for row in rows] == ["diffusers", "ours"]
  assert float(rows[0].split()[3]) == 1


def test_videos_beside_diffusers(capsys, monkeypatch):
  tower = {
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "projection_dim": 64,
  }
  vision = {"image_size": 28, "patch_size": 14}
  small = {
    "UNET": {"block_out_channels": (64,) * 4, "cross_attention_dim": 64},
    "VAE": videos.VAE | {"block_out_channels": (32,) * 4},
    "TEXT": tower | {"hidden_size": 64},
    "VISION": tower | vision | {"hidden_size": 80},
  }
  for name, sizes in small.items():
    monkeypatch.setattr(videos, name, sizes)
  settings = ["--size=64x64", "--num-frames=2", "--steps=4"]
  videos.main([*settings, "--contestants", "diffusers", "ours"])
  title, _, *rows = capsys.readouterr().out.splitlines()
  assert title.startswith("Videos of 2 frames of 64x64 in 4 steps")
  assert [row.split()[0] for row in rows] == ["diffusers", "ours"]
  for row in rows:
    first, _, _, _, video, *_, memory, unit, speed = row.split()[1:]
    assert float(first) > 0 and float(video) > 0 and float(speed) > 0
    assert float(memory) > 0.1 and unit == "GiB"


def test_bad_flags_are_one_line(capsys, monkeypatch):
  """A benchmark reads the words of its process and fails as a command does."""
  monkeypatch.setattr("sys.argv", ["videos.py", "--steps=3"])
  assert cli.exit_status(videos.main) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("i2vgen: error: argument --steps: 3 is too small")
  assert line.endswith("see python -m launch.benchmarks.videos --help")


@pytest.mark.slow
def test_training_beside_diffusers(capsys):
  settings = ["--channels", "64", "64", "64", "64", "--steps=1"]
  settings += ["--size=64x64", "--num-frames=2"]
  training.main(["--config=configs/i2vgen_xl.py:base", *settings])
  title, _, *rows = capsys.readouterr().out.splitlines()
  assert title.startswith("Training steps of base, 1 clips of 2 frames of")
  assert [row.split()[0] for row in rows] == ["diffusers", "ours"]
  assert all(float(row.split()[1]) > 0 for row in rows)


def test_a_contestant_that_fails_is_a_row():
  """The others are measured all the same."""
  rows = [*peers.lines({"first": _fails, "second": _measures}, 4.0)]
  assert rows[0].split() == ["first", "failed:", "out", "of", "memory"]
  assert rows[1].split() == ["a", "step", "peak", "memory", "speed"]
  assert rows[2].split() == ["second", "4.000", "s", "1", "GiB", "1.00"]


def _fails(seconds):
  raise MemoryError("out of memory\nat address 0")


def _measures(seconds):
  return peers.Figures({"a step": seconds}, "1 GiB")


def test_shortcuts_are_measured(capsys, monkeypatch):
  # Full-size networks take long to trace.
  monkeypatch.setattr(
    shortcuts, "work_at_full_size", lambda changes: 8 - len(changes)
  )
  settings = {name: shortcuts.SETTINGS[name] for name in ("whole", "both, 3")}
  monkeypatch.setattr(shortcuts, "SETTINGS", settings)
  shortcuts.main(["--num-clips", "2"])
  _, whole, both = capsys.readouterr().out.splitlines()
  assert whole.split()[:3] == ["whole", "1.00", "1.00"]
  *_, motion, against_true, against_whole = both.split()
  assert both.split()[3] == "0.75"
  assert 0.2 < float(both.split()[2]) < 0.7
  assert 0 <= float(motion) <= 1
  assert float(against_whole) > float(against_true) > 10


def test_speed_of_attention_by_its_blocks(capsys, monkeypatch):
  monkeypatch.setattr(attention, "OTHERS", ())
  monkeypatch.setattr(attention, "SPLASH_OTHERS", ((128, 128, 128),))
  attention.main(["--length", "256", "--heads", "1"])
  title, ours, chosen, other = capsys.readouterr().out.splitlines()
  assert title.split() == ["blocks", "forward", "backward"]
  assert ours.startswith("  flash 256, 1280")
  assert chosen.startswith("  splash 256, 256, 256")
  assert other.startswith("  splash 128, 128, 128")
