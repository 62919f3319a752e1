"""The messages of docs/troubleshooting.md are those of the program."""

import ast
import re

import cascade_standin
import pytest

REPOSITORY = cascade_standin.CONFIGS.parents[1]
PAGE = (REPOSITORY / "docs/troubleshooting.md").read_text()
MESSAGES = [
  message
  for cell in re.findall(r"^\| (`.*?`) \|", PAGE, re.M)
  for message in re.findall(r"`([^`]+)`", cell)
]


def template(node):
  """A string in the source, with ... in place of values."""
  if isinstance(node, ast.JoinedStr):
    return "".join(
      part.value if isinstance(part, ast.Constant) else "..."
      for part in node.values
    )
  text = node.value if isinstance(node, ast.Constant) else None
  return text.replace("{}", "...") if isinstance(text, str) else ""


@pytest.fixture(scope="module")
def texts():
  """All strings of the program."""
  packages = ("i2vgen_jax", "launch", "data_pipelines")
  files = [p for name in packages for p in (REPOSITORY / name).rglob("*.py")]
  trees = [ast.parse(file.read_text()) for file in files]
  return {template(node) for tree in trees for node in ast.walk(tree)}


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_in_the_source(message, texts):
  parts = map(re.escape, message.removesuffix("...").split("..."))
  pattern = re.compile(".*".join(parts), re.S)
  assert any(pattern.search(text) for text in texts)


def test_all_rows_have_a_message():
  assert len(MESSAGES) > len(re.findall(r"^\| `", PAGE, re.M)) > 20
