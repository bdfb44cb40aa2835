"""An engine that answers the miniature's benchmarks from a table."""

from typing import Any

from stair_jax import text
from stair_jax.evals.benchmark import columns_of, registered
from stair_jax.text import OUTPUT, OUTPUT_END, STEP, STEP_END
from tests.golden.scripted_policy import unit
from tests.support.scripted import ScriptedCodec, ScriptedEngine

BENCHMARKS = ("jailbreak", "harmless")
COLUMNS = columns_of([registered()[name] for name in BENCHMARKS])  # of a table of them


class Teacher:
    """A script that speaks the verifier's language; what it answers is drawn."""

    def expand(self, prompt, trajectory, k):
        if len(trajectory) == 0:
            return f"{STEP} problem analysis : this is safe , plan : {k % 2} {STEP_END}"
        if len(trajectory) == 1:
            return f"{STEP} solve : {k} {STEP_END}"
        answers = ("4", "7", "sorry , i can not help with that", "first take the saw then cut")
        return f"{OUTPUT} final answer : {answers[int(4 * unit(prompt, k))]} {OUTPUT_END}"

    def prior(self, prompt, trajectory, k):
        return 1.0

    def rollout(self, prompt, trajectory, ordinal):
        steps = range(len(trajectory), 3)
        return " ".join(self.expand(prompt, ["x"] * i, ordinal) for i in steps).replace("> <", "><")


class Codec(ScriptedCodec, text.Codec):
    """The scripted codec, where a `text.Codec` is wanted."""

    def prompt_ids(self, question, before=()):
        assert not before
        return super().prompt_ids(question)


class Machine(ScriptedEngine):
    """A scripted engine that can be compiled, and that stops when told to."""

    last: Any = None

    def __init__(self, codec, allowance):
        super().__init__(Teacher(), codec, seed=1)
        self.allowance, self.sampled, Machine.last = allowance, 0, self

    def compile(self, samplings, logps=False):
        self.samplings = list(samplings)

    @property
    def counters(self):
        return {"delivered": 0, "tokens": 0, "steps": 0} | self._counters

    @counters.setter
    def counters(self, found):
        self._counters = found

    def submit(self, request):
        self.sampled += request.key[-2] == "sample"
        super().submit(request)

    def step(self):
        self.allowance -= 1
        if self.allowance < 0:
            raise KeyboardInterrupt
        super().step()
