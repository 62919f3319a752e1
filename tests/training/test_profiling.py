"""When a profile starts and ends; tests/launch has a real one."""

import jax
import pytest

from i2vgen_jax.training.profiling import Profiler


@pytest.mark.parametrize(
  ("num_steps", "expected"),
  [(12, ["start profile_00000002", "stop"]), (4, ["start profile_00000002"])],
)
def test_a_profile_is_of_the_next_steps(
  tmp_path, monkeypatch, capfd, num_steps, expected
):
  # The real one crashes on CPUs where libtpu is installed, as here.
  events = []
  monkeypatch.setattr(
    jax.profiler, "start_trace", lambda f: events.append(f"start {f.name}")
  )
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
  profiler = Profiler(tmp_path)
  with profiler:
    for done in range(1, num_steps + 1):
      if done == 2:
        (tmp_path / "profile").touch()
      profiler.after_step(done, look=done % 2 == 0)
      if done == 6:
        assert "stop" not in events
    assert events == expected
  assert events[1:] == ["stop"]
  assert not (tmp_path / "profile").exists()
  assert "writes a profile of the next 5 steps" in capfd.readouterr().err
