"""Weights in any form, or those that a training run has written."""

import dataclasses
from pathlib import Path

from i2vgen_jax import interop
from i2vgen_jax.cascade import BUNDLED
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import read_json
from i2vgen_jax.training.record import CONFIG, METRICS


def open_weights(path: str | None) -> interop.StoredWeights:
  """What a path holds, before anything large is read.

  Args:
    path: a cascade folder, a folder or file of public weights, owner/name on
      the Hub, or the workdir of a training run, which stands for its exported
      network beside the frozen ones. None is the cascade of this package.

  Raises:
    InputError: there are no known weights, or the run has exported none.
  """
  if path is None:
    return interop.open_weights(BUNDLED)
  if not (Path(path) / METRICS).is_file():
    return interop.open_weights(path)
  return _of_run(Path(path))


def _of_run(workdir: Path) -> interop.StoredWeights:
  export = workdir / "export"
  if not export.is_dir():
    raise InputError(
      f"no export in {workdir}: the run is not finished; write one with "
      f"i2vgen export {workdir}"
    )
  config = read_json(workdir / CONFIG)
  if config["frozen"] is None:
    raise InputError(
      f"{workdir} trained a network without a cascade; put {export} into one, "
      "and give its folder"
    )
  frozen = interop.open_weights(config["frozen"])
  is_lora = (export / "lora").is_dir()
  trained = interop.open_weights(config["init_from"] if is_lora else export)
  networks = frozen.networks | trained.networks
  if is_lora:
    # With the settings of the run, as a whole network is exported.
    stage = networks[name := config["component"]]
    sampling = stage.config["sampling"] | config["sampling"]
    changed = stage.config | {"sampling": sampling}
    networks[name] = dataclasses.replace(stage, config=changed)
  weights = dataclasses.replace(frozen, folder=workdir, networks=networks)
  return weights.with_lora(export / "lora") if is_lora else weights
