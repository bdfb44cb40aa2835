"""What a step's line warns of."""

import numpy as np
import pytest

from stair_jax import mesh
from stair_jax.data.batches import PairBatch
from stair_jax.log import progress
from stair_jax.log.metrics import Metrics
from stair_jax.train.log import StepLog, rounding
from stair_jax.train.meter import Meter
from tests.support.loops import SPEC, sft_data
from tests.support.training import train_config


def pairs(tokens):
    """A batch of two pairs that compare so many tokens of chosen steps."""
    batch = PairBatch.empty(np.zeros((1, 2, 2, tokens), np.int32))
    batch.weight[:] = 1
    batch.step_mask[0, 0, 0, : tokens // 4] = True
    batch.step_mask[0, 1, 0, : tokens - tokens // 4] = True
    batch.step_mask[0, :, 1] = True  # rejected ones are not what is counted
    return batch


def start(folder, *, apart, dtype, tokens):
    """Writes a first step whose policy and reference are so many nats a token apart."""
    data, config = sft_data(), train_config(compute_dtype=dtype)
    meter = Meter(SPEC, config, reference=True, mesh=mesh.make((1, 1, 1)))
    with Metrics(folder) as metrics, progress.line("dpo", 1) as line:
        log = StepLog("dpo", data, metrics, folder, config, meter, line)
        figures = {"skipped": 0, "loss": 0.7, "kl_per_token": apart}
        log.push(0, figures, 1e-6, pairs(tokens))
        log.flush()


@pytest.mark.parametrize(
    ("dtype", "tokens", "apart", "told"),
    [
        ("float32", 260, 9e-5, False),
        ("float32", 260, -2e-4, True),
        ("bfloat16", 260, 6e-4, False),  # as an H100 rounds
        ("bfloat16", 260, 0.0054, False),  # as an H200 did
        ("bfloat16", 260, -0.02, True),
        ("bfloat16", 64, 0.02, False),
        ("bfloat16", 20_000, 0.004, False),
        ("bfloat16", 20_000, 0.0054, True),  # so many tokens average out what rounds
    ],
)
def test_a_policy_that_does_not_start_as_its_reference_is_told(
    dtype, tokens, apart, told, tmp_path, caplog
):
    start(tmp_path, apart=apart, dtype=dtype, tokens=tokens)
    lines = [r.getMessage() for r in caplog.records if "policy and reference differ" in r.message]
    assert len(lines) == told
    if told:
        assert f"{abs(apart):.2g} nats a token over {tokens} tokens, expected 0" in lines[0]


def test_what_rounds_away_by_hand():
    assert rounding("bfloat16", 256) == pytest.approx(4 * 0.064 / 16)
    assert rounding("bfloat16", 1_000_000) == 5e-3
    assert rounding("float32", 1) == 1e-4
    assert rounding("bfloat16", 0) == rounding("bfloat16", 1)  # a batch without a pair
