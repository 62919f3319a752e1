"""`i2vgen data`: small builds and their messages."""

import dataclasses
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from data_pipelines.media import video
from data_pipelines.procedural import world
from i2vgen_jax.tokenizer import Tokenizer
from launch import arguments, data, encode, sample

PLACE = ["--output=out"]


def test_procedural(run, tmp_path):
  output = tmp_path / "shards"
  status, lines = run(
    *("data", "build", "procedural", f"--output={output}", "--num-clips=3"),
    *("--size=48x32", "--num-frames=4", "--split=test"),
  )
  assert status == 0
  assert "wrote 3 clips and 3 pictures" in lines[-1]
  assert any(line.startswith("clips: 3/3") for line in lines)
  info = output / "text_video" / "1.0.0" / "dataset_info.json"
  assert json.loads(info.read_text())["splits"][0]["name"] == "test"


def test_manifest(run, tmp_path):
  Image.fromarray(skimage.data.coffee()).save(tmp_path / "coffee.jpg")
  scene = world.numbered_scene(0, 6, "train")
  clip = world.render(scene, (48, 32), 9)
  (tmp_path / "clip.mp4").write_bytes(video.encode_mp4(clip, 8))
  (tmp_path / "short.mp4").write_bytes(video.encode_mp4(clip[:3], 8))
  names = ["coffee.jpg", "clip.mp4", "short.mp4", "absent.mp4", "gone.mp4"]
  manifest = tmp_path / "list.jsonl"
  rows = [{"path": name, "caption": "something"} for name in names]
  manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
  output = tmp_path / "shards"
  argv = ("data", "build", "manifest", manifest, "--output", output)
  argv += ("--whole", "--min-frames=8")
  status, lines = run(*argv)
  assert status == 0
  [summary] = [line for line in lines if "wrote" in line]
  assert "1 clips and 1 pictures" in summary and "left out: 3" in summary
  assert any("left out 2, missing: " in line for line in lines)
  assert any("left out 1, few-frames: " in line for line in lines)
  assert str(output / "quarantine.jsonl") in lines[-1]
  assert any(line.startswith("scan: ") for line in lines)
  before = {p: p.stat().st_mtime_ns for p in output.rglob("*")}
  assert run(*argv)[0] == 0
  assert {p: p.stat().st_mtime_ns for p in output.rglob("*")} == before
  # Arguments after the dashes go to Beam.
  status, lines = run(
    *argv[:4], f"--output={tmp_path / 'b'}", "--", "--runner=NoSuchRunner"
  )
  assert status == 2
  assert "NoSuchRunner" in lines[-1]


def test_shard_size(run, tmp_path):
  for number in range(3):
    noise = np.random.default_rng(number).integers(0, 255, (40, 40, 3))
    picture = Image.fromarray(noise.astype(np.uint8))
    picture.resize((400, 400)).save(tmp_path / f"{number}.png")
    (tmp_path / f"{number}.txt").write_text("something")
  output = tmp_path / "shards"
  argv = ("data", "build", "manifest", tmp_path, "--output", output)
  assert run(*argv, "--shard-size=2")[0] == 0
  assert len(list(output.rglob("*.tfrecord-?????-of-00002"))) == 2


@pytest.mark.parametrize(
  ("source", "name"),
  [
    ("manifest", "identity.json"),
    ("manifest", "list-000000.jsonl"),
    ("manifest", "candidates.jsonl"),
    ("manifest", "shard.tfrecord"),
    ("manifest", "text_image-train.tfrecord-00000-of-00001"),
    ("manifest", "quarantine.jsonl"),
    ("procedural", "text_video-train.tfrecord-00000-of-00001"),
  ],
)
def test_full_disk(run, tmp_path, monkeypatch, source, name):
  """One line each time; with space, the same command finishes."""
  Image.fromarray(skimage.data.coffee()).save(tmp_path / "a.png")
  (tmp_path / "a.txt").write_text("coffee")
  given = {"manifest": [tmp_path], "procedural": ["--num-clips=1"]}[source]
  argv = ["data", "build", source, *given, "--output", tmp_path / "out"]
  replace = os.replace

  def fail(old, new, **options):
    if Path(new).name == name:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    replace(old, new, **options)

  with monkeypatch.context() as full:
    full.setattr(os, "replace", fail)
    for _ in range(2):
      status, lines = run(*argv)
      errors = [s for s in lines if not s.startswith(("scan:", "text_image"))]
      assert status == 2
      assert len(errors) == 1, errors
      assert errors[0].startswith("i2vgen: error: cannot write ")
      assert ": No space left on device; " in errors[0]
  assert run(*argv)[0] == 0


def test_vocabulary_has_every_word_of_a_caption(run, tmp_path):
  output = tmp_path / "tokenizer"
  status, _ = run("data", "vocabulary", "--output", output)
  assert status == 0
  tok = Tokenizer.load(output)
  texts = [
    world.caption(world.numbered_scene(0, number, split))
    for number in range(200)
    for split in ("train", "test")
  ]
  # BOS, one token per word, EOS.
  for text, ids in zip(texts, tok(texts).ids, strict=True):
    assert np.argmax(ids) == len(text.split()) + 1
  assert "exists already" in run("data", "vocabulary", "--output", output)[1][0]


@pytest.mark.parametrize(
  ("argv", "part"),
  [
    ([], "{build, encode, inspect, benchmark, photographs, vocabulary}"),
    (["bild"], "options: bild; Available subcommands: build"),
    (["build"], "{procedural, manifest}"),
    (["build", "procedural"], "--output"),
    (
      ["build", "procedural", *PLACE, "--num-clips=0"],
      "--num-clips: 0 is too small",
    ),
    (["build", "procedural", "--split=dev"], "--split"),
    (
      ["build", "procedural", *PLACE, "--num-clips=1", "--size=3"],
      "WIDTHxHEIGHT",
    ),
    (["build", "procedural", *PLACE, "--num-clips=1", "--a=3"], "--a=3"),
    (["build", "manifest"], "MANIFEST"),
    (["build", "manifest", "absent.jsonl", *PLACE], "absent.jsonl"),
    (
      ["build", "manifest", "a.csv", *PLACE, "--", "--runer=FlinkRunner"],
      "unknown --runer=FlinkRunner, did you mean --runner?",
    ),
    (
      ["build", "manifest", "a.csv", *PLACE, "--", "runner=FlinkRunner", "-x"],
      "unknown runner=FlinkRunner -x",
    ),
    (
      ["build", "manifest", "a.csv", *PLACE, "--", "--direct_num_workers=x"],
      "--direct_num_workers: invalid int value",
    ),
    (["inspect", "a", "--", "--runner=FlinkRunner"], "does not use Beam"),
    (
      ["build", "procedural", *PLACE, "--num-clips=1", "--", "--runner=A"],
      "does not use Beam",
    ),
    (["build", "manifest", "absent.txt", *PLACE], "absent.txt"),
  ],
)
def test_invalid_command_lines(refused, tmp_path, monkeypatch, argv, part):
  monkeypatch.chdir(tmp_path)
  assert part in refused("data", *argv)
  assert not list(tmp_path.iterdir())


def test_an_odd_size_writes_nothing(run, tmp_path):
  argv = ["build", "procedural", f"--output={tmp_path / 'x'}", "--num-clips=1"]
  status, lines = run("data", *argv, "--size=33x32")
  assert status == 2
  assert "33x32" in lines[-1]
  assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_rejected(refused, tmp_path):
  (tmp_path / "mine.txt").touch()
  argv = ["build", "procedural", f"--output={tmp_path}", "--num-clips=1"]
  assert "exists already" in refused("data", *argv)


@pytest.mark.parametrize(
  ("kind", "required"),
  [
    (data.Procedural, ["--output=o", "--num-clips=1"]),
    (data.Manifest, ["m", "--output=o"]),
    (data.Inspect, ["d"]),
    (data.Benchmark, ["d"]),
    (
      encode.Encode,
      ["d", "--output=o", "--weights=w", "--size=8x8"],
    ),
    (sample.Arguments, ["--image=i", "--output=o", "--prompt=p"]),
  ],
)
def test_every_numeric_default_is_accepted_by_its_flag(kind, required):
  argv = list(required)
  for field in dataclasses.fields(kind):
    if type(field.default) in (int, float):
      argv.append(f"--{field.name.replace('_', '-')}={field.default}")
  assert arguments.parse(kind, argv, "i2vgen") == arguments.parse(
    kind, required, "i2vgen"
  )


@pytest.mark.parametrize("seconds", ["241", "3600", "86400.5", "1e6"])
def test_durations_may_be_long(seconds):
  argv = ["m", "--output=o", f"--stall-seconds={seconds}"]
  argv.append(f"--max-seconds={seconds}")
  args = arguments.parse(data.Manifest, argv, "i2vgen")
  assert args.stall_seconds == args.max_seconds == float(seconds)
