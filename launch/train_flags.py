"""Trains one network.

    i2vgen train --config=FILE:NAME --workdir=DIR [--config.KEY=VALUE ...]

The run resumes from what is in DIR. At its end the averaged weights are in
DIR/export/NETWORK, as a cascade folder has them.

Example, on the frozen networks of the bundled cascade:

    i2vgen data build procedural --output data --num-clips 200
    i2vgen train --config=configs/i2vgen_xl.py:tiny --workdir=runs/tiny \\
        --config.frozen=i2vgen_jax/assets/tiny --config.train.num_steps=100

--config.KEY=VALUE sets any key; strings need no quotes, tuples are written as
in Python: --config.data.size="(64, 64)".
"""

import difflib
import itertools
import runpy
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from i2vgen_jax.errors import InputError
from launch import arguments, train

CONFIGS = Path(__file__).parents[1] / "configs" / "i2vgen_xl.py"
CONFIG = config_flags.DEFINE_config_file("config")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")

_MISTAKES = (flags.Error, AttributeError, LookupError, TypeError, ValueError)


def main(argv: list[str]) -> None:
  """Runs the trainer on a command line.

  Raises:
    InputError: an unknown or unusable flag or config key.
  """
  for arg in argv:
    _check_url(arg)
  path = _config_path(argv)
  if {"-h", "--help"} & set(argv):
    print(_help(path), end="")
    return
  if path is not None:
    _check_keys(argv, _keys(_load(path)))
  # ml_collections looks there for the config keys that are set.
  sys.argv = ["i2vgen train", *argv]
  try:
    rest = flags.FLAGS(sys.argv)[1:]
  except _MISTAKES as e:
    raise InputError(f"{_last_line(e)}; see i2vgen train --help") from e
  if rest:
    raise InputError(f"train takes no argument {rest[0]!r}; see --help")
  if CONFIG.value is None or WORKDIR.value is None:
    raise InputError("train needs --config=FILE:NAME and --workdir=DIR")
  train.run(CONFIG.value, Path(WORKDIR.value))


def _check_url(arg: str) -> None:
  try:
    arguments.check_path(arg.partition("=")[2] or arg)
  except ValueError as e:
    raise InputError(f"{e}; see i2vgen train --help") from e


def _config_path(argv: list[str]) -> str | None:
  for arg, following in itertools.pairwise([*argv, None]):
    flag, equals, value = arg.partition("=")
    if flag == "--config":
      return value if equals else following
  return None


def _help(path: str | None) -> str:
  """The usage, the configs of a file, and the keys with their defaults."""
  if path is None and not CONFIGS.is_file():
    return __doc__
  config = _load(path) if path else runpy.run_path(str(CONFIGS))["common"]()
  file = path.partition(":")[0] if path else str(CONFIGS)
  keys = [
    f"    --config.{key}={value}"
    for key, value in _keys(config).items()
    if not isinstance(value, ConfigDict)
  ]
  title = f"Keys of {path or 'every config'}, with their defaults:"
  about = runpy.run_path(file)["__doc__"] or ""
  return "\n".join([__doc__, about, title, "", *keys, ""])


def _load(path: str) -> ConfigDict:
  """The config before any key of it is set."""
  file, *argument = path.split(":", 1)
  if not Path(file).is_file():
    raise InputError(f"no config file {file}; check --config")
  get_config = runpy.run_path(file).get("get_config")
  if get_config is None:
    raise InputError(f"{file} has no function get_config; name a config file")
  try:
    config = get_config(*argument)
  except (TypeError, ValueError) as e:
    raise InputError(f"{_last_line(e)}, in --config={path}") from e
  if not isinstance(config, ConfigDict):
    raise InputError(f"get_config of {file} returns no ConfigDict; correct it")
  return config


def _keys(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
  """All groups and leaves by their dotted paths."""
  keys = {}
  for name, value in config.items():
    keys[prefix + name] = value
    if isinstance(value, ConfigDict):
      keys |= _keys(value, f"{prefix}{name}.")
  return keys


def _check_keys(argv: list[str], known: dict[str, Any]) -> None:
  for arg in argv:
    key = arg.partition("=")[0].removeprefix("--config.").partition("[")[0]
    if arg.startswith("--config.") and key not in known:
      near = difflib.get_close_matches(key, known, 1)
      hint = f"did you mean {near[0]}?" if near else "see the config file"
      raise InputError(f"unknown config key {key!r}; {hint}")


def _last_line(error: Exception) -> str:
  """The message alone; the lines before it are a traceback."""
  line = str(error).strip().splitlines()[-1]
  return line.removeprefix("ValueError: ").removeprefix("TypeError: ")
