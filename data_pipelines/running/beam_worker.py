"""A worker process of Beam's local runner that ends when the build does.

Beam's own would wait for a runner that is gone, for ever.
"""

import runpy
import sys

from data_pipelines.running.guard import die_with

if __name__ == "__main__":
  die_with(int(sys.argv.pop()))
  runpy.run_module(
    "apache_beam.runners.worker.sdk_worker_main", run_name="__main__"
  )
