"""Every test runs with the annotations of the library checked."""

import sys
from pathlib import Path

from jaxtyping import install_import_hook

install_import_hook(["i2vgen_jax", "data_pipelines"], "beartype.beartype")
# For `cascade_standin`, which tests of several folders import.
sys.path.insert(0, str(Path(__file__).parent))
