"""What the command line says of keys: all of them, and the nearest to a typo."""

import subprocess
import sys

import pytest

from stair_jax.config import keys
from stair_jax.config.schema import KNOBS


def test_every_key_has_a_meaning():
    assert [key for key, knob in KNOBS.items() if len(knob.meaning) < 3] == []
    assert KNOBS["search.c"].meaning == "exploration constant of UCB1 (paper 3.1)"
    shared = {KNOBS[f"{stage}.train.lr"].meaning for stage in ("sft", "dpo", "prm")}
    assert shared == {"peak, after warm-up"}


def test_a_list_has_defaults_as_a_stage_has_them():
    found = keys.listed("train.lr")
    assert "config.sft.train.lr = 5e-06\n    peak, after warm-up" in found
    assert "config.dpo.train.lr = 1e-06" in found
    assert "search" not in found
    assert len(keys.listed().split("config.")) > 150
    with pytest.raises(ValueError, match=r"no key contains 'epoch_s'; near: .*sft\.train\.epochs"):
        keys.listed("epoch_s")


NEAR = [
    ("stepz", "stages"),
    ("lr", "dpo.train.lr"),
    ("search.max_tokens", "search.max_step_tokens"),
    ("stges", "stages"),
    ("serach.c", "search.c"),
    ("judge.endpont", "judge.endpoint"),
    ("sft.train.epoch", "sft.train.epochs"),
    ("round", "rounds"),
]


@pytest.mark.parametrize(("typo", "meant"), NEAR)
def test_the_nearest_key_is_among_the_first(typo, meant):
    assert meant in keys.nearest(typo)


def test_a_list_that_is_read_through_head_ends_in_silence():
    """The reader closes the pipe behind its first line; the list is longer than a pipe holds."""
    command = [sys.executable, "-c", "import sys, stair_jax.main as m; m._print('x\\n' * 99_999)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline() == b"x\n"
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 1
