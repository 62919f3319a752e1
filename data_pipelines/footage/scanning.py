"""The first round of a build: each task looks at the files of one group."""

from pathlib import Path

from data_pipelines.footage import scan
from data_pipelines.footage.groups import read_group
from data_pipelines.footage.manifest import local_file
from data_pipelines.footage.quarantine import Drop, dropped
from data_pipelines.footage.scan import Candidate, ScanSettings
from data_pipelines.running.guard import guarded
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import replacing_folder, write_json_lines


def scan_task(
  work: Path, settings: ScanSettings, seconds: float | int, number: int
) -> None:
  """Scans a group; what is found and what is not good appears together.

  Args:
    work: see `build.work_dir`.
    settings: what counts as a clip.
    seconds: after which the work on one file is given up.
    number: of the group.
  """
  if is_scanned(work, number):
    return
  candidates: list[Candidate] = []
  drops: list[Drop] = []
  for source in read_group(work, number):
    try:
      with local_file(source.location, seconds=seconds) as file:
        good, bad = guarded(scan.scan, source, file, settings, seconds=seconds)
      candidates += good
      drops += bad
    except InputError as error:
      drops.append(dropped(source.row, source.path, None, error))
  with replacing_folder(_result(work, number)) as folder:
    write_json_lines(
      folder / "candidates.jsonl", (c._asdict() for c in candidates)
    )
    write_json_lines(folder / "drops.jsonl", (d._asdict() for d in drops))


def is_scanned(work: Path, number: int) -> bool:
  """Whether a group is done."""
  return _result(work, number).exists()


def candidates_of(work: Path, number: int) -> Path:
  """The candidates of a group that is done, one a line."""
  return _result(work, number) / "candidates.jsonl"


def drops_of(work: Path, number: int) -> Path:
  """What a group that is done left out, one a line."""
  return _result(work, number) / "drops.jsonl"


def _result(work: Path, number: int) -> Path:
  return work / f"scan-{number:06d}"
