"""Detects truncated videos by the length that their container declares.

Decoders accept most truncated videos as shorter ones. Only lengths in bytes
are read: durations in headers are often wrong in intact files.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

# Top-level boxes of mp4 and mov.
_BOXES = (
  b"ftyp", b"moov", b"mdat", b"moof", b"mfra", b"free", b"skip", b"wide",
  b"styp", b"sidx", b"uuid", b"meta", b"pnot",
)  # fmt: skip
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_HEADER = 1 << 16
_FLV_TAGS = (8, 9, 18)


def is_cut_short(source: bytes | str | Path) -> bool:
  """Whether the end of a video is missing, as far as its container shows.

  MP4, MOV, Matroska, WebM, AVI and WMV contain their length, MPEG-TS consists
  of packets of equal length, between which a cut goes unnoticed, and FLV ends
  with the length of its last tag. False for other files and for those whose
  writer did not know the length.
  """
  is_content = isinstance(source, bytes)
  with io.BytesIO(source) if is_content else open(source, "rb") as file:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(400)
    if head[4:8] in _BOXES:
      return _chunks_end(file, size, _box_length) > size
    if head.startswith(_EBML):
      return _segment_end(file) > size
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
      return _chunks_end(file, size, _riff_length) > size
    if head.startswith(_ASF):
      return _asf_end(file) > size
    if head.startswith(b"FLV"):
      return not _ends_with_flv_tag(file, size)
  for packet, first in ((188, 0), (192, 4)):
    if {head[at : at + 1] for at in (first, first + packet)} == {b"G"}:
      return size % packet != 0
  return False


def _chunks_end(file: BinaryIO, size: int, length_of: Callable) -> int:
  """End of the last of the chunks that make up a file."""
  at = 0
  while at < size:
    file.seek(at)
    length = length_of(file.read(16))
    if not length:
      break
    at += length
  return at


def _box_length(header: bytes) -> int:
  """Length of a box; 0 for garbage after the video, and a box up to the end."""
  length = int.from_bytes(header[:4], "big")
  if length == 1:
    length = int.from_bytes(header[8:], "big")
  return length if header[4:8] in _BOXES and length >= 8 else 0


def _riff_length(header: bytes) -> int:
  """Length of a part of an AVI, of which those over 1 GiB have several."""
  length = int.from_bytes(header[4:8], "little")
  # Writers that cannot seek leave one of these lengths.
  unknown = header[:4] != b"RIFF" or length in (0, 0xFFFFFFFF)
  return 0 if unknown else 8 + length


def _segment_end(file: BinaryIO) -> int:
  file.seek(len(_EBML))
  file.seek(_ebml_length(file), os.SEEK_CUR)
  if file.read(4) != _SEGMENT:
    return 0
  length = _ebml_length(file)
  return length and file.tell() + length


def _ebml_length(file: BinaryIO) -> int:
  """A number of 1 to 8 bytes; 0 if it is unknown, which all ones mean."""
  first = file.read(1) or b"\0"
  count = 8 - first[0].bit_length()
  unknown = (1 << 7 * (count + 1)) - 1
  value = int.from_bytes(first + file.read(count), "big") & unknown
  return 0 if value == unknown else value


def _asf_end(file: BinaryIO) -> int:
  file.seek(0)
  header = file.read(_ASF_HEADER)
  at = header.find(_ASF_PROPERTIES)
  flags = int.from_bytes(header[at + 88 : at + 92], "little")
  if at < 0 or flags & 1:  # a live recording
    return 0
  return int.from_bytes(header[at + 40 : at + 48], "little")


def _ends_with_flv_tag(file: BinaryIO, size: int) -> bool:
  file.seek(max(size - 4, 0))
  length = int.from_bytes(file.read(4), "big")
  if not 11 <= length <= size - 4:
    return False
  file.seek(size - 4 - length)
  kind, *rest = file.read(4)
  return kind & 31 in _FLV_TAGS and int.from_bytes(rest, "big") == length - 11
