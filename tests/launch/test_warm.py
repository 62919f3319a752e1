"""`i2vgen warm` compiles exactly what `i2vgen sample` runs."""

import jax
import pytest

from i2vgen_jax.stage import Stage

pytestmark = pytest.mark.usefixtures("quick_compiler")

COMPILATION = "/jax/core/compile/backend_compile_duration"


def test_sample_compiles_no_network_after_warm(
  run, weights, photos, tmp_path, monkeypatch
):
  settings = [f"--weights={weights}", "--size=96x96", "--num-frames=3"]

  def refuse(*_, **__):
    raise AssertionError("the networks ran")

  with monkeypatch.context() as patch:
    patch.setattr(Stage, "generate", refuse)
    status, lines = run("warm", *settings)
  assert status == 0
  assert "compiling base, refine" in lines[0]
  assert not list(tmp_path.iterdir())

  events = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: events.append((name, seconds))
  )
  status, _ = run(
    "sample",
    *settings,
    f"--image={photos['square']}",
    f"--output={tmp_path / 'out.mp4'}",
    "--prompt=a red disc moves left",
  )
  jax.monitoring.clear_event_listeners()
  assert status == 0
  # Small operations outside of the programs may be left.
  compiled = [seconds for name, seconds in events if name == COMPILATION]
  assert len(compiled) < 3, compiled


def test_settings_are_checked(run, weights):
  status, lines = run("warm", f"--weights={weights}", "--size=100x64")
  assert status == 2
  assert "the nearest that fits is 96x64" in lines[-1]
