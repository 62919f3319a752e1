"""Speed and size of examples stored in several ways.

Times are CPU seconds of one core, so that other work on the machine disturbs
them little; still, ratios and bytes are more reliable.
"""

import functools
import math
import statistics
import tempfile
import time
import timeit
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.loading.buckets import Window
from data_pipelines.loading.reader import Reader
from data_pipelines.media import pictures, video
from data_pipelines.shards import tfrecord
from data_pipelines.shards.dataset import Dataset, dataset_dir, media_of
from i2vgen_jax import preprocessing
from i2vgen_jax.cascade import BUNDLED
from i2vgen_jax.evaluation.quality import psnr
from i2vgen_jax.tokenizer import Tokenizer
from launch.benchmarks.demand import Case
from launch.benchmarks.table import cell, row
from launch.progress import ProgressBar, note

DECODER = "decoder alone"
LATENTS = "latents (stand-in)"
# Side of the CLIP view.
_CLIP = 224
# Quality of the clips that builds write.
_CRF = 18


class RecordingReader(Reader):
  """Keeps what it decodes, so that other ways can store the same frames.

  Attributes:
    decoded: (record, window, frames) of each example.
  """

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.decoded: list[tuple[dict, Window, np.ndarray]] = []

  def _load_pixels(self, record, window, view, size):
    example = super()._load_pixels(record, window, view, size)
    self.decoded.append((record, window, example["frames"]))
    return example

  def read(self, count: int) -> None:
    """Reads the first `count` examples."""
    for step in range(count):
      self.batch(step)


class Way(NamedTuple):
  """A way to store examples.

  Attributes:
    name: name in the table.
    kilobytes: mean size of an example.
    psnr: mean PSNR against the frames of the dataset, in dB; NaN if the way
      does not store frames of its own.
    read: reads all examples once.
  """

  name: str
  kilobytes: float
  psnr: float
  read: Callable[[], None]


def measure(
  data_dir: Path, case: Case, count: int, repeats: int, seed: int
) -> str | None:
  """Reads examples of a case, stored in several ways.

  Args:
    data_dir: data_dir of the dataset.
    case: training step that reads them.
    count: number of examples; fewer if the dataset has fewer.
    repeats: number of passes, of which the median counts.
    seed: seed of the order.

  Returns:
    A table, or None if the dataset has no example for the case.
  """
  directory, bucket = dataset_dir(data_dir, case.kind), case.bucket
  if not directory.exists():
    return None
  matching = functools.partial(bucket.fits, [bucket.ratio])
  count = min(count, len(Dataset([directory]).where(matching)))
  if not count:
    note(f"{case}: left out, as no clip in {directory} is long enough")
    return None
  # A reader caches what it decoded: each pass needs its own.
  readers = [make_reader(directory, case, seed) for _ in range(repeats + 1)]
  speeds = {}
  with tempfile.TemporaryDirectory() as folder, ProgressBar() as progress:
    ways = _ways(readers, count, Path(folder))
    for done, way in enumerate(ways, 1):
      seconds = timeit.repeat(
        way.read, timer=time.process_time, repeat=repeats, number=1
      )
      speeds[way] = count / statistics.median(seconds)
      progress(str(case), done, len(ways))
  return table(case, speeds)


def make_reader(directory: Path, case: Case, seed: int) -> RecordingReader:
  """A reader of one dataset for one case."""
  kinds = {"text_video": [], "text_image": []} | {case.kind: [directory]}
  return RecordingReader(
    *kinds.values(),
    batch_size=1,
    size=case.bucket.size,
    buckets=[case.bucket[:3]],
    clip_size=_CLIP,
    tokenizer=Tokenizer.load(BUNDLED / "tokenizer"),
    seed=seed,
  )


def table(case: Case, speeds: Mapping[Way, float]) -> str:
  """The table of a case, from the examples per second of each way."""
  [alone] = [speed for way, speed in speeds.items() if way.name == DECODER]
  rows = [
    f"{case}; one example: 3 x {case.forward:.3f} + {case.encode:.2f} TFLOP",
    row("", "kB", "PSNR dB", "a second", "alone", "want", "cores", "MB/s"),
  ]
  for way, speed in speeds.items():
    cells = [*map(cell, (way.kilobytes, way.psnr, speed))]
    cells.append(cell(speed / alone, 2))
    if way.name != DECODER:
      want = case.wanted(way.name == LATENTS)
      cells += map(cell, (want, want / speed, want * way.kilobytes / 1e3))
    rows.append(row(way.name, *cells))
  return "\n".join(rows)


def _ways(
  readers: list[RecordingReader], count: int, folder: Path
) -> list[Way]:
  """The same examples, stored in several ways."""
  first = readers.pop()
  first.read(count)
  decoded = first.decoded
  size = float(np.mean([len(media_of(record)) for record, *_ in decoded])) / 1e3
  clips = [frames for _, _, frames in decoded]
  return [
    Way("as built", size, math.nan, lambda: readers.pop().read(count)),
    Way(DECODER, size, math.nan, lambda: _decode_alone(decoded)),
    *(_store(folder, codec, clips) for codec in _codecs(clips[0].shape)),
  ]


def _decode_alone(decoded: Iterable[tuple[dict, Window, np.ndarray]]) -> None:
  for record, window, _ in decoded:
    if "image" in record:
      preprocessing.load_picture(record["image"], "picture")
    else:
      until = window.seconds(record["fps"])[-1]
      video.count_frames(record["video"], until=until)


# ---- Ways to store only what a bucket shows ----

_Pieces = list[bytes]


class _Codec(NamedTuple):
  name: str
  encode: Callable[[np.ndarray], _Pieces]
  decode: Callable[[_Pieces], np.ndarray]


def _codecs(shape: tuple[int, ...]) -> Iterator[_Codec]:
  """Ways to encode frames of this shape."""
  num_frames, height, width, _ = shape
  if num_frames > 1:
    yield _Codec(
      f"H.264 crf {_CRF}, this size",
      lambda frames: [video.encode_mp4(frames, 8, crf=_CRF)],
      lambda pieces: video.decode_mp4(pieces[0])[0],
    )
  yield _Codec(
    "JPEG q95, this size",
    lambda frames: list(map(pictures.encode_jpeg, frames)),
    lambda pieces: np.stack(
      [preprocessing.load_picture(piece, "frame") for piece in pieces]
    ),
  )
  yield _Codec(
    "raw, this size",
    lambda frames: [frames.tobytes()],
    lambda pieces: np.frombuffer(pieces[0], np.uint8).reshape(shape).copy(),
  )
  # Mean and variance of 4 channels for 8x8 pixels. Random numbers take as long
  # to read as latents.
  latents = num_frames, height // 8, width // 8, 8
  rng = np.random.default_rng(0)
  yield _Codec(
    LATENTS,
    lambda _: [rng.standard_normal(latents).astype(np.float16).tobytes()],
    lambda pieces: np.frombuffer(pieces[0], np.float16).astype(np.float32),
  )


def _store(folder: Path, codec: _Codec, clips: Sequence[np.ndarray]) -> Way:
  """Writes a shard of the frames."""
  name, encode, decode = codec
  shard = folder / name.split()[0]
  examples = [tfrecord.encode_example({"pieces": encode(c)}) for c in clips]
  tfrecord.write_shard(shard, (tfrecord.Record(e, 1, 1, 1) for e in examples))

  def stored() -> Iterator[np.ndarray]:
    for offset, length, *_ in tfrecord.read_index(shard).tolist():
      data = tfrecord.read_record(shard, offset, length)
      yield decode(tfrecord.decode_example(data, ("pieces",))["pieces"])

  def read() -> None:
    for values in stored():
      if name != LATENTS:  # their CLIP embedding would be stored as well
        preprocessing.clip_view(values[0], values.shape[2], _CLIP)

  quality = math.nan
  if name != LATENTS:
    quality = float(np.mean([*map(psnr, stored(), clips)]))
  size = float(np.mean([*map(len, examples)])) / 1e3
  return Way(name, size, quality, read)
