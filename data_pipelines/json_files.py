"""JSON files that appear whole or not at all."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_pipelines.atomic import appearing


def write_json(path: Path, value: Any) -> None:
  """Writes one value; the file appears by rename."""
  _write(path, [json.dumps(value, indent=2)])


def write_rows(path: Path, rows: Iterable[Any]) -> None:
  """Writes named tuples, one line each; the file appears by rename."""
  _write(path, (json.dumps(row._asdict()) for row in rows))


def _write(path: Path, texts: Iterable[str]) -> None:
  with appearing(path) as unfinished, unfinished.open("w") as file:
    file.writelines(text + "\n" for text in texts)
