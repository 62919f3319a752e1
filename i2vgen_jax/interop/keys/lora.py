"""Keys of a LoRA in the layout of diffusers and of PEFT."""

from collections.abc import Iterator

from i2vgen_jax import lora
from i2vgen_jax.interop.keys.kinds import LINEAR
from i2vgen_jax.interop.keys.table import Row, Table

# Of a pipeline, which is written; of `save_lora_adapter`; of PEFT alone.
PREFIXES = ("unet.", "", "base_model.model.")


def rows_of(network: Table) -> dict[str, tuple[Row, Row]]:
  """The rows of A and B, by the path of the kernel that they change.

  Args:
    network: table of the whole network in the form of diffusers. Only its
      linear layers can have a LoRA here.
  """
  return {
    row.path: tuple(_rows(row))
    for row in network.rows
    if row.layout is LINEAR and row.path.endswith("/kernel")
  }


def _rows(kernel: Row) -> Iterator[Row]:
  for path in lora.paths(kernel.path):
    name = path.split("/")[-2]  # lora_A or lora_B
    layers = [key.removesuffix("weight") for key in kernel.keys]
    keys = (f"{p}{layer}{name}.weight" for p in PREFIXES for layer in layers)
    yield Row(path, tuple(keys), LINEAR)
