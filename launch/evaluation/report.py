"""An evaluation as a page in one file: tables, spectra, videos, settings."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.media import video
from i2vgen_jax.evaluation import spectra
from i2vgen_jax.evaluation.spectra import Spectrum
from launch import plots
from launch.evaluation.generation import Frames
from launch.report_page import Cell, Page

# Number of clips that a page shows of each section.
NUM_SHOWN = 12
# Quality of the videos; at x264's usual rate factor a page stays small.
_CRF = 23


class Power(NamedTuple):
  """Spectra of one clip, or means of several."""

  spatial: Spectrum
  temporal: Spectrum

  @classmethod
  def of(cls, clip: Frames) -> "Power":
    return cls(spectra.spatial_spectrum(clip), spectra.temporal_spectrum(clip))

  @classmethod
  def mean(cls, some: Sequence["Power"]) -> "Power":
    return cls(*(np.mean(part, axis=0) for part in zip(*some, strict=True)))


class Shown(NamedTuple):
  """Videos of one input, side by side.

  Attributes:
    caption: the prompt.
    facts: one line about them.
    videos: the clips by label.
    fps: their frame rate.
  """

  caption: str
  facts: str
  videos: Mapping[str, Frames]
  fps: float


class Section(NamedTuple):
  """A part of the page.

  Attributes:
    title: heading.
    names: of the columns of the table of figures.
    rows: of that table.
    meanings: what each row is; empty where the labels say it.
    losses: of the denoisers by timestep, by name; empty without real clips.
    powers: mean spectra by name.
    shown: videos.
  """

  title: str
  names: Sequence[str]
  rows: Sequence[Sequence[Cell]]
  meanings: Sequence[str]
  losses: Mapping[str, Mapping[int, float]]
  powers: Mapping[str, Power]
  shown: Sequence[Shown]


def page(
  title: str, sections: Sequence[Section], settings: Mapping[str, Any]
) -> bytes:
  """Content of the HTML file, which needs no other file."""
  made = Page(title)
  for section in sections:
    made.add("h2", section.title)
    pairs = zip(section.rows, section.meanings, strict=True)
    made.table([*section.names, "meaning"], [[*r, text] for r, text in pairs])
    if section.losses:
      made.add("h3", "Loss by noise level")
      plot = plots.losses(section.losses)
      made.embed(plot, "png", "loss of the denoisers by noise level")
    made.add("h3", "Mean spectra")
    spatial, temporal = zip(*section.powers.values(), strict=True)
    names = section.powers.keys()
    plot = plots.spectra(
      dict(zip(names, spatial, strict=True)),
      dict(zip(names, temporal, strict=True)),
    )
    made.embed(plot, "png", "spatial and temporal spectra")
    made.add("h3", f"The first {len(section.shown)} clips")
    for shown in section.shown:
      _add_videos(made, shown)
  made.add("h2", "Settings")
  made.add("pre", json.dumps(settings, indent=2))
  return made.encode()


def _add_videos(made: Page, shown: Shown) -> None:
  made.add("p", shown.caption, "caption")
  made.add("p", shown.facts, "facts")
  made.parts.append('<div class="videos">')
  for label, frames in shown.videos.items():
    made.parts.append("<figure>")
    mp4 = video.encode_mp4(frames, shown.fps, crf=_CRF)
    made.video(mp4, f"{label}: {shown.caption}")
    height, width = frames.shape[1:3]
    made.add("figcaption", f"{label}, {width}x{height}")
    made.parts.append("</figure>")
  made.parts.append("</div>")
