"""What a step's line warns of."""

import pytest

from stair_jax import mesh
from stair_jax.log import progress
from stair_jax.log.metrics import Metrics
from stair_jax.train.log import StepLog
from stair_jax.train.meter import Meter
from tests.support.loops import SPEC, sft_data
from tests.support.training import train_config


def start(folder, *, apart, dtype):
    """Writes a first step whose policy and reference are so many nats a token apart."""
    data, config = sft_data(), train_config(compute_dtype=dtype)
    meter = Meter(SPEC, config, reference=True, mesh=mesh.make((1, 1, 1)))
    with Metrics(folder) as metrics, progress.line("dpo", 1) as line:
        log = StepLog("dpo", data, metrics, folder, config, meter, line)
        log.push(0, {"skipped": 0, "loss": 0.7, "kl_per_token": apart}, 1e-6, data.batch_at(0))
        log.flush()


@pytest.mark.parametrize(
    ("dtype", "apart", "told"),
    [
        ("float32", 9e-5, False),
        ("float32", -2e-4, True),
        ("bfloat16", 6e-4, False),  # as an H100 rounds
        ("bfloat16", -0.02, True),
    ],
)
def test_a_policy_that_does_not_start_as_its_reference_is_told(
    dtype, apart, told, tmp_path, caplog
):
    start(tmp_path, apart=apart, dtype=dtype)
    lines = [r.getMessage() for r in caplog.records if "policy and reference differ" in r.message]
    assert len(lines) == told
    if told:
        assert f"{abs(apart):.2g} nats a token, expected 0" in lines[0]
