"""Whether a film is cut short, by what its container says of its own length.

A decoder takes most films that were cut for shorter ones. Only lengths in
bytes are read: times in headers are often wrong in films that are whole.
"""

import os
from pathlib import Path
from typing import BinaryIO

# Boxes that lie side by side in mp4 and mov.
_BOXES = (
  b"ftyp", b"moov", b"mdat", b"moof", b"mfra", b"free", b"skip", b"wide",
  b"styp", b"sidx", b"uuid", b"meta", b"pnot",
)  # fmt: skip
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_HEADER = 1 << 16
_FLV_TAGS = (8, 9, 18)


def is_cut_short(path: Path) -> bool:
  """Whether the end of a film is missing, as far as its container tells.

  MP4, MOV, Matroska, WebM, AVI and WMV give their length, MPEG-TS consists of
  packets of one length, between which a cut is not seen, and FLV ends in the
  length of its last part. Of other files, and those whose writer did not know
  the length, False.
  """
  size = os.stat(path).st_size
  with path.open("rb") as file:
    head = file.read(400)
    if head[4:8] in _BOXES:
      return _boxes_exceed(file, size)
    if head.startswith(_EBML):
      return _segment_exceeds(file, size)
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
      length = int.from_bytes(head[4:8], "little")
      # Writers that cannot go back leave one of these.
      return length not in (0, 0xFFFFFFFF) and 8 + length > size
    if head.startswith(_ASF):
      return _asf_exceeds(file, size)
    if head.startswith(b"FLV"):
      return _last_tag_is_cut(file, size)
  for packet, first in ((188, 0), (192, 4)):
    if {head[at : at + 1] for at in (first, first + packet)} == {b"G"}:
      return size % packet != 0
  return False


def _boxes_exceed(file: BinaryIO, size: int) -> bool:
  at = 0
  while at < size:
    file.seek(at)
    header = file.read(16)
    length, kind = int.from_bytes(header[:4], "big"), header[4:8]
    if length == 1:
      length = int.from_bytes(header[8:], "big")
    # Not a box: rubbish behind the film; or one that goes on to the end.
    if kind not in _BOXES or length < 8:
      return False
    at += length
  return at > size


def _segment_exceeds(file: BinaryIO, size: int) -> bool:
  file.seek(len(_EBML))
  header, _ = _ebml_length(file)
  file.seek(header, os.SEEK_CUR)
  if file.read(4) != _SEGMENT:
    return False
  length, is_known = _ebml_length(file)
  return is_known and file.tell() + length > size


def _ebml_length(file: BinaryIO) -> tuple[int, bool]:
  """A number of 1 to 8 bytes, and whether it is one: all ones mean unknown."""
  first = file.read(1) or b"\0"
  count = 8 - first[0].bit_length()
  bits = 7 * (count + 1)
  value = int.from_bytes(first + file.read(count), "big") & ((1 << bits) - 1)
  return value, value != (1 << bits) - 1


def _asf_exceeds(file: BinaryIO, size: int) -> bool:
  file.seek(0)
  header = file.read(_ASF_HEADER)
  at = header.find(_ASF_PROPERTIES)
  if at < 0:
    return False
  length = int.from_bytes(header[at + 40 : at + 48], "little")
  is_live = header[at + 88] & 1
  return not is_live and length > size


def _last_tag_is_cut(file: BinaryIO, size: int) -> bool:
  file.seek(max(size - 4, 0))
  length = int.from_bytes(file.read(4), "big")
  if not 11 <= length <= size - 4:
    return True
  file.seek(size - 4 - length)
  tag = file.read(4)
  told = int.from_bytes(tag[1:], "big")
  return tag[0] & 31 not in _FLV_TAGS or told != length - 11
