"""Lays the site out as the repository, so that its links work in both."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
# What pages link to outside of docs/.
OUTSIDE = (
  "README.md",
  "CHANGELOG.md",
  "CITATION.cff",
  "CONTRIBUTING.md",
  "LICENSE",
  "i2vgen_jax/assets/tiny/README.md",
)


def on_files(files: Files, config: MkDocsConfig) -> None:
  """Moves the files of docs/ into a folder docs/, and adds those outside."""
  inside = [f for f in files if f.src_dir == config.docs_dir]
  for file in inside:
    files.remove(file)
  paths = [Path(f.abs_src_path) for f in inside if f.inclusion.is_included()]
  for path in [*paths, *map(ROOT.joinpath, OUTSIDE)]:
    name = path.relative_to(ROOT).as_posix()
    files.append(File.generated(config, name, abs_src_path=str(path)))
