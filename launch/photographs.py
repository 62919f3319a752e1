"""Downloads the photographs for `launch/make_tiny.sh`.

    i2vgen data photographs FOLDER

They come from packages of Debian 12 (`apt-get download`), and are scaled down
to 1280 pixels. Licenses: endless-sky-data, public domain and CC-BY-SA;
gcompris-qt-data, public domain and Creative Commons; mate-backgrounds, GPL-2+;
plasma-workspace-wallpapers, LGPL-3; lomiri-wallpapers, Creative Commons;
ukui-wallpapers, GPL-3. The licenses of single files are in the package's
`usr/share/doc/PACKAGE/copyright`.
"""

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from i2vgen_jax.errors import InputError, writing
from i2vgen_jax.preprocessing import load_picture
from launch.progress import note

# Start of the names, by which photographs are held out, and a pattern of the
# paths of photographs among the pictures, for each package.
_CHOSEN = {
  "endless-sky-data": ("endless-", r"images/land/[^/]*\.jpg$"),
  "gcompris-qt-data": (
    "",
    r"rcc/(categorization|erase|explore|clickgame)[^/]*\.rcc$",
  ),
  "lomiri-wallpapers-16.04": (
    "lomi-",
    r"/(?!analogpattern|greentock)[^/]*by_[^/]*\.(jpg|png)$",
  ),
  "lomiri-wallpapers-20.04": ("lomi-", r"/Infinite-Sea[^/]*\.(jpg|png)$"),
  "mate-backgrounds": (
    "mate-",
    r"/(Dune|FreshFlower|Garden|GreenMeadow|LadyBird|RainDrops|Storm|TwoWings|"
    r"Wood|YellowFlower|Spring)[^/]*\.(jpg|png)$",
  ),
  "plasma-workspace-wallpapers": (
    "plasma-",
    r"/(Autumn|BytheWater|Cascade|ColorfulCups|EveningGlow|FallenLeaf|Grey|"
    r"OneStandsOut|Path)/contents/images/\d+x\d+\.",
  ),
  "ukui-wallpapers": ("ukui-", r"/(calla|city|desert)[^/]*\.(jpg|png)$"),
}
_LONG_SIDE = 1280
_SHORT_SIDE = 200
# Start of a JPEG or WebP file inside a file of Qt resources, where four bytes
# before it give its length.
_EMBEDDED = re.compile(rb"\xff\xd8\xff[\xe0\xe1\xdb]|RIFF....WEBP", re.DOTALL)


def photographs(package: str, root: Path) -> Iterator[tuple[str, Image.Image]]:
  """Names and photographs of an unpacked package."""
  prefix, pattern = _CHOSEN[package]
  for path in sorted(root.rglob("*")):
    if not re.search(pattern, str(path)) or path.is_symlink():
      continue
    data, stem = path.read_bytes(), path.stem
    if re.fullmatch(r"\d+x\d+", stem):  # .../NAME/contents/images/WxH.jpg
      stem = path.parts[-4]
    if path.suffix == ".rcc":
      for number, picture in enumerate(_embedded(data)):
        yield f"{prefix}{stem}-{number:03d}.jpg", picture
    else:
      yield f"{prefix}{stem}.jpg", Image.fromarray(load_picture(data))


def _embedded(data: bytes) -> Iterator[Image.Image]:
  """The pictures in a file of Qt resources that are not icons."""
  for match in _EMBEDDED.finditer(data):
    start = match.start()
    (length,) = struct.unpack(">I", data[start - 4 : start])
    try:
      picture = load_picture(data[start : start + length])
    except InputError:
      continue  # The marks of a JPEG inside other data.
    if min(picture.shape[:2]) >= _SHORT_SIDE:
      yield Image.fromarray(picture)


def download(folder: Path) -> None:
  """Downloads all packages, and writes their photographs as JPEG.

  Raises:
    InputError: a package cannot be downloaded, or the folder cannot be written.
  """
  with writing(folder, "choose another folder"):
    folder.mkdir(parents=True, exist_ok=True)
    for package in _CHOSEN:
      with tempfile.TemporaryDirectory() as temporary:
        _unpack(package, temporary)
        count = 0
        for name, picture in photographs(package, Path(temporary)):
          picture.thumbnail((_LONG_SIDE, _LONG_SIDE), Image.Resampling.LANCZOS)
          picture.save(folder / name, quality=95)
          count += 1
      note(f"{package}: {count} photographs")


def _unpack(package: str, folder: str) -> None:
  quiet = {"cwd": folder, "check": True, "stdout": subprocess.DEVNULL}
  try:
    # Without its own user, which cannot write to a temporary folder.
    sandbox = ("-o", "APT::Sandbox::User=root")
    subprocess.run(["apt-get", *sandbox, "download", package], **quiet)
    (deb,) = Path(folder).glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", deb, folder], **quiet)
  except (OSError, subprocess.CalledProcessError) as e:
    raise InputError(
      f"cannot download the Debian package {package} ({e}); run this on Debian "
      "12, after `apt-get update`"
    ) from e
