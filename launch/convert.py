"""Converts weights between the public forms and ours.

    i2vgen convert ali-vilab/i2vgen-xl cascade --to orbax
    i2vgen convert i2vgen_xl_00854500.pth cascade --to orbax --dtype bfloat16
    i2vgen convert runs/released/export/base unet.pth --to vgen

What a file is, its keys decide. Every key and its fate is printed before
anything is written; a file that does not fit entirely is refused.
"""

import dataclasses
import itertools
import os
import sys
from argparse import Namespace
from pathlib import Path

from i2vgen_jax.errors import enough_memory
from i2vgen_jax.interop import hub, stored, write
from i2vgen_jax.interop.choices import Choices
from launch import old_arguments as arguments
from launch.progress import ProgressBar, note

_DTYPES = ("float32", "bfloat16", "float16")


def parser() -> arguments.Parser:
  """The command line of `i2vgen convert`."""
  made = arguments.Parser("i2vgen convert", description=__doc__)
  add = made.add_argument
  add(
    "source",
    metavar="SRC",
    help="a weight file, a folder of any form, or owner/name on the Hub",
  )
  add(
    "target",
    metavar="DST",
    type=Path,
    help="a folder; a .pth file for vgen and modelscope",
  )
  add(
    "--to",
    required=True,
    choices=("orbax", "diffusers", "vgen", "modelscope"),
    help="orbax is ours; vgen and modelscope take a U-Net alone",
  )
  add("--dtype", choices=_DTYPES, help="default: what is stored")
  add(
    "--choose",
    type=arguments.pair,
    action="append",
    default=[],
    metavar="NAME=VALUE",
    help="where the forms differ: concat_gain, scaling_factor, pad_token_id, "
    "to_clean, reference_start, black_edge; default: as the form has it",
  )
  return made


def main(argv: list[str]) -> None:
  """Reports, then converts.

  Raises:
    InputError: the source is not whole, or the target cannot hold it.
  """
  args = parser().parse_args(argv)
  folder = hub.resolve(args.source, half=args.dtype in _DTYPES[1:])
  found = stored.find(folder, dict(args.choose))
  if args.to in ("vgen", "modelscope"):
    found = _unet_alone(found, args.to)
  _report(found)
  write.check(found, args.to)
  watched = {name: _watched(name, source) for name, source in found.items()}
  with enough_memory("convert one network of the source at a time"):
    _write(args, folder, watched)
  note(f"wrote {args.target}")
  if args.to == "diffusers":
    words = stored.tokenizer_folder(folder)
    if missing := write.missing_parts(found, words):
      note(f"no whole repository: it lacks {', '.join(missing)}")


def _unet_alone(found: dict, form: str) -> dict:
  unets = {name: s for name, s in found.items() if name in ("base", "refine")}
  if left := sorted(found.keys() - unets.keys()):
    note(f"{form} holds a U-Net alone: {', '.join(left)} stay out")
  return unets


def _report(found: dict[str, stored.StoredNetwork]) -> None:
  """All keys on standard output, a summary beside it; then what is wrong."""
  reports = {name: source.report() for name, source in found.items()}
  try:
    for name, report in reports.items():
      for line in report.lines():
        print(f"{name}  {line}")
    sys.stdout.flush()
  except BrokenPipeError:
    # `| head` has read enough. Python would stumble over the rest at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  for name, report in reports.items():
    source = found[name]
    kind = source.form + (f", {source.variant}" if source.variant else "")
    note(
      f"{name} ({kind}): {len(report.mapped)} mapped, {len(report.missing)} "
      f"missing, {len(report.unexpected)} unexpected, "
      f"{len(report.wrong_shapes)} of a wrong shape, {len(report.ignored)} "
      "ignored"
    )
  for report in reports.values():
    report.check()
  taken = Choices.of({name: s.config for name, s in found.items()})
  note("takes " + ", ".join(f"{n} {v}" for n, v in taken.items()))


def _watched(name: str, source: stored.StoredNetwork) -> stored.StoredNetwork:
  """The source, which says how many of its tensors have been read."""
  tensors, line, done = source.tensors, ProgressBar(), itertools.count(1)
  total = len(tensors.shapes)

  def read(key: str):
    array = tensors.read(key)
    if (number := next(done)) == 1:
      line.begin(name, total)
    line.update(number)
    if number == total:
      line.end()
    return array

  watched = dataclasses.replace(tensors, read=read)
  return dataclasses.replace(source, tensors=watched)


def _write(args: Namespace, folder: Path, found: dict) -> None:
  tokenizer = stored.tokenizer_folder(folder)
  match args.to:
    case "orbax":
      write.write_orbax(found, args.target, tokenizer, args.dtype)
    case "diffusers":
      write.write_diffusers(found, args.target, tokenizer, args.dtype)
    case _:
      (source,) = found.values()
      write.write_torch(source, args.target, args.to, args.dtype)
