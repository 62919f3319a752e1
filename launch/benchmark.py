"""`i2vgen data benchmark`: what reading and building a dataset costs.

Times are seconds of one core (CPU time of one thread), so that other work on
the machine disturbs them little; still, trust ratios and bytes before them.
"""

import functools
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.footage import scan, write
from data_pipelines.footage.manifest import ManifestRow
from data_pipelines.footage.settings import ScanSettings
from data_pipelines.loading.buckets import Window, fits
from data_pipelines.loading.cache import Views
from data_pipelines.loading.reader import Reader
from data_pipelines.media import pictures, video
from data_pipelines.shards import tfrecord
from data_pipelines.shards.dataset import Dataset, Kind, dataset_dir
from i2vgen_jax import preprocessing
from i2vgen_jax.cascade import BUNDLED
from i2vgen_jax.errors import InputError
from i2vgen_jax.evaluation.quality import psnr
from i2vgen_jax.tokenizer import Tokenizer
from launch import demand
from launch.demand import Case
from launch.progress import ProgressBar, note

# Side of the CLIP view.
_CLIP = 224
# As builds write clips; latents are a mean and a variance of 4 channels for 8
# by 8 pixels, in float16.
_CRF = 18
_LATENT_CHANNELS, _LATENT_STEP = 8, 8


class Decoded(NamedTuple):
  """One thing that the reader decoded: the record, which part of it, what."""

  record: dict
  window: Window
  views: Views


class _Way(NamedTuple):
  """A way to keep examples, and a pass that reads all of them once."""

  name: str
  num_bytes: float
  psnr: float
  read: Callable[[], None]


class _Watched(Reader):
  """Remembers what it decodes, so that others can decode the same."""

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.decoded: list[Decoded] = []

  def _load(self, record, window, view, size) -> Views:
    views = super()._load(record, window, view, size)
    self.decoded.append(Decoded(record, window, views))
    return views


def benchmark(
  data_dir: Path,
  count: int,
  repeats: int,
  seed: int,
  cases: Sequence[Case] = demand.CASES,
) -> str:
  """Measures a dataset.

  Args:
    data_dir: what `i2vgen data build` wrote.
    count: examples of one pass; fewer where fewer fit.
    repeats: passes of each kind, one after the other; the median counts.
    seed: of the draw.
    cases: what training would ask for.

  Returns:
    The tables, as text.

  Raises:
    InputError: no dataset, or no case that it can serve.
  """
  tokenizer = Tokenizer.load(BUNDLED / "tokenizer")
  speeds: list[demand.Speed] = []
  for case in cases:
    directory = dataset_dir(data_dir, case.kind)
    if not directory.exists():
      continue
    bucket = case.bucket
    alone = functools.partial(fits, bucket, [bucket.ratio])
    number = min(count, len(Dataset([directory]).where(alone)))
    if not number:
      note(f"{case}: left out, as nothing in {directory} is long enough")
      continue
    readers = functools.partial(_reader, directory, case, tokenizer, seed)
    with tempfile.TemporaryDirectory() as folder:
      ways = _ways(case, readers, number, repeats, Path(folder))
      speeds += _timed(case, ways, number, repeats)
  if not speeds:
    raise InputError(
      f"no dataset to measure in {data_dir}; give the directory that `i2vgen"
      " data build` wrote, with clips of 16 frames or more"
    )
  return demand.tables(speeds, _build_costs(data_dir, count, seed))


def _reader(
  directory: Path, case: Case, tokenizer: Tokenizer, seed: int
) -> _Watched:
  pictures = case.kind == "text_image"
  return _Watched(
    [] if pictures else [directory],
    [directory] if pictures else [],
    batch_size=1,
    size=case.bucket.size,
    buckets=[(*case.bucket[:3],)],
    clip_size=_CLIP,
    tokenizer=tokenizer,
    seed=seed,
  )


def _ways(
  case: Case,
  reader: Callable[[], _Watched],
  number: int,
  repeats: int,
  folder: Path,
) -> list[_Way]:
  """What is compared: the same examples, kept in several ways."""
  first = reader()
  _read(first, number)
  decoded = first.decoded
  # A reader remembers what it decoded: each pass needs its own.
  fresh = [reader() for _ in range(repeats)]
  media = [_media(item.record) for item in decoded]
  size = float(np.mean([len(m) for m in media]))
  ways = [
    _Way("as built", size, math.nan, lambda: _read(fresh.pop(), number)),
    _Way(demand.ALONE, size, math.nan, lambda: _decode_alone(decoded)),
  ]
  kinds = [_jpeg, _raw, _latents]
  if case.bucket.num_frames > 1:
    kinds.insert(0, _h264)
  return ways + [_kept(folder, kind, decoded) for kind in kinds]


def _timed(
  case: Case, ways: Sequence[_Way], number: int, repeats: int
) -> list[demand.Speed]:
  seconds: dict[str, list[float]] = {way.name: [] for way in ways}
  line = ProgressBar()
  line.begin(str(case), repeats)
  for repeat in range(repeats):
    for way in ways:
      begin = time.process_time()
      way.read()
      seconds[way.name].append(time.process_time() - begin)
    line.update(repeat + 1)
  line.end()
  return [
    demand.Speed(
      case, way.name, way.num_bytes, way.psnr,
      number / statistics.median(seconds[way.name]),
    )
    for way in ways
  ]  # fmt: skip


def _read(reader: Reader, number: int) -> None:
  for step in range(number):
    reader.batch(step)


def _media(record: dict) -> bytes:
  return record["image"] if "image" in record else record["video"]


def _decode_alone(decoded: Iterable[Decoded]) -> None:
  for record, window, _ in decoded:
    if "image" in record:
      preprocessing.load_picture(record["image"], "picture")
    else:
      until = window.seconds(record["fps"])[-1]
      video.count_frames(record["video"], until=until)


# ---- Ways to keep just what a bucket shows: name, pieces, and the inverse ----

_Pieces = list[bytes]
_Codec = tuple[
  str, Callable[[np.ndarray], _Pieces], Callable[[_Pieces], np.ndarray]
]


def _h264(shape: tuple[int, ...]) -> _Codec:
  return (
    f"H.264 crf {_CRF}, this size",
    lambda frames: [video.encode_mp4(frames, 8, crf=_CRF)],
    lambda pieces: video.decode_mp4(pieces[0])[0],
  )


def _jpeg(shape: tuple[int, ...]) -> _Codec:
  return (
    "JPEG q95, this size",
    lambda frames: [pictures.encode_jpeg(frame) for frame in frames],
    lambda pieces: np.stack(
      [preprocessing.load_picture(p, "frame") for p in pieces]
    ),
  )


def _raw(shape: tuple[int, ...]) -> _Codec:
  return (
    "raw, this size",
    lambda frames: [frames.tobytes()],
    lambda pieces: np.frombuffer(pieces[0], np.uint8).reshape(shape).copy(),
  )


def _latents(shape: tuple[int, ...]) -> _Codec:
  """Random numbers in the shape of latents: reading them costs the same."""
  f, h, w, _ = shape
  shape = f, h // _LATENT_STEP, w // _LATENT_STEP, _LATENT_CHANNELS
  rng = np.random.default_rng(0)
  return (
    "latents (stand-in)",
    lambda _: [rng.standard_normal(shape).astype(np.float16).tobytes()],
    lambda p: np.frombuffer(p[0], np.float16).reshape(shape).astype(np.float32),
  )


def _kept(
  folder: Path,
  kind: Callable[[tuple[int, ...]], _Codec],
  decoded: Sequence[Decoded],
) -> _Way:
  """Writes a shard of the decoded frames, and says how it is read."""
  clips = [item.views.frames for item in decoded]
  name, encode, decode = kind(clips[0].shape)
  shard = folder / name.split()[0]
  tfrecord.write_shard(shard, (_record(encode(clip), clip) for clip in clips))
  quality = math.nan
  if kind is not _latents:
    pairs = zip(_stored(shard), clips, strict=True)
    quality = float(np.mean([psnr(decode(p), clip) for p, clip in pairs]))

  def read() -> None:
    for pieces in _stored(shard):
      values = decode(pieces)
      if kind is not _latents:  # whose CLIP vector would be kept as well
        preprocessing.clip_view(values[0], values.shape[2], _CLIP)

  size = float(tfrecord.read_index(shard)[:, 1].mean())
  return _Way(name, size, quality, read)


def _record(pieces: _Pieces, clip: np.ndarray) -> tfrecord.Record:
  height, width = clip.shape[1:3]
  data = tfrecord.encode_example({"pieces": pieces})
  return tfrecord.Record(data, len(clip), width, height)


def _stored(shard: Path) -> Iterable[_Pieces]:
  for offset, length, *_ in tfrecord.read_index(shard).tolist():
    data = tfrecord.read_record(shard, offset, length)
    yield tfrecord.decode_example(data, ("pieces",))["pieces"]


# ---- Building ----


def _build_costs(
  data_dir: Path, count: int, seed: int
) -> list[demand.BuildCost]:
  """Scans and writes some of the clips and pictures once more."""
  found = []
  for kind, suffix in (("text_video", ".mp4"), ("text_image", ".jpg")):
    directory = dataset_dir(data_dir, kind)
    if directory.exists():
      with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"example{suffix}"
        found.append(_build_cost(kind, directory, file, count, seed))
  return found


def _build_cost(
  kind: Kind, directory: Path, file: Path, count: int, seed: int
) -> demand.BuildCost:
  dataset = Dataset([directory])
  chosen = np.random.default_rng(seed).choice(
    len(dataset), min(count, len(dataset)), replace=False
  )
  settings = ScanSettings(min_frames=1, max_seconds=math.inf)
  scanned, written, frames, sizes = [], [], [], []
  line = ProgressBar()
  line.begin(f"{kind}, built again", len(chosen))
  for done, number in enumerate(chosen.tolist(), 1):
    record = dataset[number]
    file.write_bytes(_media(record))
    frames.append(record.get("num_frames", 1))
    sizes.append(len(_media(record)))
    row = ManifestRow(1, file.name, str(file), ("",))
    begin = time.process_time()
    candidates, _ = scan.scan(row, file, settings)
    scanned.append((time.process_time() - begin) / frames[-1])
    side = min(record["width"], record["height"])
    for candidate in itertools.islice(candidates, 1):
      begin = time.process_time()
      write.encode(candidate, file, side)
      passed = time.process_time() - begin
      written.append(passed / candidate.num_frames)
    line.update(done)
  line.end()
  return demand.BuildCost(
    kind=kind,
    num_frames=float(np.mean(frames)),
    num_bytes=float(np.mean(sizes)),
    scan_seconds=statistics.median(scanned),
    write_seconds=statistics.median(written) if written else math.nan,
  )
