"""`i2vgen convert`: weights from one form to another."""

import dataclasses
import itertools
import os
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from i2vgen_jax import interop
from i2vgen_jax.errors import enough_memory
from i2vgen_jax.interop import StoredNetwork, StoredWeights, write
from i2vgen_jax.interop.choices import Choices
from i2vgen_jax.stage import STAGES
from launch import arguments
from launch.progress import ProgressBar, note


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
  """Converts weights between the public forms and the native one.

      i2vgen convert ali-vilab/i2vgen-xl cascade --to orbax
      i2vgen convert i2vgen_xl_00854500.pth cascade --to orbax --dtype bfloat16
      i2vgen convert runs/released/export/base unet.pth --to vgen

      i2vgen convert cascade merged --to orbax --lora runs/lora/export/lora

  The keys of a file decide what it is. What happens to each key is printed
  before anything is written; a file that does not fit completely is refused.

  Attributes:
    source: A weight file, a folder of any form, or owner/name on the Hub.
    target: A folder; a .pth file for vgen and modelscope.
    to: Form of the target: orbax is the native one; vgen and modelscope hold
      one U-Net.
    dtype: Type of the weights; by default as stored.
    lora: File or folder of a LoRA, which is added to the weights; PATH:0.8 adds
      it times 0.8.
    choose: Value of a choice where the forms differ: concat_gain,
      scaling_factor, pad_token_id, to_clean, reference_start or black_edge;
      by default that of the source's form.
  """

  source: tyro.conf.Positional[arguments.Weights]
  target: tyro.conf.Positional[Path]
  to: Literal["orbax", "diffusers", "vgen", "modelscope"]
  dtype: Literal["float32", "bfloat16", "float16"] | None = None
  lora: arguments.Lora | None = None
  choose: tyro.conf.UseAppendAction[tuple[arguments.Pair, ...]] = ()


def main(argv: list[str]) -> None:
  """Reports what happens to each key, then converts.

  Raises:
    InputError: the source is incomplete, or the target cannot hold it.
  """
  args = arguments.parse(Arguments, argv, "i2vgen convert")
  half = args.dtype in ("bfloat16", "float16")
  choices = dict(args.choose)
  weights = interop.open_weights(args.source, choices=choices, half=half)
  if args.lora is not None:
    weights = weights.with_lora(*args.lora)
  if args.to in ("vgen", "modelscope"):
    weights = _only_unets(weights, args.to)
  _report(weights)
  write.check(weights.networks, args.to)
  advice = "convert one network of the source at a time"
  with enough_memory(advice), ProgressBar() as progress:
    shown = {n: _shown(net, progress) for n, net in weights.networks.items()}
    shown = dataclasses.replace(weights, networks=shown)
    write.write(shown, args.target, args.to, args.dtype)
  note(f"wrote {args.target}")
  if args.to == "diffusers" and (missing := write.missing_parts(weights)):
    note(f"this is not a whole repository: it lacks {', '.join(missing)}")


def _only_unets(weights: StoredWeights, form: str) -> StoredWeights:
  unets = {n: weights.networks[n] for n in STAGES if n in weights.networks}
  if others := sorted(weights.networks.keys() - unets.keys()):
    note(f"{form} holds only a U-Net: {', '.join(others)} are left out")
  return dataclasses.replace(weights, networks=unets)


def _report(weights: StoredWeights) -> None:
  """Prints keys on stdout and a summary on stderr; raises if any is wrong."""
  reports = {name: n.report() for name, n in weights.networks.items()}
  try:
    for name, report in reports.items():
      for line in report.lines():
        print(f"{name}  {line}")
    sys.stdout.flush()
  except BrokenPipeError:
    # The reader, such as `head`, has closed the pipe. Without this, Python
    # would fail at exit when it flushes the rest.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  for name, r in reports.items():
    network = weights.networks[name]
    kind = ", ".join(filter(None, (network.form, network.variant)))
    note(
      f"{name} ({kind}): {len(r.mapped)} mapped, {len(r.missing)} missing, "
      f"{len(r.unexpected)} unexpected, {len(r.wrong_shapes)} with a wrong "
      f"shape, {len(r.ignored)} ignored"
    )
  for report in reports.values():
    report.check()
  configs = {name: n.config for name, n in weights.networks.items()}
  used = Choices.of(configs).items()
  note("choices: " + ", ".join(f"{name} {value}" for name, value in used))


def _shown(network: StoredNetwork, progress: ProgressBar) -> StoredNetwork:
  """The network, which shows how many of its tensors have been read."""
  tensors, numbers = network.tensors, itertools.count(1)

  def read(key: str) -> np.ndarray:
    array = tensors.read(key)
    progress(network.name, next(numbers), len(tensors.shapes))
    return array

  counted = dataclasses.replace(tensors, read=read)
  return dataclasses.replace(network, tensors=counted)
