"""Quality against time of the bundled base stage: solvers, steps and reuse.

    i2vgen sweep configs/sweep_sampling.py --workdir sweeps/sampling \\
        --metric objects.motion_base --highest \\
        -- evaluate --num-clips 32
"""


def sweep():
  for solver in ("ddim", "dpmpp_2m"):
    for steps in (1, 2, 4, 8):
      yield {"solver": solver, "steps": steps}
  for reuse_every in (2, 3):
    yield {"solver": "ddim", "steps": 8, "reuse_every": reuse_every}
