"""The flags of `i2vgen train`, with every mistake in them as one line."""

import difflib
import runpy
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from i2vgen_jax.errors import InputError
from launch import old_arguments as arguments
from launch import train

_MISTAKES = (flags.Error, AttributeError, LookupError, TypeError, ValueError)


def main(argv: list[str]) -> None:
  """Runs the trainer on a command line.

  Raises:
    InputError: an unknown or unusable flag or config key.
  """
  if {"-h", "--help"} & set(argv):
    print(train.__doc__, end="")
    return
  # ml_collections looks there for the config keys that are to be set.
  sys.argv = ["i2vgen train", *argv]
  parser = arguments.Parser("i2vgen train", add_help=False)
  parser.add_argument("--config")
  path = parser.parse_known_args(argv)[0].config
  if path is not None:
    _check_keys(argv, _keys(_load(path)))
  try:
    train.main(argv)
  except InputError:
    raise
  except _MISTAKES as e:
    if flags.FLAGS.is_parsed():
      raise
    raise InputError(f"{_last_line(e)}; see i2vgen train --help") from e


def _load(path: str) -> ConfigDict:
  """The config before anything in it is set."""
  file, *argument = path.split(":", 1)
  if not Path(file).is_file():
    raise InputError(f"no config file {file}; check --config")
  get_config = runpy.run_path(file).get("get_config")
  if get_config is None:
    raise InputError(f"{file} has no get_config; name a config file")
  try:
    config = get_config(*argument)
  except (TypeError, ValueError) as e:
    raise InputError(f"{_last_line(e)}, in --config={path}") from e
  if not isinstance(config, ConfigDict):
    raise InputError(f"get_config of {file} gives no ConfigDict; mend it")
  return config


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
  """Dotted paths of all groups and leaves."""
  keys = []
  for name, value in config.items():
    keys.append(prefix + name)
    if isinstance(value, ConfigDict):
      keys += _keys(value, f"{prefix}{name}.")
  return keys


def _check_keys(argv: list[str], known: list[str]) -> None:
  for arg in argv:
    key = arg.partition("=")[0].removeprefix("--config.").partition("[")[0]
    if arg.startswith("--config.") and key not in known:
      near = difflib.get_close_matches(key, known, 1)
      hint = f"did you mean {near[0]}?" if near else "see the config file"
      raise InputError(f"unknown config key {key!r}; {hint}")


def _last_line(error: Exception) -> str:
  """What a message says; the lines before it are a traceback."""
  line = str(error).strip().splitlines()[-1]
  return line.removeprefix("ValueError: ").removeprefix("TypeError: ")
