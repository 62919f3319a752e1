"""What the hosts of a job on Google Cloud run, and the bucket that they share.

Hosts see the bucket as the folder `/bucket`, because training reads and writes
local paths: by Cloud Storage FUSE on virtual machines and in GKE, by SkyPilot's
mounts there. `/bucket/launch/NAME` has the code, the script of the hosts, their
logs, and on virtual machines the outcome.
"""

from collections.abc import Sequence
from pathlib import Path

from i2vgen_jax.errors import InputError
from launch.jobs.job import Command, Job

# Clone of this repository.
CLONE = Path(__file__).parents[2]


def check_workdir(job: Job) -> None:
  """Raises InputError unless the workdir outlives the hosts."""
  workdir = job.flag("workdir")
  if not workdir.startswith("/bucket/"):
    raise InputError(
      f"--workdir={workdir} would be lost with the hosts; they see "
      "gs://BUCKET as /bucket, so give --workdir=/bucket/runs/NAME"
    )


def stage(job: Job, bucket: str, data: Sequence[Path]) -> tuple[Command, ...]:
  """Commands that copy code, scripts and data to a bucket."""
  code = job.upload.absolute() / "code.tar"
  archive = ("git", "-C", str(CLONE), "archive", f"--output={code}", "HEAD")
  there = f"gs://{bucket}/launch/{job.name}"
  # Removes the logs and the outcome of an earlier launch.
  clear = "--delete-unmatched-destination-objects"
  return (
    archive,
    copy(str(job.upload), there, clear),
    *(copy(str(p), f"gs://{bucket}/data/{p.name}") for p in data),
  )


def copy(source: str, target: str, *options: str) -> Command:
  """Command that copies what has changed in a folder."""
  return ("gcloud", "storage", "rsync", source, target, "--recursive", *options)


def fetch_logs(job: Job, bucket: str) -> Command:
  """Command that copies the logs of the hosts here."""
  there = f"gs://{bucket}/launch/{job.name}/logs"
  return copy(there, str(job.folder / "logs"))


def files(job: Job) -> dict[str, str]:
  """The script of the hosts, and what is in the bucket before they start."""
  return {
    "run.sh": _RUN.format(job=job),
    # Reading a missing object would be an error.
    "outcome": "none\n",
    "logs/launch.txt": f"{job.command}\n",
  }


_RUN = """\
#!/bin/bash
# Installs the code and trains; every host of {job.name} runs it.
set -euo pipefail
here=/bucket/launch/{job.name}
code="$HOME/i2vgen/{job.name}"
log="$code.log"
rm -rf "$code"
mkdir -p "$code"
exec > >(tee -a "$log") 2>&1
date

save_log() {{ cp "$log" "$here/logs/$HOSTNAME.txt"; }}
while sleep 15; do save_log; done &
saver=$!
trap 'kill "$saver"; save_log' EXIT

tar -xf "$here/code.tar" -C "$code"
cd "$code"
# The images have an older Python.
export PATH="$HOME/.local/bin:$PATH"
command -v uv || curl -LsSf https://astral.sh/uv/install.sh | sh
uv venv --quiet --python 3.12
uv pip install --quiet -e '.[data,tpu]'

{job.environment}
# Machines that replace these load the compiled programs.
export JAX_COMPILATION_CACHE_DIR=/bucket/launch/compiled
.venv/bin/{job.command}
"""


# ---- Virtual machines ----


def boot_script(job: Job, bucket: str, project: str) -> str:
  """What a virtual machine runs as root whenever it starts."""
  secrets = "".join(
    f'{name}="$(gcloud secrets versions access latest --secret={name} '
    f'--project={project})"\nexport {name}\n'
    for name in job.secrets
  )
  return _BOOT.format(
    job=job, bucket=bucket, secrets=secrets, tries=job.restarts + 1
  )


_BOOT = """\
#!/bin/bash
# Mounts the bucket and trains, again if a host of the job was lost.
set -euo pipefail
export HOME=/root

if ! command -v gcsfuse; then
  keys=/usr/share/keyrings/cloud.google.asc
  source="https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main"
  curl -sSf https://packages.cloud.google.com/apt/doc/apt-key.gpg > "$keys"
  echo "deb [signed-by=$keys] $source" > /etc/apt/sources.list.d/gcsfuse.list
  apt-get update -q
  apt-get install -q -y gcsfuse
fi
mkdir -p /bucket
mountpoint -q /bucket || gcsfuse --implicit-dirs {bucket} /bucket
here=/bucket/launch/{job.name}
fail() {{
  echo "boot.sh failed at line $1: $2" > "$here/logs/$HOSTNAME-boot.txt"
  echo failed > "$here/outcome"
}}
trap 'fail "$LINENO" "$BASH_COMMAND"' ERR

# Without it, JAX would take each host for a job of its own.
curl -sSf -o /dev/null -H 'Metadata-Flavor: Google' \\
  http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number
{secrets}
for _ in $(seq {tries}); do
  status=0
  bash "$here/run.sh" || status=$?
  if [[ $status == 0 ]]; then
    echo finished > "$here/outcome"
    exit
  fi
  # Unusable input stays unusable.
  if [[ $status == 2 ]]; then break; fi
  sleep 60
done
echo failed > "$here/outcome"
"""


def outcome(job: Job, bucket: str) -> Command:
  """Command that prints what the hosts have written about the end."""
  file = f"gs://{bucket}/launch/{job.name}/outcome"
  return ("gcloud", "storage", "cat", file)
