"""A picture of where the time of a program goes."""

import collections
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from i2vgen_jax.files import replacing

# Kinds of layers that have a colour of their own.
_MOST = 9
_LEAST = 0.005


def draw(
  path: Path, seconds: Mapping[tuple[str, str], float], title: str
) -> None:
  """Writes a bar for each block, with the time of each kind of layer.

  Args:
    path: PNG file.
    seconds: time by block and kind of layer, in the order of the network.
    title: what is drawn.
  """
  by_block, by_kind = collections.Counter(), collections.Counter()
  for (block, kind), time in seconds.items():
    by_block[block] += time
    by_kind[kind] += time
  least = _LEAST * sum(by_block.values())
  blocks = [block for block, time in by_block.items() if time > least]
  common = [kind for kind, _ in by_kind.most_common(_MOST)]
  figure = Figure((10, 1.2 + 0.28 * len(blocks)), 100, layout="constrained")
  axes = figure.subplots()
  left = dict.fromkeys(blocks, 0.0)
  for number, kind in enumerate([*common, "other"]):
    widths = dict.fromkeys(blocks, 0.0)
    for (block, name), time in seconds.items():
      if block in widths and (name if name in common else "other") == kind:
        widths[block] += 1e3 * time
    if any(widths.values()):
      axes.barh(
        blocks,
        [*widths.values()],
        left=[*left.values()],
        color=f"C{number}",
        label=kind,
      )
      left = {block: left[block] + widths[block] for block in blocks}
  axes.invert_yaxis()
  axes.set_xlabel("ms")
  axes.set_title(title)
  axes.legend(fontsize=8)
  axes.spines[["top", "right"]].set_visible(False)
  with replacing(path) as temporary:
    figure.savefig(temporary, format="png")
