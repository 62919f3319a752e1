"""Every test runs with the annotations of the library checked."""

from jaxtyping import install_import_hook

install_import_hook(["i2vgen_jax", "data_pipelines"], "beartype.beartype")
