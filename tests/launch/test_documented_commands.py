"""The commands in the documentation, as the programs that they call read them.

Each command is read by the parser of its program, and stopped before it does
anything.
"""

import ast
import contextlib
import functools
import importlib
import importlib.util
import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from unittest import mock

import pytest
from documentation import REPOSITORY, in_blocks
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pip._internal.commands import create_command

from launch import arguments, cli, launch, sweep, train
from launch.planning import chips

pytestmark = pytest.mark.usefixtures("fresh_flags", "no_job", "trained")

NAMES = ("README.md", "CONTRIBUTING.md", "i2vgen_jax/assets/tiny/README.md")
PAGES = [REPOSITORY / name for name in NAMES]
PAGES += sorted(REPOSITORY.glob("docs/*.md"))
FOLDERS = (".ci", "configs", "docs", "i2vgen_jax", "launch", "tests")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
# Programs whose arguments are not read here, and why.
UNREAD = {
  ".": "bash itself enters a virtual environment",
  "apt-get": "of the system",
  "bash": "its argument is a file, whose existence is checked",
  "cp": "of the system; the existence of its sources is checked",
  "gcloud": "not there; test_recipes.py has it check the commands of launch",
  "git": "of the system",
  "launch/make_tiny.sh": "a script with two plain arguments",
  "mkdir": "of the system",
  "mkdocs": "of the extra docs; .ci/run runs it",
  "mv": "of the system; a file that tests/conftest.py takes out, too",
  "pre-commit": "of the extra dev, which the tests do without",
  "tar": "of the system; an archive that tests/conftest.py opens, too",
  "touch": "of the system",
}


def in_sentences(text):
  """The words of each command in the text; most lack some arguments."""
  text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
  codes = (code.split() for code in re.findall(r"`([^`]+)`", text))
  for code in sorted({" ".join(c) for c in codes if len(c) > 1}):
    if code.split()[0] in READERS.keys() | UNREAD.keys():
      yield shlex.split(code)


class Read(BaseException):
  """The arguments of a command, which have been read."""


def read_module(name, argv):
  """What `main` of a module makes of the arguments, before it uses them."""
  parse = arguments.parse

  def parse_only(*args):
    raise Read(parse(*args))

  with (
    mock.patch.object(arguments, "parse", parse_only),
    pytest.raises(Read) as read,
  ):
    importlib.import_module(name).main(argv)
  return read.value.args[0]


def read_i2vgen(name, *argv):
  assert name in cli._COMMANDS
  if name == "train":
    train.main([*argv])
  elif name == "launch":
    launch.main([argv[0], "--dry-run", *argv[1:]])
    read_i2vgen("train", *argv[argv.index("--") + 1 :])
  else:
    args = read_module(f"launch.{name}", argv)
    if name == "plan":
      train.load_config(args.config)
      chips.chip_of(args.topology)
    elif name == "sweep":
      shared = argv[argv.index("--") + 1 :]
      first, *_ = sweep.make_runs(args.file, args.workdir, shared)
      read_i2vgen(*first.words)


def read_python(flag, module="", *argv):
  if flag != "-m":
    assert (REPOSITORY / flag).is_file()
  elif module == "pytest":
    read_pytest(*argv)
  elif module.startswith("launch."):
    read_module(module, argv)
  else:
    assert importlib.util.find_spec(module)


def read_pip(name, *argv):
  options, packages = create_command(name).parse_args([*argv])
  for package in [*packages, *getattr(options, "editables", [])]:
    if package.startswith("."):
      extra = re.fullmatch(r"\.(?:\[(\w+)\])?", package)[1]
      assert extra is None or extra in PROJECT["optional-dependencies"]
    else:
      # The version that the tests have.
      sources = (".ci/run", "tests/conftest.py")
      texts = [(REPOSITORY / source).read_text() for source in sources]
      assert any(package in text for text in texts)


@functools.cache
def pytest_help():
  command = [sys.executable, "-m", "pytest", "--help"]
  return subprocess.check_output(command, cwd=REPOSITORY, text=True)


def read_pytest(*argv):
  check_flags(argv, pytest_help())
  for flag, value in itertools.pairwise(argv):
    assert flag != "-m" or value in ("slow", "not slow")


READERS = {
  "i2vgen": read_i2vgen,
  "python": read_python,
  "python3": read_python,
  "pip": read_pip,
  "pytest": read_pytest,
}


def check_flags(argv, help_text):
  for word in argv:
    flag = word.partition("=")[0]
    if flag.startswith("-"):
      assert re.search(rf"(?<![\w-]){flag}(?![\w-])", help_text), flag


def check_paths(argv):
  for word in argv:
    path = word.rpartition("=")[2].partition(":")[0]
    if path.partition("/")[0] in FOLDERS:
      assert (REPOSITORY / path).exists(), path


def commands(find):
  """A test for each command that `find` finds on the pages."""
  found = [
    pytest.param(words, id=f"{page.relative_to(REPOSITORY)}: {' '.join(words)}")
    for page in PAGES
    for words in find(page.read_text())
  ]
  return pytest.mark.parametrize("words", found)


@commands(in_blocks)
def test_a_command_is_read_by_its_program(words, monkeypatch):
  monkeypatch.chdir(REPOSITORY)
  program, *argv = words
  check_paths(words)
  if program not in UNREAD:
    READERS[program](*argv)


@commands(in_sentences)
def test_a_mentioned_command_and_its_flags_exist(words, monkeypatch, capsys):
  monkeypatch.chdir(REPOSITORY)
  program, *argv = words
  check_paths(words)
  if program == "i2vgen":
    name, *named = itertools.takewhile(lambda w: not w.startswith("-"), argv)
    with contextlib.suppress(SystemExit):
      importlib.import_module(f"launch.{name}").main([*named, "--help"])
    check_flags({*argv} - {"--help"}, capsys.readouterr().out)
  elif program not in UNREAD:
    READERS[program](*argv)


@pytest.mark.parametrize(
  "block",
  [
    block
    for page in PAGES
    for block in re.findall(
      r"^```python\n(.*?)^```", page.read_text(), re.M | re.S
    )
  ],
)
def test_a_python_block_uses_names_that_exist(block):
  tree, known = ast.parse(block), {}
  imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
  exec(compile(ast.Module(imports, []), "block", "exec"), known)
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) in known:
      eval(ast.unparse(node), known)


def test_only_documented_programs_are_left_unread():
  texts = [page.read_text() for page in PAGES]
  used = {words[0] for text in texts for words in in_blocks(text)}
  used |= {words[0] for text in texts for words in in_sentences(text)}
  assert used == UNREAD.keys() | READERS.keys()


def test_every_dependency_has_a_tested_version():
  lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
  pins = dict(line.split("==") for line in lines if not line.startswith("#"))
  tested = {canonicalize_name(name): pin for name, pin in pins.items()}
  extras = PROJECT["optional-dependencies"].values()
  for text in itertools.chain(PROJECT["dependencies"], *extras):
    wanted = Requirement(text)
    if wanted.name != PROJECT["name"]:
      assert tested[canonicalize_name(wanted.name)] in wanted.specifier, text


def test_a_recipe_starts_from_what_one_before_leaves():
  left = {"stable-diffusion-2-1"}
  for words in in_blocks((REPOSITORY / "docs/recipes.md").read_text()):
    if words[:2] != ["i2vgen", "train"]:
      continue
    given = dict(word.split("=", 1) for word in words[2:])
    config = train.load_config(str(REPOSITORY / given["--config"]))
    start = given.get("--config.init_from", config.init_from)
    assert start in left | {"ali-vilab/i2vgen-xl"}
    left.add(f"{given['--workdir']}/export/{config.component}")
  assert "runs/best/export/refine" in left
