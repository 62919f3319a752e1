"""The commands in the bash blocks of the documentation."""

import re
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

_RECORDER = """
PATH=/nowhere
record() { printf '%s\\037' "$@"; printf '\\036'; }
command_not_found_handle() { record "$@"; }
function . { record . "$@"; }
"""


def bash_blocks(text):
  """The bash blocks of a page."""
  return re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)


def in_blocks(text):
  """The words of each command in the bash blocks of a page.

  Bash itself splits a block into commands, with its variables, loops and
  patterns, but finds no program and records the words instead.
  """
  for block in bash_blocks(text):
    # Bash asks the handler for plain names only.
    script = _RECORDER + block.replace(".venv/bin/", "")
    done = subprocess.run(
      ["bash", "-c", script], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert not done.stderr, done.stderr
    for record in done.stdout.split("\036")[:-1]:
      yield record.split("\037")[:-1]
