"""i2vgen: a picture becomes a video.

    i2vgen sample    makes a video of a picture and a sentence
    i2vgen train     trains one network of a cascade
    i2vgen data      makes what a training reads
    i2vgen evaluate  measures a cascade on held-out clips
    i2vgen convert   reads and writes the public forms of the weights

`i2vgen COMMAND --help` says more. Exit status 2: something given is unusable,
and one line on stderr says what.
"""

import difflib
import importlib
import os
import sys

from absl import logging

from i2vgen_jax.errors import InputError

# Imported only when asked for: sampling must run without TensorFlow.
_MODULES = {
  "sample": "launch.sample",
  "train": "launch.train_flags",
  "data": "launch.data",
  "evaluate": "launch.evaluate",
  "convert": "launch.convert",
}
# Of the extra `data`; what else is missing is missing for everybody.
_EXTRA = (
  "clu",
  "grain",
  "google_crc32c",
  "matplotlib",
  "optax",
  "tensorboard",
  "tensorflow",
  "tensorflow_datasets",
)


def main(argv: list[str] | None = None) -> int:
  """Runs one subcommand; the result is the exit status."""
  argv = sys.argv[1:] if argv is None else argv
  if not argv or argv[0] in ("-h", "--help"):
    print(__doc__, end="", file=sys.stdout if argv else sys.stderr)
    return 0 if argv else 2
  try:
    _run(argv)
  except InputError as e:
    print(f"i2vgen: error: {' '.join(str(e).split())}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    return 130
  return 0


def _run(argv: list[str]) -> None:
  name, *rest = argv
  if name not in _MODULES:
    near = difflib.get_close_matches(name, _MODULES, 1)
    hint = f"did you mean {near[0]}?" if near else "see i2vgen --help"
    known = ", ".join(_MODULES)
    raise InputError(f"{name!r} is none of the commands {known}; {hint}")
  _quiet()
  try:
    importlib.import_module(_MODULES[name]).main(rest)
  except ModuleNotFoundError as e:
    package = (e.name or "").partition(".")[0]
    if package not in _EXTRA:
      raise
    raise InputError(
      f"{name} needs {package}; install the extra: pip install "
      "'i2vgen-jax[data]'"
    ) from e


def _quiet() -> None:
  """Lets an error be the one line on stderr."""
  # Orbax says of damaged weights what our own error says.
  logging.set_verbosity(logging.FATAL)
  # Start-up lines of TensorFlow, and of transformers where torch is absent.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  sys.unraisablehook = _unraisable


def _unraisable(event: "sys.UnraisableHookArgs") -> None:
  """Passes over what Orbax's other reads say after one of them has failed."""
  if "Event loop is closed" not in str(event.exc_value):
    sys.__unraisablehook__(event)


if __name__ == "__main__":
  sys.exit(main())
