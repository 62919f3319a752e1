"""A stand-in for gcloud: one queued resource, one bucket, one host.

Everything is below the folder WORLD: the bucket, which the host sees as its
/bucket, the state of the resource, a secret, and the calls. The host really
runs boot.sh and run.sh, with stand-ins for what they install.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

WORLD = Path(os.environ["WORLD"])


def main(argv):
  with (WORLD / "calls").open("a") as calls:
    print(shlex.join(["gcloud", *argv]), file=calls)
  words = [arg for arg in argv if not arg.startswith("--")]
  options = dict(arg.partition("=")[::2] for arg in argv if arg not in words)
  match words:
    case ["storage", "rsync", source, target]:
      copy(local(source), local(target))
    case ["storage", "cat", url]:
      print(local(url).read_text(), end="")
    case ["compute", "tpus", "queued-resources", "create", _]:
      create(options["--metadata-from-file"].partition("=")[2])
    case ["compute", "tpus", "queued-resources", "describe", _]:
      fail_for_a_while()
      print((WORLD / "state").read_text(), end="")
    case ["compute", "tpus", "queued-resources", "delete", _]:
      delete()
    case ["secrets", "versions", "access", "latest"]:
      print((WORLD / "secret").read_text())
    case _:
      sys.exit(f"Some advice.\nERROR: (gcloud) unknown command {words}")


def fail_for_a_while():
  failures = WORLD / "failures"
  left = int(failures.read_text()) if failures.exists() else 0
  if left:
    failures.write_text(str(left - 1))
    sys.exit("ERROR: (gcloud) the network is unreachable")


def local(path):
  return Path(path.replace("gs://films", str(WORLD / "bucket")))


def copy(source, target):
  shutil.copytree(source, target, dirs_exist_ok=True)
  for script in target.glob("*.sh"):
    script.write_text(on_this_machine(script.read_text()))


def on_this_machine(script):
  bucket, home = str(WORLD / "bucket"), str(WORLD / "home")
  return (
    script.replace(bucket, "/bucket")
    .replace("/bucket", bucket)
    .replace("/root", home)
  )


def create(boot):
  if (WORLD / "state").exists():
    sys.exit("ERROR: (gcloud) ALREADY_EXISTS: the resource exists")
  (WORLD / "state").write_text("ACTIVE\n")
  (WORLD / "boot.sh").write_text(on_this_machine(Path(boot).read_text()))
  path = f"{WORLD / 'host'}:{os.environ['PATH']}"
  host = subprocess.Popen(
    ["bash", WORLD / "boot.sh"],
    env={"PATH": path, "WORLD": str(WORLD)},
    stdout=(WORLD / "serial_port").open("a"),
    stderr=subprocess.STDOUT,
    start_new_session=True,
  )
  (WORLD / "pid").write_text(str(host.pid))


def delete():
  with contextlib.suppress(ProcessLookupError):
    os.killpg(int((WORLD / "pid").read_text()), signal.SIGKILL)
  (WORLD / "state").unlink()


if __name__ == "__main__":
  main(sys.argv[1:])
