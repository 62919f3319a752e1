"""`i2vgen warm`: compiles what a video needs before it is asked for."""

import dataclasses

from launch import arguments
from launch.progress import note
from launch.sample import Settings, open_plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(Settings):
  """Compiles the programs that `i2vgen sample` runs with the same settings.

      i2vgen warm --weights WEIGHTS --size 1280x704 --num-frames 16

  They are kept for later runs on the same kind of device. Nothing is computed,
  but a size that does not fit in memory is refused.
  """


def main(argv: list[str]) -> None:
  """Compiles every stage.

  Raises:
    InputError: the weights cannot be loaded, or a setting cannot be met.
  """
  settings = arguments.parse(Arguments, argv, "i2vgen warm")
  cascade, plan = open_plan(settings)
  note(f"compiling {', '.join(plan)} ...")
  cascade.compile(plan)
  note("compiled; i2vgen sample with these settings starts at once")
