"""i2vgen: image-to-video synthesis with I2VGen-XL.

    i2vgen sample    make a video from a picture and a sentence
    i2vgen serve     make videos on a page in the browser
    i2vgen warm      compile what sample runs before it is asked for
    i2vgen train     train one network of a cascade
    i2vgen export    weights of a run that is not finished
    i2vgen report    where the time of a run went, and its losses
    i2vgen sweep     runs that differ in a few settings, and their ranking
    i2vgen plan      memory and time of a run on TPUs that are not here
    i2vgen launch    train on TPUs that are not here
    i2vgen data      build, encode, inspect and benchmark datasets
    i2vgen evaluate  measure the videos of any weights
    i2vgen vbench    videos for VBench-I2V, and its results beside public ones
    i2vgen convert   convert weights from and to the public formats

`i2vgen COMMAND --help` describes a command. Exit status 2 means that an
argument or a file cannot be used; one line on stderr says why.
"""

import contextlib
import difflib
import functools
import hashlib
import importlib
import logging
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path

from absl import logging as absl_logging

from i2vgen_jax.errors import InputError

_COMMANDS = (
  "sample",
  "serve",
  "warm",
  "train",
  "export",
  "report",
  "sweep",
  "plan",
  "launch",
  "data",
  "evaluate",
  "vbench",
  "convert",
)
# Packages of extras; any other missing package is a bug.
_EXTRA = (
  "apache_beam",
  "clu",
  "cv2",
  "fastapi",
  "gradio",
  "grain",
  "google_crc32c",
  "matplotlib",
  "optax",
  "scenedetect",
  "tensorboard",
  "tensorflow",
  "tensorflow_datasets",
)


def main(argv: list[str] | None = None) -> int:
  """Runs one command and returns the exit status."""
  argv = sys.argv[1:] if argv is None else argv
  if not argv or argv[0] in ("-h", "--help"):
    print(__doc__, end="", file=sys.stdout if argv else sys.stderr)
    return 0 if argv else 2
  return exit_status(functools.partial(_run, argv))


def exit_status(command: Callable[[], None]) -> int:
  """Runs a command; an error in its input is one line on stderr."""
  try:
    command()
  except InputError as e:
    print(f"i2vgen: error: {' '.join(str(e).split())}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    return 130
  return 0


def _run(argv: list[str]) -> None:
  name, *rest = argv
  if name not in _COMMANDS:
    near = difflib.get_close_matches(name, _COMMANDS, 1)
    hint = f"did you mean {near[0]}?" if near else "see i2vgen --help"
    known = ", ".join(_COMMANDS)
    raise InputError(f"unknown command {name!r}; known are {known}; {hint}")
  _quiet()
  _keep_compiled()
  try:
    # Imported only when asked for: sampling must run without TensorFlow.
    importlib.import_module(f"launch.{name}").main(rest)
  except ModuleNotFoundError as e:
    package = (e.name or "").partition(".")[0]
    if package not in _EXTRA:
      raise
    extra = name if name in ("plan", "serve") else "data"
    raise InputError(
      f"{name} needs {package}; install the extra: pip install "
      f"'i2vgen-jax[{extra}]'"
    ) from e


def _quiet() -> None:
  """Keeps stderr for our own lines."""
  # Orbax logs what our own error already says about damaged weights.
  absl_logging.set_verbosity(absl_logging.FATAL)
  # Of a failed write, each task that waited for it.
  logging.getLogger("asyncio").setLevel("CRITICAL")
  # Start-up messages of TensorFlow, and of transformers without torch.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  sys.unraisablehook = _unraisable


def _keep_compiled() -> None:
  """Programs compiled once are loaded by later runs.

  JAX finds them by program, compiler and device. Programs for a CPU use what
  that CPU has, and a home folder may be on several machines, so each kind of
  CPU has a folder. The variable JAX_COMPILATION_CACHE_DIR takes another one.
  """
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  cpu = platform.machine() + platform.processor()
  with contextlib.suppress(OSError):
    flags = re.search(
      r"(flags|Features)\s*:.*", Path("/proc/cpuinfo").read_text()
    )
    cpu += flags[0] if flags else ""
  name = hashlib.sha256(cpu.encode()).hexdigest()[:16]
  # RuntimeError: there is no home folder.
  with contextlib.suppress(OSError, RuntimeError):
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "i2vgen-jax" / "compiled" / name
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)


def _unraisable(event: "sys.UnraisableHookArgs") -> None:
  """Hides what other threads and JAX's exit say after our own error.

  Orbax's other reads fail with a closed event loop, and JAX waits at exit for
  the computation that ran out of memory.
  """
  known = ("Event loop is closed", "RESOURCE_EXHAUSTED")
  if not any(text in str(event.exc_value) for text in known):
    sys.__unraisablehook__(event)


if __name__ == "__main__":
  sys.exit(main())
