"""Footage builds: damaged files, quarantine, interruptions and runners."""

import hashlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import av
import numpy as np
import pytest
from PIL import Image
from skimage import data

from data_pipelines.footage.build import build_footage
from data_pipelines.footage.clips import encode, scan
from data_pipelines.footage.manifest import ManifestRow
from data_pipelines.footage.quarantine import read_drops
from data_pipelines.footage.settings import (
  FootageSettings,
  Limits,
  ScanSettings,
)
from data_pipelines.media import video
from data_pipelines.procedural import world
from data_pipelines.running import guard
from data_pipelines.running.runner import beam_runner
from data_pipelines.shards.dataset import Dataset, dataset_dir
from i2vgen_jax.errors import InputError

WHOLE = ScanSettings(split_shots=False, min_frames=8)
SETTINGS = FootageSettings(scan=WHOLE, shard_size=3)


def render(number, size=(96, 64), frames=12):
  scene = world.numbered_scene(0, number, "train")
  return world.render(scene, size, frames)


def write(path, frames, codec="libx264", pixels="yuv420p", **context):
  """Writes a video of 12 fps with the given codec settings."""
  options = context.pop("options", {})
  with av.open(str(path), "w", options=context.pop("muxer", {})) as container:
    stream = container.add_stream(codec, rate=12)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt, stream.options = pixels, options
    for name, value in context.items():
      setattr(stream.codec_context, name, value)
    for picture in frames:
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_sound(path):
  with av.open(str(path), "w") as container:
    stream = container.add_stream("aac", rate=44100)
    silence = np.zeros((1, 44100), np.float32)
    frame = av.AudioFrame.from_ndarray(silence, "fltp", "mono")
    frame.sample_rate = 44100
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def flipped(raw):
  """Inverts bytes in the middle."""
  raw = bytearray(raw)
  for place in range(len(raw) // 4, len(raw) // 2, 7):
    raw[place] ^= 0xFF
  return bytes(raw)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
  """A folder of files, reasons of the unusable ones, names of the others."""
  folder = tmp_path_factory.mktemp("hostile")
  bad, good = {}, set()

  def add(name, reason):
    path = folder / name
    (good.add(name) if reason is None else bad.update({name: reason}))
    return path

  # Usable files, some of them unusual.
  for number in range(3):
    add(f"good{number}.mp4", None).write_bytes(
      video.encode_mp4(render(number), 12)
    )
  add("strange\n\x1b ü 影片.mp4", None).write_bytes(
    video.encode_mp4(render(11), 12)
  )
  Image.fromarray(data.astronaut()).save(add("good.png", None))
  write(add("turned.mp4", None), render(3))
  turn(folder / "turned.mp4")
  odd = render(4)[:, :63, :95]
  write(add("odd.mkv", None), odd, "ffv1", "bgr0")
  uneven = np.cumsum([0, 1, 3, 1, 2, 2, 1, 4, 1, 1, 2, 1]) / 24
  timed = zip(uneven.tolist(), render(5), strict=True)
  add("uneven.mp4", None).write_bytes(
    video.encode_stream(timed, 12, (96, 64), crf=16)
  )

  # Unusable files.
  whole = (folder / "good0.mp4").read_bytes()
  add("empty.mp4", "empty").touch()
  add("half.mp4", "damaged").write_bytes(whole[: len(whole) // 2])
  add("noise.mp4", "damaged").write_bytes(np.random.default_rng(0).bytes(9999))
  add("text.mp4", "damaged").write_text("a video, honestly\n" * 99)
  add("picture.mp4", "few-frames").write_bytes(
    (folder / "good.png").read_bytes()
  )
  write(add("cut.mp4", "truncated"), render(6), muxer={"movflags": "faststart"})
  raw = (folder / "cut.mp4").read_bytes()
  (folder / "cut.mp4").write_bytes(raw[: len(raw) * 3 // 4])
  add("flipped.mp4", "damaged").write_bytes(flipped(whole))
  add("folder.mp4", "no-file").mkdir()
  os.mkfifo(add("pipe.mp4", "no-file"))
  os.mkfifo(add("pipe.png", "no-file"))
  add("zero.png", "no-file").symlink_to("/dev/zero")
  add("dangling.mp4", "missing").symlink_to(folder / "nowhere")
  add("loop.mp4", "missing").symlink_to(folder / "loop.mp4")
  bad["long" * 99 + ".mp4"] = "missing"
  add("absent.mp4", "missing")
  write_sound(add("sound.mp4", "no-video"))
  write_sound(add("sound.mkv", "no-video"))
  write(add("still.mp4", "few-frames"), render(7)[:1])
  write(add("short.mp4", "few-frames"), render(7)[:5])
  write(
    add("fields.mp4", "interlaced"),
    render(8),
    options={"x264-params": "tff=1"},
  )
  write(add("hdr.mp4", "hdr"), render(9), color_trc=16)
  huge = np.zeros((1, 5008, 8000, 3), np.uint8)
  write(add("huge.mp4", "too-large"), huge, options={"preset": "ultrafast"})
  write(add("timeless.h264", "no-times"), render(10))
  write(add("copy.mp4", "duplicate"), render(0), options={"crf": "28"})
  add("empty.jpg", "empty").touch()
  png = (folder / "good.png").read_bytes()
  add("cut.png", "damaged").write_bytes(png[: len(png) // 2])
  add("text.png", "damaged").write_text("a picture, honestly")
  Image.new("L", (15000, 15000)).save(add("bomb.png", "too-large"))
  Image.fromarray(data.astronaut()).save(
    add("copy.jpg", "duplicate"), quality=80
  )
  return folder, bad, good


def turn(path):
  """Sets a display matrix that rotates by 90 degrees."""
  raw = path.read_bytes()
  place = raw.index(b"tkhd") + 4 + 4 + 20 + 16
  unit, turned = (
    (1 << 16).to_bytes(4, "big"),
    (-(1 << 16) % 2**32).to_bytes(4, "big"),
  )
  none = bytes(4)
  assert raw[place : place + 4] == unit
  matrix = none + unit + none + turned + none + none
  path.write_bytes(raw[:place] + matrix + raw[place + len(matrix) :])


def manifest(folder, rows):
  path = folder / "list.jsonl"
  lines = (r if isinstance(r, str) else json.dumps(r) for r in rows)
  path.write_text("\n".join(lines))
  return path


def listing(folder, names):
  rows = [{"path": name, "caption": f"this is {name}"} for name in names]
  return manifest(folder, rows)


def digests(folder):
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


def quarantine(folder):
  return list(read_drops(folder / "quarantine.jsonl"))


def test_unusable_files_are_quarantined_with_their_reason(hostile, tmp_path):
  folder, bad, good = hostile
  assert len(bad) >= 20
  names = [*sorted(good), *sorted(bad)]
  rows = [{"path": n, "caption": f"this is {n}"} for n in names]
  rows += [{"path": "good1.mp4"}, "{not json"]
  built = build_footage(manifest(folder, rows), tmp_path / "out", SETTINGS)
  found = {d.path: d.reason for d in quarantine(tmp_path / "out") if d.path}
  assert found.pop("good1.mp4") == "no-caption"
  assert found == bad
  assert all(d.detail.isprintable() for d in quarantine(tmp_path / "out"))
  assert built.dropped["bad-row"] == 1
  assert sum(built.dropped.values()) == len(bad) + 2
  clips = Dataset([dataset_dir(tmp_path / "out", "text_video")])
  stills = Dataset([dataset_dir(tmp_path / "out", "text_image")])
  kept = [some[n]["source"].decode() for some in (clips, stills)
          for n in range(len(some))]  # fmt: skip
  assert sorted(kept) == sorted(good)


def test_records_match_their_files(hostile, tmp_path):
  folder, _, _ = hostile
  names = ["good1.mp4", "turned.mp4", "odd.mkv", "uneven.mp4"]
  build_footage(listing(folder, names), tmp_path / "out", SETTINGS)
  dataset = Dataset([dataset_dir(tmp_path / "out", "text_video")])
  clips = {r["source"].decode(): r for r in map(dataset.__getitem__, range(4))}
  for name, record in clips.items():
    assert record["captions"] == [f"this is {name}".encode()]
    assert record["num_frames"] == 12
    frames, _ = video.decode_mp4(record["video"])
    assert frames.shape[1:3] == (record["height"], record["width"])
    assert record["motion"] > 0 and np.isnan(record["aesthetics"])
  frames, _ = video.decode_mp4(clips["good1.mp4"]["video"])
  assert np.abs(frames.astype(int) - render(1)).mean() < 4
  assert clips["good1.mp4"]["fps"] == pytest.approx(12)
  frames, _ = video.decode_mp4(clips["turned.mp4"]["video"])
  upright = np.rot90(render(3), -1, axes=(1, 2))
  assert np.abs(frames.astype(int) - upright).mean() < 5
  assert clips["odd.mkv"]["width"], clips["odd.mkv"]["height"] == (94, 62)
  _, times = video.decode_mp4(clips["uneven.mp4"]["video"])
  _, given = video.decode_mp4(folder / "uneven.mp4")
  np.testing.assert_allclose(times, given, atol=1e-3)


def test_the_order_depends_on_the_seed_only(hostile, tmp_path):
  folder, bad, good = hostile
  names = sorted({*good, *bad})
  build_footage(listing(folder, names), tmp_path / "a", SETTINGS)
  first = digests(tmp_path / "a")
  assert sum("tfrecord" in name for name in first) == 2 * 4
  build_footage(
    listing(folder, names), tmp_path / "b", SETTINGS, run=beam_runner([])
  )
  assert digests(tmp_path / "b") == first
  other = FootageSettings(scan=WHOLE, shard_size=3, seed=1)
  build_footage(listing(folder, names), tmp_path / "c", other)
  ids = [
    [d[n]["id"] for n in range(len(d))]
    for d in (Dataset([dataset_dir(tmp_path / x, "text_video")]) for x in "ac")
  ]
  assert ids[0] != ids[1] and sorted(ids[0]) == sorted(ids[1])


@pytest.fixture
def job_service():
  """Beam's own job service, like those that Flink and Spark use."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  module = "apache_beam.runners.portability.local_job_service_main"
  service = subprocess.Popen([sys.executable, "-m", module, f"-p={port}"])
  yield f"localhost:{port}"
  service.kill()
  service.wait()


@pytest.mark.slow
def test_distributed_runners_give_the_same_bytes(
  hostile, tmp_path, job_service
):
  """A job service with its own workers, and several processes."""
  folder, bad, good = hostile
  listed = listing(folder, sorted({*good, *bad} - {"huge.mp4"}))
  build_footage(listed, tmp_path / "here", SETTINGS)
  portable = ["--runner=PortableRunner", f"--job_endpoint={job_service}"]
  for name, flags in (
    ("portable", [*portable, "--environment_type=LOOPBACK"]),
    (
      "processes",
      ["--direct_running_mode=multi_processing", "--direct_num_workers=2"],
    ),
  ):
    build_footage(listed, tmp_path / name, SETTINGS, run=beam_runner(flags))
    assert digests(tmp_path / name) == digests(tmp_path / "here")


BUILD = """
import os, pathlib, signal, sys
from data_pipelines.footage import build as footage, fetch
from data_pipelines.footage.settings import FootageSettings, ScanSettings

changes, settings = 0, FootageSettings(
  scan=ScanSettings(split_shots=False, min_frames=8), shard_size=3
)

def build(listed, out, last):
  "Kills itself before the given change of a file or folder; 0 is never."
  def count(event, args):
    global changes
    writes = event == "open" and isinstance(args[2], int) and args[2] & 3
    if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
      # rmtree uses names relative to an open folder.
      is_relative = event in ("os.remove", "os.rmdir") and args[1] != -1
      if is_relative or str(args[0]).startswith(out):
        changes += 1
        if changes == last:
          os.kill(os.getpid(), signal.SIGKILL)

  sys.addaudithook(count)
  footage.build_footage(pathlib.Path(listed), out, settings)

def status(*args):
  "Exit status of a build in a copy of this process."
  pid = os.fork()
  if pid == 0:
    build(*args)
    os._exit(0)
  return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

"""
ONCE = (
  BUILD
  + """
build(sys.argv[1], sys.argv[2], int(sys.argv[3]))
print(changes)
"""
)
AT_EACH_CHANGE = (
  BUILD
  + """
def directly(fn, *args, seconds):
  return fn(*args)

# A child process for every build would be slow, and is tested elsewhere.
footage.guarded = fetch.guarded = directly
last = 1
while status(sys.argv[1], f"{sys.argv[2]}/{last}", last) == -signal.SIGKILL:
  assert status(sys.argv[1], f"{sys.argv[2]}/{last}", 0) == 0, last
  last += 1
"""
)


def start(listed, out, last=0):
  """Builds up to the given change on disk, and prints the number of them."""
  return subprocess.run(
    [sys.executable, "-c", ONCE, listed, out, str(last)],
    stdout=subprocess.PIPE,
    text=True,
    check=False,
  )


def test_a_killed_build_is_resumed(hostile, tmp_path):
  """The build is killed five times, before different changes on disk."""
  folder, bad, good = hostile
  listed = listing(folder, sorted({*good, *bad} - {"huge.mp4"}))
  whole = start(listed, tmp_path / "whole")
  assert whole.returncode == 0
  total = int(whole.stdout)
  # Less work is left after every kill.
  for last in np.random.default_rng().integers(1, total // 6, 5).tolist():
    killed = start(listed, tmp_path / "killed", last)
    assert killed.returncode == -signal.SIGKILL
  assert start(listed, tmp_path / "killed").returncode == 0
  assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


@pytest.mark.slow
def test_a_build_killed_before_any_change_is_resumed(hostile, tmp_path):
  """A small build is killed once before each of its changes."""
  folder, *_ = hostile
  listed = listing(folder, ["good0.mp4", "good.png", "text.png", "absent.mp4"])
  arguments = [sys.executable, "-c", AT_EACH_CHANGE, listed, tmp_path]
  subprocess.run(arguments, check=True)
  builds = sorted(tmp_path.iterdir())
  assert len(builds) > 50
  whole = digests(builds[-1])
  for out in builds:
    assert digests(out) == whole, out


def test_tasks_that_run_twice_at_once_change_nothing(hostile, tmp_path):
  folder, *_ = hostile
  listed = listing(folder, ["good0.mp4", "good1.mp4", "good.png", "cut.png"])

  def doubled(task, numbers):
    for number in numbers:
      twins = [threading.Thread(target=task, args=[number]) for _ in "ab"]
      for twin in twins:
        twin.start()
      for twin in twins:
        twin.join()

  build_footage(listed, tmp_path / "once", SETTINGS)
  build_footage(listed, tmp_path / "twice", SETTINGS, run=doubled)
  assert digests(tmp_path / "twice") == digests(tmp_path / "once")


@pytest.mark.parametrize(
  "left", ["", ".build", ".build/x.tmp", ".build/scan-000000"]
)
def test_leftovers_of_a_build_killed_at_its_start_are_replaced(
  hostile, tmp_path, left
):
  folder, *_ = hostile
  listed = listing(folder, ["good.png"])
  path = tmp_path / "out" / left
  path.parent.mkdir(parents=True, exist_ok=True)
  path.touch() if path.suffix else path.mkdir(exist_ok=True)
  assert build_footage(listed, tmp_path / "out", SETTINGS).num_images == 1
  assert not list((tmp_path / "out").glob(".build"))


def test_a_second_build_of_one_directory_is_refused(hostile, tmp_path):
  folder, *_ = hostile
  listed, out = listing(folder, ["good.png"]), tmp_path / "out"

  def build_meanwhile(task, numbers):
    with pytest.raises(InputError, match="another process is building"):
      build_footage(listed, out, SETTINGS)
    for number in numbers:
      task(number)

  built = build_footage(listed, out, SETTINGS, run=build_meanwhile)
  assert built.num_images == 1


def test_leftovers_of_a_finished_build_are_removed(hostile, tmp_path):
  """As if killed after build.json, with another writer still running."""
  folder, *_ = hostile
  listed, out = listing(folder, ["good.png"]), tmp_path / "out"
  build_footage(listed, out, SETTINGS)
  before = digests(out)
  (out / ".build").mkdir()
  (out / ".build" / "scan-000000.0123456789ab.tmp").mkdir()
  (out / "build.json.0123456789ab.tmp").touch()
  build_footage(listed, out, SETTINGS)
  assert digests(out) == before
  assert not (out / ".build").exists()


def test_a_finished_build_does_nothing(hostile, tmp_path):
  folder, *_ = hostile
  listed = listing(folder, ["good0.mp4", "good.png"])
  out = tmp_path / "out"
  first = build_footage(listed, out, SETTINGS)
  before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}

  def refuse(task, numbers):
    raise AssertionError("tasks were run")

  again = build_footage(listed, out, SETTINGS, run=refuse)
  assert again == first == (1, 1, {})
  assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
  for change in (
    {"listed": listing(folder, ["good1.mp4"])},
    {"settings": FootageSettings(shard_size=4)},
  ):
    arguments = {"listed": listed, "settings": SETTINGS} | change
    with pytest.raises(InputError, match="another list or other settings"):
      build_footage(arguments["listed"], out, arguments["settings"])
    listed = listing(folder, ["good0.mp4", "good.png"])


def test_limits_quarantine_by_name(hostile, tmp_path):
  folder, *_ = hostile
  still = np.repeat(render(1)[:1], 12, axis=0)
  (tmp_path / "still.mp4").write_bytes(video.encode_mp4(still, 12))
  (tmp_path / "black.mp4").write_bytes(
    video.encode_mp4(np.zeros_like(still), 12)
  )
  (tmp_path / "moving.mp4").write_bytes(video.encode_mp4(render(6), 12))
  names = [str(tmp_path / f"{n}.mp4") for n in ("still", "black", "moving")]
  names.append(str(folder / "good.png"))
  limits = Limits(min_motion=0.01, min_brightness=0.05)
  out = tmp_path / "out"
  build_footage(
    listing(tmp_path, names), out,
    FootageSettings(scan=WHOLE, limits=limits),
  )  # fmt: skip
  reasons = {d.path.rsplit("/")[-1]: d.reason for d in quarantine(out)}
  assert reasons.keys() == {"still.mp4", "black.mp4"}
  assert reasons["still.mp4"] == "min_motion"


def test_a_stall_or_a_crash_costs_one_file(hostile, tmp_path, monkeypatch):
  """A user function hangs, aborts and raises, on one file each."""
  folder, *_ = hostile
  (tmp_path / "judge.py").write_text(
    "import os, time\n"
    "def judge(frames):\n"
    "  if frames.shape[1] == 63: time.sleep(600)\n"
    "  if frames.shape[1] == 96: os.abort()\n"
    "  if frames.mean() < 1: raise KeyError(frames.shape)\n"
    "  return frames.mean()\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(guard, "_HERE", threading.local())  # starts a new child
  settings = FootageSettings(
    scan=ScanSettings(
      split_shots=False, min_frames=8, aesthetics="judge:judge"
    ),
    stall_seconds=20,
  )
  names = ["good0.mp4", "odd.mkv", "turned.mp4", "black.mp4", "good2.mp4"]
  (folder / "black.mp4").write_bytes(
    video.encode_mp4(np.zeros((12, 64, 96, 3), np.uint8), 12)
  )
  out = tmp_path / "out"
  built = build_footage(listing(folder, names), out, settings)
  reasons = {d.path: d.reason for d in quarantine(out)}
  assert reasons == {
    "odd.mkv": "stalled",
    "turned.mp4": "crashed",
    "black.mp4": "failed",
  }
  assert built.num_videos == 2
  record = Dataset([dataset_dir(out, "text_video")])[0]
  frames, _ = video.decode_mp4(record["video"])
  assert record["aesthetics"] == pytest.approx(frames.mean(), rel=0.05)


def test_captions_are_kept_apart_or_joined(hostile, tmp_path):
  folder, *_ = hostile
  row = {"path": "good0.mp4", "captions": ["one.", "two."]}
  for join, expected in ((False, [b"one.", b"two."]), (True, [b"one. two."])):
    settings = FootageSettings(
      scan=ScanSettings(split_shots=False, join_captions=join, min_frames=8)
    )
    out = tmp_path / str(join)
    build_footage(manifest(folder, [row]), out, settings)
    record = Dataset([dataset_dir(out, "text_video")])[0]
    assert record["captions"] == expected


def test_rows_of_one_file_are_one_example(hostile, tmp_path):
  folder, *_ = hostile
  names = ["good0.mp4", "good1.mp4"]
  rows = [{"path": names[n % 2], "caption": f"{n}"} for n in range(1000)]
  out = tmp_path / "out"
  assert build_footage(manifest(folder, rows), out, SETTINGS) == (2, 0, {})
  dataset = Dataset([dataset_dir(out, "text_video")])
  captions = sorted(len(dataset[n]["captions"]) for n in range(2))
  assert captions == [500, 500]


def test_start_and_end_select_a_part(hostile, tmp_path):
  folder, *_ = hostile
  rows = [
    {"path": "good0.mp4", "caption": "x", "start": 0.25, "end": 0.95},
    {"path": "good1.mp4", "caption": "x", "start": 5},
    {"path": "good1.mp4", "caption": "x", "start": 1e300},
  ]
  out = tmp_path / "out"
  build_footage(manifest(folder, rows), out, SETTINGS)
  record = Dataset([dataset_dir(out, "text_video")])[0]
  assert (record["num_frames"], record["start"]) == (9, 0.25)
  frames, _ = video.decode_mp4(record["video"])
  assert np.abs(frames.astype(int) - render(0)[3:12]).mean() < 4
  assert [d.reason for d in quarantine(out)] == ["no-frames"] * 2


@pytest.mark.parametrize("kept", [0, 5])
def test_a_file_that_changed_after_its_scan_is_an_error(tmp_path, kept):
  path = tmp_path / "clip.mp4"
  path.write_bytes(video.encode_mp4(render(1), 12))
  source = ManifestRow(1, "clip.mp4", str(path), ("x",))
  [candidate], _ = scan(source, path, WHOLE)
  late = candidate._replace(start=9.0, last=9.5) if not kept else candidate
  path.write_bytes(video.encode_mp4(render(1)[: kept or 12], 12))
  with pytest.raises(InputError, match=f"{kept} frames where there were 12"):
    encode(late, path, 720)


def test_an_edited_video_is_cut_into_shots(footage, tmp_path):
  """bikes.mp4 has cuts at 30, 76, 137, 187 and 242."""
  rows = [{"path": str(footage["bikes"]), "caption": "a street"}]
  out = tmp_path / "out"
  settings = FootageSettings(scan=ScanSettings(max_seconds=1.2), short_side=128)
  build_footage(manifest(tmp_path, rows), out, settings)
  dataset = Dataset([dataset_dir(out, "text_video")])
  spans = sorted(
    (round(r["start"] * 25), round(r["start"] * 25) + r["num_frames"])
    for r in map(dataset.__getitem__, range(len(dataset)))
  )
  cuts = [0, 30, 76, 137, 187, 242, 250]
  for start, stop in spans:
    assert any(a <= start < stop <= b for a, b in itertools.pairwise(cuts))
    assert stop - start <= 31
  assert sum(stop - start for start, stop in spans) > 190
  # The last shot has 8 frames.
  last = [d for d in quarantine(out) if d.reason == "no-shot"]
  assert [round(d.start * 25) for d in last] == [240]
