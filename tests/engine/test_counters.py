import pytest

from stair_jax.engine.counters import COUNTERS, shares


def test_shares_by_hand():
    counted = dict.fromkeys(COUNTERS, 0) | {
        "reused": 90,
        "prefilled": 10,
        "decoded": 50,
        "preempted_tokens": 5,
        "busy_slots": 40,
        "idle_slots": 9,
        "overshoot": 1,
        "host_s": 0.5,
        "chunks": 20,
    }
    assert shares(counted) == pytest.approx(
        {
            "reuse_share": 0.9,
            "preempted_share": 0.1,
            "busy_share": 0.8,
            "idle_share": 0.18,
            "overshoot_share": 0.02,
            "host_ms": 25.0,
        }
    )


def test_an_engine_that_did_nothing_has_no_shares():
    assert shares(dict.fromkeys(COUNTERS, 0)) == {}
