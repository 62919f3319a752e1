"""A batch script for Slurm, run in a clone on a file system of all nodes."""

from launch.jobs.job import Job, Recipe, Step


def recipe(job: Job, partition: str | None) -> Recipe:
  """Starts a batch job, which puts itself back into the queue.

  Nodes use the environment of the shell that starts it, secrets included.
  """
  script = _SCRIPT.format(
    job=job,
    nodes=job.tpu.hosts * job.slices,
  )
  file = str(job.upload / "job.sh")
  return Recipe(
    files={"job.sh": script},
    stage=(),
    steps=(
      Step(
        create=(
          *(
            "sbatch",
            "--wait",
            f"--output={job.folder / 'logs' / 'slurm.txt'}",
          ),
          *((f"--partition={partition}",) if partition else ()),
          file,
        ),
        delete=("scancel", "--me", f"--name={job.name}"),
      ),
    ),
  )


_SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={job.name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
{job.environment}
status=0
srun --kill-on-bad-exit=1 {job.command} || status=$?
# Status 2 is unusable input, which stays unusable.
if [[ $status != 0 && $status != 2 ]] &&
  [[ ${{SLURM_RESTART_COUNT:-0}} -lt {job.restarts} ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""
