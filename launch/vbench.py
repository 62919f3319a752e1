"""Videos for VBench-I2V, and its results beside published ones.

    i2vgen vbench videos --weights WEIGHTS --info vbench2_i2v_full_info.json \\
        --images data/crop/16-9 --output videos
    i2vgen vbench results evaluation_results

VBench (Huang et al. 2024; https://github.com/Vchitect/VBench) has networks and
an environment of its own: make the videos here, run its `evaluate_i2v.py` on
them there, and read its results here.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

from tyro.conf import Positional

from data_pipelines.media import video
from i2vgen_jax import preprocessing
from i2vgen_jax.errors import InputError, reading
from i2vgen_jax.files import read_json
from launch import arguments, outputs
from launch.arguments import Count, Seed
from launch.evaluation import clips
from launch.evaluation.generation import Given, generate
from launch.progress import note
from launch.sample import Settings, open_plan

# Published results in percent, not measured by this repository.
PUBLISHED = {
  "I2VGen-XL": {
    "i2v_subject": 96.74, "i2v_background": 95.44, "dynamic_degree": 24.96,
  },
  "SVD-XT-1.1": {
    "i2v_subject": 97.51, "i2v_background": 97.62, "dynamic_degree": 43.17,
  },
  "DynamiCrafter-1024": {
    "i2v_subject": 96.71, "i2v_background": 96.05, "dynamic_degree": 47.40,
  },
}  # fmt: skip
# Dimensions of the suite, in the order of its paper.
_DIMENSIONS = (
  "i2v_subject", "i2v_background", "camera_motion", "subject_consistency",
  "background_consistency", "motion_smoothness", "dynamic_degree",
  "aesthetic_quality", "imaging_quality",
)  # fmt: skip
# Bytes of a file name.
_MAX_NAME = 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class Videos(Settings):
  """Makes the videos that VBench-I2V judges, named PROMPT-INDEX.mp4.

  Videos that are there already are kept, so that the same command continues.

  Attributes:
    info: The suite's vbench2_i2v_full_info.json.
    images: Folder with the images of the suite, cropped to the aspect ratio
      that is nearest to that of the videos.
    output: Folder for the videos.
    num_videos: Number of videos of each prompt; the suite asks for five.
    batch_size: Number of videos that are made at once; 1 takes least memory.
    seed: Seed of the first video; each has its own.
  """

  info: Path
  images: Path
  output: Path
  num_videos: Count = 5
  batch_size: Count = 1
  seed: Seed = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
  """Prints the results of VBench-I2V beside published ones, in percent.

  Attributes:
    folder: Folder with its *_eval_results.json.
  """

  folder: Positional[Path]


def main(argv: list[str]) -> None:
  """Makes the videos, or prints the results.

  Raises:
    InputError: the suite, the weights or the results cannot be read.
  """
  args = arguments.parse(Videos | Results, argv, "i2vgen vbench", __doc__)
  if isinstance(args, Results):
    print(*table(read_results(args.folder)), sep="\n")
  else:
    make_videos(args)


def make_videos(args: Videos) -> None:
  """Makes the videos that are missing."""
  suite = read_suite(args.info, args.images)
  names = {
    f"{prompt}-{index}.mp4": image
    for prompt, image in suite.items()
    for index in range(args.num_videos)
  }
  for name in names:
    if "/" in name or len(name.encode()) > _MAX_NAME:
      raise InputError(
        f"prompt {name[:60]!r} of {args.info} cannot be a file name; leave it "
        "out"
      )
  seeds = dict(
    zip(names, range(args.seed, args.seed + len(names)), strict=True)
  )
  cascade, plan = open_plan(args)
  clips.check(plan)
  outputs.make_folder(args.output)
  missing = [name for name in names if not (args.output / name).exists()]
  note(f"{len(missing)} of {len(names)} videos are missing")
  if not missing:
    return

  def read(number: int) -> Given:
    name = missing[number]
    prompt, _, _ = name.rpartition("-")
    return Given(name, prompt, preprocessing.load_picture(names[name]))

  *_, last = plan.values()
  for batch, made in generate(
    cascade,
    plan,
    len(missing),
    read,
    seeds=[seeds[name] for name in missing],
    batch_size=args.batch_size,
    label="videos",
  ):
    encode = functools.partial(video.encode_mp4, fps=last.sampling.fps)
    files = map(encode, made[last.name])
    paths = [args.output / given.name for given in batch]
    outputs.write(dict(zip(paths, files, strict=True)))


def read_suite(info: Path, images: Path) -> dict[str, Path]:
  """The image of each prompt.

  Raises:
    InputError: the list is not that of VBench-I2V, a prompt has two images, or
      an image is missing.
  """
  rows = read_json(info, list, "give the suite's vbench2_i2v_full_info.json")
  suite: dict[str, Path] = {}
  with reading(info, "give the suite's vbench2_i2v_full_info.json"):
    for row in rows:
      image = images / row["image_name"]
      if suite.setdefault(row["prompt_en"], image) != image:
        raise ValueError(f"two images of the prompt {row['prompt_en']!r}")
  for image in suite.values():
    if not image.is_file():
      raise InputError(
        f"no image {image} of the suite; give the folder of one aspect ratio, "
        "such as data/crop/16-9"
      )
  return suite


def read_results(folder: Path) -> dict[str, float]:
  """Results in percent by dimension.

  Raises:
    InputError: there are none, or a file is not of VBench.
  """
  found: dict[str, float] = {}
  advice = "give the folder that VBench wrote"
  for path in sorted(folder.glob("*_eval_results.json")):
    values = read_json(path, dict, advice)
    with reading(path, advice):
      for dimension, (mean, *_) in values.items():
        found[dimension] = 100 * float(mean)
  if not found:
    raise InputError(f"no *_eval_results.json in {folder}; {advice}")
  return found


def table(results: Mapping[str, float]) -> Iterator[str]:
  """Lines for people: the results and the published ones by dimension."""
  columns = {"yours": results, **PUBLISHED}
  yield f"{'':24}" + "".join(f"{name:>20}" for name in columns)
  for dimension in (*_DIMENSIONS, *sorted(results.keys() - {*_DIMENSIONS})):
    values = [column.get(dimension) for column in columns.values()]
    if any(value is not None for value in values):
      cells = ("" if value is None else f"{value:.2f}" for value in values)
      yield (f"{dimension:24}" + "".join(f"{c:>20}" for c in cells)).rstrip()
