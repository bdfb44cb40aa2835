"""Machines to plan for: how they are written, and what their data sheets say."""

import jax
import pytest

from stair_jax.plan import target as target_lib
from stair_jax.plan.target import CHIPS, Target


@pytest.mark.parametrize(
    ("text", "hosts", "each"),
    [("a800x8", 1, 8), ("h200x1", 1, 1), ("h100x2x8", 2, 8), ("cpux3", 1, 3)],
)
def test_a_target_is_a_chip_with_its_hosts_and_devices(text, hosts, each):
    found = Target.parse(text)
    assert (found.hosts, found.each, found.count) == (hosts, each, hosts * each)
    assert found.name == text
    assert found.chip is CHIPS[text[: text.index("x")]]


@pytest.mark.parametrize(
    "text",
    ["a800", "a800x", "x8", "b200x8", "a800x0", "a800x8x", "a800x99999", "cpux2x4"],
)
def test_another_form_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"^config.plan: .*expected.*") as told:
        Target.parse(text)
    assert repr(text) in str(told.value)
    assert "\n" not in str(told.value)


def test_chips_are_what_their_data_sheets_say():
    sheet = {  # GB, TB/s, dense bfloat16 TFLOP/s, NVLink of one direction GB/s
        "a100": (85.1, 2.039, 312, 300),
        "a800": (85.1, 2.039, 312, 200),
        "h100": (84.9, 3.352, 989, 450),
        "h200": (151.4, 4.8, 989, 450),
    }
    for name, (memory, bandwidth, flops, link) in sheet.items():
        chip = CHIPS[name]
        assert (chip.memory or 0) / 1e9 == pytest.approx(memory, abs=0.05), name
        assert (chip.bandwidth or 0) / 1e12 == pytest.approx(bandwidth, abs=0.001), name
        assert (chip.flops or 0) / 1e12 == flops, name
        assert (chip.link or 0) / 1e9 == link, name


def test_a_run_takes_nine_tenths_of_a_gpu_and_a_cpu_keeps_no_count():
    assert Target.parse("a100x1").room == pytest.approx(0.9 * 85.1e9, rel=1e-3)
    assert Target.parse("cpux4").room is None


def test_several_hosts_are_as_fast_as_what_joins_them():
    assert Target.parse("h100x8").link == 450e9
    assert Target.parse("h100x2x8").link == 50e9


def test_a_cpu_target_has_the_devices_of_this_process():
    assert Target.parse("cpux8").devices() == jax.local_devices(backend="cpu")[:8]
    with pytest.raises(ValueError, match="JAX shows 8 CPU devices"):
        Target.parse("cpux9").devices()


def test_operations_hear_the_backend_of_the_target():
    assert jax.default_backend() == "cpu"
    with Target.parse("a800x8").asked():
        assert jax.default_backend() == "gpu"
    assert jax.default_backend() == "cpu"


def test_without_a_plugin_one_line_says_which_extra_is_missing(monkeypatch):
    monkeypatch.setattr(target_lib, "PLUGINS", ("no_such_plugin",))
    with pytest.raises(ValueError, match=r"cuda12 or cuda13 extra \(pip install") as told:
        Target.parse("a800x8").devices()
    assert "\n" not in str(told.value)
