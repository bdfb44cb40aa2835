"""XLA's flags: added for a GPU alone, told in one line, never against what is set already."""

import logging
import os
import subprocess
import sys
from unittest.mock import Mock

import jax
import pytest

from stair_jax import main, xla_flags
from tests.support.configs import tiny


@pytest.fixture
def gpu(monkeypatch):
    """Has JAX look as it does on a machine with eight GPUs."""
    monkeypatch.setattr(xla_flags, "uses_gpu", lambda: True)
    monkeypatch.setattr(xla_flags, "gpu_count", lambda: 8)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    return monkeypatch


def test_flags_are_added_once_before_what_is_given_and_told(gpu, caplog):
    gpu.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=3 --xla_dump_to=here")
    with caplog.at_level(logging.INFO, "stair_jax.xla_flags"):
        added = xla_flags.add(deterministic=True, kept=True)
    assert added == [*xla_flags.OVERLAP, xla_flags.REPEATABLE]
    flags = os.environ["XLA_FLAGS"].split()
    assert flags == [*added, "--xla_gpu_autotune_level=3", "--xla_dump_to=here"]
    (record,) = caplog.records
    assert all(flag in record.getMessage() for flag in flags)
    assert xla_flags.add(deterministic=True, kept=True) == []  # they are given now
    assert os.environ["XLA_FLAGS"].split() == flags


@pytest.mark.parametrize("value", ["=false", "=true", ""])
def test_a_flag_that_is_set_stays_as_it_is(gpu, value):
    theirs = f"--xla_gpu_enable_latency_hiding_scheduler{value}"
    gpu.setenv("XLA_FLAGS", theirs)
    added = xla_flags.add(deterministic=False, kept=True)
    assert added == [*xla_flags.OVERLAP[1:]]
    assert os.environ["XLA_FLAGS"].split() == [*added, theirs]


def test_determinism_is_asked_for_and_costs_the_tuning_only_where_nothing_keeps_it(gpu):
    found = {}
    for deterministic in (True, False):
        for kept in (True, False):
            gpu.delenv("XLA_FLAGS", raising=False)
            added = xla_flags.add(deterministic=deterministic, kept=kept)
            found[deterministic, kept] = {*added} - {*xla_flags.OVERLAP}
    assert found[True, True] == {xla_flags.REPEATABLE}
    assert found[True, False] == {xla_flags.UNTUNED}
    assert found[False, True] == found[False, False] == set()


def test_one_gpu_has_nothing_to_overlap(gpu):
    gpu.setattr(xla_flags, "gpu_count", lambda: 1)
    assert xla_flags.add(deterministic=False, kept=True) == []
    assert xla_flags.add(deterministic=True, kept=True) == [xla_flags.REPEATABLE]


@pytest.mark.parametrize(
    ("chosen", "want"), [(None, 3), ("", 0), ("-1", 0), ("1", 1), ("0,2", 2), ("GPU-a, GPU-b", 2)]
)
def test_the_gpus_that_a_process_may_use_are_counted(monkeypatch, tmp_path, chosen, want):
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    monkeypatch.setattr(xla_flags, "_DEVICE_FOLDER", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert xla_flags.gpu_count() == want


@pytest.mark.parametrize("version", [(0, 10, 1), (0, 13, 0)])
def test_a_jax_whose_flags_are_not_known_gets_none(gpu, caplog, version):
    gpu.setattr(jax, "__version_info__", version)
    with caplog.at_level(logging.INFO, "stair_jax.xla_flags"):
        assert xla_flags.add(deterministic=True, kept=True) == []
    assert "XLA_FLAGS" not in os.environ
    assert "none added" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING  # determinism was asked for


def test_a_file_of_flags_stays_alone(gpu, caplog):
    gpu.setenv("XLA_FLAGS", "flags.txt")
    with caplog.at_level(logging.INFO, "stair_jax.xla_flags"):
        assert xla_flags.add(deterministic=True, kept=True) == []
    assert os.environ["XLA_FLAGS"] == "flags.txt"
    assert "names the file flags.txt" in caplog.text


def test_without_a_gpu_nothing_is_added_or_said(monkeypatch, caplog):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=here")
    monkeypatch.setattr(xla_flags, "uses_gpu", lambda: False)
    with caplog.at_level(logging.INFO, "stair_jax.xla_flags"):
        assert xla_flags.add(deterministic=True, kept=True) == []
    assert (os.environ["XLA_FLAGS"], caplog.records) == ("--xla_dump_to=here", [])


@pytest.mark.parametrize(
    ("platforms", "plugin", "device", "want"),
    [
        (None, True, True, True),
        ("", True, True, True),
        ("cuda,cpu", True, True, True),
        ("cpu", True, True, False),
        (None, False, True, False),
        (None, True, False, False),
    ],
)
def test_a_gpu_is_used_where_platform_plugin_and_device_are_there(
    monkeypatch, tmp_path, platforms, plugin, device, want
):
    here = str(tmp_path) if device else str(tmp_path / "none")
    monkeypatch.setattr(xla_flags, "_DEVICES", (here,))
    monkeypatch.setattr(xla_flags, "_PLUGINS", ("json" if plugin else "no_such_plugin",))
    before = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    try:
        jax.config.update("jax_platforms", platforms)
        assert xla_flags.uses_gpu() == want
    finally:
        jax.config.update("jax_platforms", before)


def test_this_xla_knows_every_flag():
    """XLA aborts on an unknown one; it parses the flags of GPUs on a CPU as well."""
    flags = [*xla_flags.OVERLAP, xla_flags.REPEATABLE, xla_flags.UNTUNED]
    start = [sys.executable, "-c", "import jax; jax.devices()"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    known = subprocess.run(start, env=environment | {"XLA_FLAGS": " ".join(flags)}, check=False)
    assert known.returncode == 0
    unknown = environment | {"XLA_FLAGS": f"{flags[0]} --xla_gpu_no_such_flag=true"}
    assert subprocess.run(start, env=unknown, capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize(
    ("change", "given", "want"),
    [
        ({}, "", (False, True)),
        ({"deterministic": True}, "", (True, True)),
        ({"compile_cache": ""}, "", (False, False)),
        ({"compile_cache": ""}, "there", (False, True)),
    ],
    ids=str,
)
def test_the_entry_point_asks_for_what_the_configuration_says(monkeypatch, change, given, want):
    """And before anything starts JAX's backend."""
    settings = tiny(workdir="w")
    settings.update(change)
    calls = Mock()
    monkeypatch.setattr(main, "_CONFIG", Mock(value=settings))
    for module, name in (
        (main.logging, "basicConfig"),
        (main.interrupt, "install"),
        (main.mesh, "show_cpus"),
        (main.bars, "quiet_libraries"),
        (main.startup, "claim_memory"),
        (main.startup, "keep_programs"),
        (main.pipeline, "run"),
        (main.xla_flags, "add"),
    ):
        monkeypatch.setattr(module, name, getattr(calls, name))
    flags = {"search.c": 2.0}
    monkeypatch.setattr(main.flags, "FLAGS", {"config": "the flag"})
    monkeypatch.setattr(main.config_flags, "get_override_values", {"the flag": flags}.get)
    before = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    try:
        jax.config.update("jax_compilation_cache_dir", given or None)
        main.main(["main"])
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    order = [call[0] for call in calls.mock_calls]
    assert order.index("add") < order.index("keep_programs") < order.index("run")
    calls.add.assert_called_once_with(deterministic=want[0], kept=want[1])
    calls.run.assert_called_once_with(settings, flags)  # what the command line set
