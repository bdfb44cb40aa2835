"""An engine, a codec and a judge that follow a script: `EngineLike`, `SearchCodec` and `Judge`.

A script has `expand(prompt, trajectory, k)`, `prior(prompt, trajectory, k)`,
`rollout(prompt, trajectory, visit)` and `judge(prompt, response)`, as tests/golden/
scripted_policy.py does. Answers come late and in shuffled order, as a real engine's do.
"""

import dataclasses
import hashlib
import math
import random
import re

from stair_jax.config.schema import RewardConfig, SearchConfig
from stair_jax.engine.request import Prefix, Result
from stair_jax.judges.base import Score
from stair_jax.model.reward import Readout
from stair_jax.prm.reader import Reading
from stair_jax.records import Prompt
from stair_jax.search.driver import grow
from stair_jax.search.reward import Reward
from stair_jax.text import OUTPUT, OUTPUT_END, STEP, STEP_END, TAGS
from tests.golden import scripted_policy

ENDS = (OUTPUT_END, "<|eot_id|>", "<|end_of_text|>")
_TOKENS = re.compile("(" + "|".join(map(re.escape, (*TAGS, *ENDS))) + ")")


class ScriptedCodec:
    """Texts as ids: every tag is a token, and so is all that stands between two of them.

    A piece's id is a hash of it, so that ids do not depend on what was seen before.
    """

    def __init__(self):
        self._pieces: dict[int, str] = {}
        self.end_stop = frozenset(map(self._id, ENDS))
        self.step_stop = self.end_stop | {self._id(STEP_END)}

    def _id(self, piece):
        digest = hashlib.blake2b(piece.encode(), digest_size=4).digest()
        id = int.from_bytes(digest, "big") >> 1  # an int32, as token ids are
        assert self._pieces.setdefault(id, piece) == piece
        return id

    def encode(self, text):
        return [self._id(piece) for piece in _TOKENS.split(text) if piece]

    def prompt_ids(self, question, before=()):
        return [self._id("prompt: " + question)]

    def decode(self, ids):
        return "".join(self._pieces[i] for i in ids)


class ScriptedPrefix(Prefix):
    """A sequence that remembers the texts it was made from."""

    def __init__(self, ids, prompt, trajectory):
        super().__init__(ids)
        self.prompt, self.trajectory = prompt, trajectory


class ScriptedEngine:
    """Answers requests from the script, each after a few steps; counts who holds what.

    It is hungry while fewer than `appetite` requests wait, always where that is None.
    """

    def __init__(self, script, codec, *, seed=0, slowest=3, max_prompt=10**6, appetite=None):
        self.script, self.codec, self.max_prompt = script, codec, max_prompt
        self.appetite = appetite
        self.counters = {"tokens": 0, "steps": 0}
        self.keys, self.released, self.held = [], 0, set()
        self._random, self._slowest = random.Random(seed), slowest
        self._waiting, self._done = {}, []

    def _hold(self, prefix):
        self.held.add(prefix)
        return prefix

    def root(self, ids):
        question = self.codec.decode(ids).removeprefix("prompt: ")
        if len(question) > self.max_prompt:
            raise ValueError(f"prompt: {len(question)} tokens, at most {self.max_prompt} expected")
        return self._hold(ScriptedPrefix(ids, question, ()))

    def extend(self, prefix, ids):
        assert prefix in self.held, "continues a sequence that was given back"
        trajectory = (*prefix.trajectory, self.codec.decode(ids))
        return self._hold(ScriptedPrefix((*prefix.ids, *ids), prefix.prompt, trajectory))

    def submit(self, request):
        assert request.id not in self._waiting
        assert request.prefix in self.held, "continues a sequence that was given back"
        self.keys.append(request.key)
        self._waiting[request.id] = [self._random.randint(1, 1 + self._slowest), request]

    def step(self):
        self.counters["steps"] += 1
        for waiting in self._waiting.values():
            waiting[0] -= 1
        ready = [id for id, (steps, _) in self._waiting.items() if steps <= 0]
        self._random.shuffle(ready)
        self._done += [self._answer(self._waiting.pop(id)[1]) for id in ready]

    def _answer(self, request):
        start, (*_, kind, ordinal) = request.prefix, request.key
        assert request.prefix in self.held
        place = start.prompt, list(start.trajectory)
        step = kind == "step"
        text = (self.script.expand if step else self.script.rollout)(*place, ordinal)
        assert request.stop == ("step" if step else "end")
        p = self.script.prior(*place, ordinal) if step else 1.0
        ids = tuple(self.codec.encode(text))[: request.max_tokens]
        stops = self.codec.step_stop if step else self.codec.end_stop
        finish = "stop" if ids and ids[-1] in stops else "length"
        self.counters["tokens"] += len(ids)
        text = self.codec.decode(ids)
        prefix = ScriptedPrefix(start.ids + ids, start.prompt, (*start.trajectory, text))
        logps = (math.log(p),) * len(ids) if request.logps else ()
        return Result(id=request.id, ids=ids, logps=logps, prefix=self._hold(prefix), finish=finish)

    def collect(self):
        done, self._done = self._done, []
        return done

    def release(self, prefix):
        self.held.remove(prefix)  # KeyError: given back twice
        self.released += 1

    def cancel(self, request_id):
        self._waiting.pop(request_id, None)
        for result in [r for r in self._done if r.id == request_id]:
            self._done.remove(result)
            self.release(result.prefix)

    @property
    def idle(self):
        return not self._waiting and not self._done

    @property
    def hungry(self):
        return self.appetite is None or len(self._waiting) < self.appetite


class ScriptedJudge:
    """Scores responses from the script, some calls later and in shuffled order."""

    def __init__(self, script, *, seed=0, slowest=2):
        self.script, self.asked = script, []
        self._random, self._slowest, self._waiting = random.Random(seed), slowest, []

    def submit(self, id, prompt, response):
        self.asked.append((id, prompt.id, response))
        verdict = self.script.judge(prompt.question, response)
        score = None if verdict is None else Score(safety=verdict[0], helpfulness=verdict[1])
        self._waiting.append([self._random.randint(0, self._slowest), id, score])

    def collect(self):
        for waiting in self._waiting:
            waiting[0] -= 1
        ready = [w for w in self._waiting if w[0] < 0]
        self._waiting = [w for w in self._waiting if w[0] >= 0]
        self._random.shuffle(ready)
        return [(id, score) for _, id, score in ready]


class ScriptedRewardModel:
    """Scores each step by a hash of the prompt and all steps so far; counts who holds what."""

    readout = Readout(position="step_end", loss="bce", low=-3.0, high=3.0)

    def __init__(self, codec, *, salt="rm", max_prompt=10**6):
        self.codec, self.salt, self.max_prompt = codec, salt, max_prompt
        self.held, self.calls = set(), []  # items of each call

    def _hold(self, prefix):
        self.held.add(prefix)
        return prefix

    def score(self, prompt, trajectory):
        """The raw score of the last step of a trajectory, which has many ties."""
        return round(8 * scripted_policy.unit(self.salt, prompt, *trajectory)) / 2 - 2

    def root(self, ids):
        question = self.codec.decode(ids).removeprefix("prompt: ")
        if len(question) > self.max_prompt:
            raise ValueError(f"prompt: {len(question)} tokens, at most {self.max_prompt} expected")
        return self._hold(ScriptedPrefix(ids, question, ()))

    def read(self, items):
        self.calls.append(len(items))
        return [self._read(prefix, steps) for prefix, steps in items]

    def _read(self, start, steps):
        assert start in self.held, "reads on from a sequence that was given back"
        assert all(steps), "an empty step"
        ids, trajectory, raw = start.ids, start.trajectory, []
        for step in steps:
            ids, trajectory = ids + tuple(step), (*trajectory, self.codec.decode(step))
            raw.append(self.score(start.prompt, trajectory))
        return Reading(self._hold(ScriptedPrefix(ids, start.prompt, trajectory)), tuple(raw))

    def release(self, prefix):
        self.held.remove(prefix)  # KeyError: given back twice


class RandomScript:
    """A script fixed by a salt: `names` different steps, ends and missing verdicts at a rate."""

    def __init__(self, salt, *, names=6, ends=0.2, missing=0.0, uncut=1.0):
        self.salt, self.names, self.ends, self.missing = salt, names, ends, missing
        self.uncut = uncut  # share of steps that close their tag

    def _unit(self, *parts):
        return scripted_policy.unit(self.salt, *parts)

    def expand(self, prompt, trajectory, k):
        name = int(self._unit("name", prompt, *trajectory, k) * self.names)
        if self._unit("end", prompt, *trajectory, name) < self.ends:
            return f"{OUTPUT}answer {name}{OUTPUT_END}"
        cut = self._unit("cut", prompt, *trajectory, name) >= self.uncut
        return f"{STEP}thought {name}{'' if cut else STEP_END}"

    def prior(self, prompt, trajectory, k):
        return 0.05 + 0.95 * self._unit("prior", prompt, *trajectory, k)

    def rollout(self, prompt, trajectory, visit):
        return f"{OUTPUT}final {int(self._unit('f', prompt, *trajectory, visit) * 50)}{OUTPUT_END}"

    def judge(self, prompt, response):
        if self._unit("missing", prompt, response) < self.missing:
            return None
        marks = [-1.0, -0.5, 0.5, 1.0]
        return tuple(marks[int(self._unit(side, prompt, response) * 4)] for side in "SH")


def search_config(**changes):
    """A small search with deterministic ties; odd sizes."""
    config = SearchConfig(
        iterations=37,
        num_children=3,
        c=1.5,
        max_depth=5,
        score="ucb",
        prior="arithmetic",
        reward="paper",
        visit_all_nodes=True,
        reselect_terminal=True,
        ties="first",
        max_step_tokens=50,
        max_rollout_tokens=70,
        temperature=1.2,
        top_p=0.9,
        top_k=50,
        trees_in_flight=5,
        export_official=False,
    )
    return dataclasses.replace(config, **changes)


PAPER = Reward("paper", RewardConfig(F="identity", c1=1.0, c2=-1.0, k1=1.0, k2=1.0))


def prompts(count):
    kinds = "safety", "helpfulness"
    return [Prompt(id=f"p{i}", question=f"question {i}", type=kinds[i % 2]) for i in range(count)]


def run(
    script,
    config,
    *,
    rows=None,
    seed=0,
    schedule=0,
    judge=None,
    kind=ScriptedEngine,
    model=None,
    **engine,
):
    """Grows a forest on a script; returns the trees by prompt id, the engine and the judge.

    `model` makes a reward model of the codec, where `config.value` wants one.
    """
    codec, trees = ScriptedCodec(), {}
    engine = kind(script, codec, seed=schedule, **engine)
    judge = judge or ScriptedJudge(script, seed=schedule)
    leftovers = grow(
        prompts(7) if rows is None else rows,
        engine=engine,
        judge=judge,
        codec=codec,
        config=config,
        reward=PAPER,
        seed=seed,
        on_tree=lambda tree: trees.update({tree.prompt.id: tree}),
        valuer=None if model is None else model(codec),
    )
    return trees, engine, judge, leftovers
