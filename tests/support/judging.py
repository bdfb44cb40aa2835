"""A model that judges in words, and a run that asks it."""

import collections
import zlib

from stair_jax.engine.request import Prefix, Result
from stair_jax.log.metrics import Metrics
from stair_jax.miniature import tokenizer
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import Run
from stair_jax.text import Codec
from tests.support.configs import tiny

CODEC = Codec(tokenizer.build(judging_too=True), "llama3")
STAIR = (
    "<|Reasoning_step|> problem analysis : it <|/Reasoning_step|>"
    " <|Output|> final answer : {} <|/Output|>"
)


class Model:
    """The policy's engine: thinks, answers 7 or 8, and judges by `verdict(judge's prompt)`."""

    def __init__(self, verdict):
        self.counters = {"delivered": 0, "slots": 1, "steps": 1}
        self.hungry, self.held, self.compiled = True, set(), None
        self.prefilled, self.kinds = [], collections.Counter()
        self._verdict, self._waiting, self._done = verdict, [], []

    def compile(self, samplings, *, logps, extends):
        self.compiled = [s.temperature for s in samplings], extends

    def _hold(self, ids):
        prefix = Prefix(ids)
        self.held.add(prefix)
        return prefix

    def root(self, ids):
        self.prefilled.append(len(ids))
        return self._hold(ids)

    def extend(self, prefix, ids):
        assert prefix in self.held
        self.prefilled.append(len(ids))
        return self._hold((*prefix.ids, *ids))

    def submit(self, request):
        assert request.prefix in self.held
        self._waiting.append(request)

    def _say(self, request):
        asked = CODEC.decode(request.prefix.ids)
        if "judge this answer" in asked:
            self.kinds["judge"] += 1
            return self._verdict(asked)
        number = request.key[-1]
        self.kinds[request.stop] += 1
        if request.stop == "step":
            return f"<|Reasoning_step|> count {number} <|/Reasoning_step|>"
        start = "" if "<|Reasoning_step|>" in asked else STAIR.split("<|Output|>")[0]
        answer = 7 + zlib.crc32(repr(request.key).encode()) % 2
        return start + f"<|Output|> final answer : {answer} <|/Output|>"

    def step(self):
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            ids = tuple(CODEC.response_ids(self._say(request)))
            prefix = self._hold((*request.prefix.ids, *ids))
            self._done.append(
                Result(id=request.id, ids=ids, logps=(), prefix=prefix, finish="stop")
            )

    def collect(self):
        done, self._done = self._done, []
        return done

    def release(self, prefix):
        self.held.remove(prefix)

    def cancel(self, request_id):
        self._waiting = [r for r in self._waiting if r.id != request_id]

    @property
    def idle(self):
        return not self._waiting


def run_of(tmp_path, **changes):
    config = tiny("smoke", workdir=str(tmp_path), **changes)
    return Run(config, tmp_path, Lineage(tmp_path / "lineage.json"), Metrics(tmp_path))
