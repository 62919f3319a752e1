"""Every test sees eight devices, and the library's annotations are checked."""

import os
import sys
from pathlib import Path

from jaxtyping import install_import_hook

# The pod of the mesh tests; other tests stay on the first device. Tests
# compile much and compute little, hence no optimisation.
os.environ["XLA_FLAGS"] = (
  "--xla_force_host_platform_device_count=8"
  " --xla_backend_optimization_level=0 " + os.environ.get("XLA_FLAGS", "")
)
install_import_hook(["i2vgen_jax", "data_pipelines"], "beartype.beartype")
# For `cascade_standin`, which tests of several folders import.
sys.path.insert(0, str(Path(__file__).parent))
