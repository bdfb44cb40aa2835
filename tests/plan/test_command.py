"""`--config.plan` as a command: what it exits with, and what it can do without."""

import pytest

from stair_jax import main
from stair_jax.config import default
from stair_jax.config.checks import validate
from stair_jax.plan import planning
from tests.support.configs import FILES

TINY = next(str(path) for path in FILES if path.stem == "tiny")


def test_a_key_that_there_is_not_exits_with_2_where_a_plan_was_asked_for(capsys):
    wrong, said = "--config.sead=3", "error: --config.sead: no such key; did you mean config.seed"
    with pytest.raises(SystemExit) as ended:
        main._parsed(["stair-jax", f"--config={TINY}", "--config.plan=cpux1", wrong])
    assert ended.value.code == planning.NO_PLAN
    told = capsys.readouterr().err
    assert told.startswith(said)
    assert told.count("\n") == 1
    with pytest.raises(SystemExit, match=said):  # a text is exit code 1
        main._parsed(["stair-jax", f"--config={TINY}", wrong])


def test_a_plan_needs_no_workdir_and_refuses_what_a_run_refuses(capsys):
    c = default()
    c.data.update(sft_rows=1, round_prompts=1)
    c.judge.update(safety="verifier", helpfulness="verifier")
    with pytest.raises(ValueError, match=r"config\.workdir: not set"):
        validate(c)
    c.plan = "cpux1"
    validate(c)
    c.search.iterations = 0
    assert main._planned(c) == planning.NO_PLAN
    assert capsys.readouterr().err.startswith("error: config.search.iterations: 0, expected")
