"""A worker process of Beam's local runner that ends with the build.

Beam's own worker waits forever for a runner that was killed.
"""

import runpy
import sys

from data_pipelines.running.guard import die_with

if __name__ == "__main__":
  die_with(int(sys.argv.pop()))
  runpy.run_module(
    "apache_beam.runners.worker.sdk_worker_main", run_name="__main__"
  )
