"""Sampled responses on disk: what is missing of them is made at the next start, nothing else."""

import pytest

from stair_jax import jsonl
from stair_jax.engine.request import Sampling
from stair_jax.log.metrics import Metrics
from stair_jax.records import Candidate
from stair_jax.run import judges, models, responses
from stair_jax.run.known_models import SFT_MODEL
from stair_jax.run.lineage import Lineage
from stair_jax.run.models import Policy
from stair_jax.run.workdir import Run
from stair_jax.search.candidates import Draw
from tests.support import evaluation
from tests.support.candidates import ASKED, EOS, Talker
from tests.support.configs import tiny
from tests.support.scripted import ScriptedEngine, ScriptedJudge
from tests.support.search_engine import SPEC

DRAW = Draw(count=2, max_tokens=9, key=(0, "x"), direct=True, sampling=Sampling(temperature=0.7))
GIVEN = {"p0": f"answer 2{EOS}"}
EVERY = ["p0/0", "p0/1", "p0/given", "p1/0", "p1/1"]


class Codec(evaluation.Codec):
    def response_ids(self, response):
        return self.encode(response)


class Machine(ScriptedEngine):
    def __init__(self, *args, **how):
        super().__init__(*args, **how)
        self.counters["delivered"] = 0

    def compile(self, samplings, extends=False):
        self.compiled = samplings


class Verdicts(ScriptedJudge):
    def close(self):
        assert not self._waiting


@pytest.fixture
def sampled(tmp_path, monkeypatch):
    """Samples into one workdir; returns the ids on disk, those judged now, and those drawn."""
    config, lineage = tiny(workdir=str(tmp_path)), Lineage(tmp_path / "lineage.json")
    run = Run(config, tmp_path, lineage, Metrics(tmp_path))
    codec, judge, engines = Codec(), Verdicts(Talker(), seed=1), []

    def engine_for(*_):
        engines.append(Machine(Talker(), codec, seed=1))
        return engines[-1]

    monkeypatch.setattr(models, "load", lambda _, model, **__: Policy(model, SPEC, None, codec))
    monkeypatch.setattr(models, "engine_for", engine_for)
    monkeypatch.setattr(judges, "judge_of", lambda *_, **__: judge)

    def sample(without=()):
        path = tmp_path / "x" / "candidates.jsonl"
        if without:
            rows = list(jsonl.read_jsonl(path, Candidate))
            jsonl.write_jsonl(path, [row for row in rows if row.id not in without])
        judge.asked.clear()
        engines.clear()
        found = responses.sample(run, "x", SFT_MODEL, ASKED[:2], DRAW, GIVEN)
        keys = [key for engine in engines for key in engine.keys]
        drawn = sorted(f"{prompt}/{number}" for *_, prompt, number in keys)
        return [row.id for row in found.rows], sorted(id for id, *_ in judge.asked), drawn

    return sample


def test_all_are_made_once(sampled):
    drawn = [name for name in EVERY if not name.endswith("given")]
    assert sampled() == (EVERY, EVERY, drawn)
    assert sampled() == (EVERY, [], [])


@pytest.mark.parametrize("missing", [["p0/given"], ["p1/0"], ["p0/1", "p0/given"]])
def test_only_what_is_missing_is_made_at_the_next_start(sampled, missing):
    sampled()
    drawn = [name for name in missing if not name.endswith("given")]
    assert sampled(without=missing) == (EVERY, missing, drawn)
