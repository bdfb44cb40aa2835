import jax
import jax.numpy as jnp

from stair_jax.log import trace


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_trace_starts_at_the_first_event_and_ends_after_its_number(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    with trace.some(tmp_path, events=3) as event:
        assert calls == []
        for count in range(1, 7):
            event()
            assert calls == ["start"] if count <= 3 else ["start", "stop"]
    assert calls == ["start", "stop"]


def test_a_stage_that_ends_early_still_leaves_a_trace_that_tools_open(tmp_path):
    with trace.some(tmp_path) as event:
        event()
        jnp.ones(3).sum().block_until_ready()
    names = files(tmp_path)
    assert any(name.endswith(".xplane.pb") for name in names)
    assert any(name.startswith("perfetto_trace") for name in names)


def test_without_a_folder_or_an_event_nothing_is_written(tmp_path):
    with trace.some(None) as event:
        event()
    with trace.some(tmp_path):
        pass
    assert files(tmp_path) == []
