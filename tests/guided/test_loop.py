"""Test-time search on a scripted engine and reward model, against plain versions of each."""

import dataclasses
import math
import statistics
from typing import Any

import pytest

from stair_jax import config as config_lib
from stair_jax.config.schema import GuidedConfig
from stair_jax.config.strategies import parse
from stair_jax.guided import beams, loop
from stair_jax.text import OUTPUT, OUTPUT_END, STEP
from tests.golden import scripted_policy
from tests.support import scripted
from tests.support.scripted import RandomScript, ScriptedCodec, ScriptedEngine, ScriptedRewardModel

CONFIG = dataclasses.replace(GuidedConfig.of(config_lib.default().evaluate), max_tokens=100)
LIVELY = RandomScript("guided", names=5, ends=0.15)


def run(
    plan,
    script: Any = LIVELY,
    *,
    rows=None,
    seed=3,
    max_depth=5,
    schedule=0,
    kind=ScriptedEngine,
    model=ScriptedRewardModel,
    appetite=None,
    config=CONFIG,
    read_at=64,
):
    """Returns {prompt id: (what was found, tokens, scored, duplicates)}, engine and model."""
    codec, found = ScriptedCodec(), {}
    engine, reader = kind(script, codec, seed=schedule, appetite=appetite), model(codec)
    guide = loop.Guide(
        engine=engine,
        reward_model=reader,
        codec=codec,
        config=config,
        max_depth=max_depth,
        seed=seed,
    )

    def on_found(state, what):
        costs = state.tokens, state.scored, state.duplicates
        found[state.prompt.id] = what, *costs

    rows = scripted.prompts(9) if rows is None else rows
    assert loop.find(rows, plan, guide=guide, read_at=read_at, on_found=on_found) == {}
    assert not engine.held, "sequences of the engine were kept"
    assert not reader.held, "sequences of the reward model were kept"
    return found, engine, reader


def of(name):
    return lambda state: beams.beam(state, parse(name))


def greedy(state):
    return beams.greedy(state, parse("greedy"))


class Plain:
    """Beams written down for one prompt, with no sequences and nothing side by side."""

    def __init__(self, prompt, name, *, script: Any = LIVELY, max_depth=5, config=CONFIG):
        self.prompt, self.strategy, self.script = prompt, parse(name), script
        self.max_depth, self.config, self.codec = max_depth, config, ScriptedCodec()
        self.model = ScriptedRewardModel(self.codec)
        self.tokens = self.duplicates = 0

    def grow(self, trajectory, ordinal, look=False):
        """(steps of the continuation, its state) after `trajectory`."""
        used = sum(len(self.codec.encode(step)) for step in trajectory)
        last = not look and len(trajectory) + 1 >= self.max_depth
        write = self.script.rollout if last else self.script.expand
        ids = self.codec.encode(write(self.prompt, list(trajectory), ordinal))
        ids = ids[: self.config.max_tokens - used]
        self.tokens += len(ids)
        steps = [self.codec.decode(step) for step in beams.steps_of(ids, self.codec.step_stop)]
        if ids[-1] in self.codec.end_stop:
            return steps, "ended"
        full = used + len(ids) >= self.config.max_tokens or ids[-1] not in self.codec.step_stop
        return steps, "cut" if full else "open"

    def scores_of(self, trajectory):
        places = range(1, len(trajectory) + 1)
        return [self.model.score(self.prompt, trajectory[:end]) for end in places]

    def kept_by(self, trajectory, state):
        looks = self.config.lookahead if self.strategy.kind == "lookahead" else 0
        for _ in range(looks):
            if state == "open":
                steps, state = self.grow(trajectory, 0, look=True)
                trajectory = (*trajectory, *steps)
        return self.scores_of(trajectory)[-1]

    def round(self, group, width, offset):
        """The next beams of one group."""
        pool = [beam for beam in group if beam[1] != "open"]
        going = [beam for beam in group if beam[1] == "open"]
        count = (width - len(pool)) * self.strategy.each // len(going) if going else 0
        for trajectory, _ in going:
            siblings = []
            for k in range(count):
                steps, state = self.grow(trajectory, offset * count + k)
                if steps in siblings:
                    self.duplicates += 1
                else:
                    siblings.append(steps)
                    pool.append(((*trajectory, *steps), state))
        ranked = [self.kept_by(*beam) for beam in pool]
        order = sorted(range(len(pool)), key=lambda i: (-ranked[i], i))
        return [pool[i] for i in order[:width]]

    def value(self, trajectory, state):
        units = [1 / (1 + math.exp(-raw)) for raw in self.scores_of(trajectory)]
        return state == "ended", {
            "last": units[-1],
            "min": min(units),
            "mean": statistics.fmean(units),
            "product": math.prod(units),
        }[self.config.aggregation]

    def best(self):
        """The ids of the best response, and its scores."""
        diverse = self.strategy.kind == "diverse"
        groups, width = (self.strategy.width, 1) if diverse else (1, self.strategy.width)
        kept, first = {g: [((), "open")] for g in range(groups)}, True
        while any(state == "open" for group in kept.values() for _, state in group):
            kept = {g: self.round(group, width, g * first) for g, group in kept.items()}
            first = False
        every = [beam for group in kept.values() for beam in group]
        trajectory, _ = max(every, key=lambda beam: self.value(*beam))
        return tuple(self.codec.encode("".join(trajectory))), self.scores_of(trajectory)


NAMES = ("beam_2x4", "beam_3x2", "beam_1x1", "diverse_3x2", "lookahead_2x3")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("aggregation", ["last", "min", "mean", "product"])
def test_beams_equal_the_plain_version(name, aggregation):
    config = dataclasses.replace(CONFIG, aggregation=aggregation, lookahead=2)
    for script in (LIVELY, scripted_policy):
        found, _, _ = run(of(name), script, config=config)
        for prompt in scripted.prompts(9):
            plain = Plain(prompt.question, name, script=script, config=config)
            ids, raw = plain.best()
            got, spent, scored, duplicates = found[prompt.id]
            assert got.ids == ids
            assert got.raw == pytest.approx(raw)
            assert (spent, duplicates) == (plain.tokens, plain.duplicates)
            assert scored <= spent if name != "lookahead_2x3" else scored >= len(got.ids)


@pytest.mark.parametrize("name", ["beam_2x4", "lookahead_2x3"])
@pytest.mark.parametrize("limit", [5, 7])
def test_a_response_and_its_future_fit_the_limit(name, limit):
    config = dataclasses.replace(CONFIG, max_tokens=limit, lookahead=3)
    found, _, _ = run(of(name), config=config)
    for prompt in scripted.prompts(9):
        plain = Plain(prompt.question, name, config=config)
        ids, raw = plain.best()
        got, spent, *_ = found[prompt.id]
        assert len(got.ids) <= limit
        assert (got.ids, spent) == (ids, plain.tokens)
        assert got.raw == pytest.approx(raw)
    assert answers(found) != answers(run(of(name))[0])


def answers(found):
    return {id: what for id, (what, *_) in found.items()}


def test_each_kind_width_and_successors_reach_the_answers():
    every = {name: answers(run(of(name))[0]) for name in (*NAMES, "beam_2x2", "diverse_2x4")}
    for name in every:
        assert sum(every[name] == other for other in every.values()) == 1, name


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("beam_2x4", {"max_depth": 3}),
        ("beam_2x4", {"seed": 4}),
        ("beam_2x4", {"config": dataclasses.replace(CONFIG, max_tokens=7)}),
        ("beam_2x4", {"config": dataclasses.replace(CONFIG, aggregation="min")}),
        ("lookahead_2x3", {"config": dataclasses.replace(CONFIG, lookahead=3)}),
    ],
    ids=str,
)
def test_no_setting_is_dead(name, change):
    plain, engine, _ = run(of(name))
    changed, other, _ = run(of(name), **change)
    if "seed" in change:  # the script draws by the place, the engine by the key
        assert engine.keys != other.keys
        assert {key[0] for key in other.keys} == {4}
    else:
        assert answers(plain) != answers(changed)


def test_sampling_reaches_the_requests():
    class Watched(ScriptedEngine):
        seen = ()

        def submit(self, request):
            Watched.seen += (request.sampling,)
            super().submit(request)

    run(of("beam_2x2"), kind=Watched)
    (usual,) = set(Watched.seen)
    assert (usual.temperature, usual.top_p, usual.top_k) == (0.6, 0.9, 50)  # of the paper
    Watched.seen = ()
    other = dataclasses.replace(CONFIG, temperature=0.7, top_p=0.8, top_k=9)
    run(lambda state: beams.sample(state, range(2)), kind=Watched, config=other)
    (changed,) = set(Watched.seen)
    assert (changed.temperature, changed.top_p, changed.top_k) == (0.7, 0.8, 9)
    Watched.seen = ()
    run(of("lookahead_2x2"), kind=Watched)
    assert {how.temperature for how in Watched.seen} == {0.6, 0.0}  # it looks ahead greedily
    Watched.seen = ()
    run(greedy, kind=Watched)
    assert {how.temperature for how in Watched.seen} == {0.0}


class Worded:
    """Continues with one text after the other; one that closes no tag has run out of room."""

    def __init__(self, *texts):
        self.texts = texts

    def expand(self, prompt, trajectory, k):
        return self.texts[k % len(self.texts)]

    def prior(self, prompt, trajectory, k):
        return 1.0


LOW, HIGH = f"{OUTPUT}low{OUTPUT_END}", f"{OUTPUT}high{OUTPUT_END}"
CUT, CUT_HIGH = f"{STEP}cut low", f"{STEP}cut high"


@pytest.mark.parametrize(
    ("texts", "want"),
    [
        ((LOW, CUT_HIGH), LOW),
        ((CUT_HIGH, LOW), LOW),
        ((LOW, HIGH), HIGH),
        ((HIGH, LOW), HIGH),
        ((CUT, CUT_HIGH), CUT_HIGH),  # none ended
        ((CUT_HIGH, CUT), CUT_HIGH),
    ],
)
@pytest.mark.parametrize("name", ["beam_2x1", "diverse_2x1"])
def test_a_response_that_ended_is_preferred_to_one_that_was_cut(name, texts, want):
    class Liking(ScriptedRewardModel):
        def score(self, prompt, trajectory):
            return 5.0 if "high" in trajectory[-1] else -5.0

    rows = scripted.prompts(1)
    found, _, _ = run(of(name), Worded(*texts), rows=rows, model=Liking)
    (what, *_) = found[rows[0].id]
    assert what.ids == tuple(ScriptedCodec().encode(want))


@pytest.mark.parametrize("name", ["beam_2x4", "diverse_3x2", "lookahead_2x3"])
def test_nothing_depends_on_company_order_or_schedule(name):
    alone = {}
    for prompt in scripted.prompts(9):
        alone |= run(of(name), rows=[prompt])[0]
    rows = scripted.prompts(9)
    for schedule, appetite, order in ((0, None, rows), (5, 3, rows), (9, 1, rows[::-1])):
        assert run(of(name), schedule=schedule, appetite=appetite, rows=order)[0] == alone


def test_sample_i_is_the_same_for_every_count_and_equal_ones_are_read_once():
    few, _, _ = run(lambda state: beams.sample(state, range(2)))
    many, engine, reader = run(lambda state: beams.sample(state, range(7)))
    assert [key[-2:] for key in engine.keys[:7]] == [("sample", i) for i in range(7)]
    for id, ((drawn, rest), tokens, scored, _) in many.items():
        assert not rest
        assert few[id][0][0] == drawn[:2]
        assert tokens == sum(len(one.ids) for one in drawn)
        assert scored == sum(map(len, {one.ids for one in drawn}))
        for one in drawn:
            (prompt,) = (p for p in scripted.prompts(9) if p.id == id)
            codec = ScriptedCodec()
            text = "".join(LIVELY.rollout(prompt.question, [], drawn.index(one)))
            assert one.ids == tuple(codec.encode(text))
            assert one.raw == (reader.score(prompt.question, (text,)),)
    assert any(scored < tokens for _, tokens, scored, _ in many.values())  # some were equal


def test_samples_that_are_there_are_read_later():
    whole, _, _ = run(lambda state: beams.sample(state, range(4)))
    unread, _, _ = run(lambda state: beams.sample(state, range(4), read=False))
    for id, ((drawn, _), tokens, scored, _) in unread.items():
        assert scored == 0
        assert all(one.raw == () for one in drawn)
        assert [one.ids for one in drawn] == [one.ids for one in whole[id][0][0]]
        assert tokens == whole[id][1]
    codec, late = ScriptedCodec(), {}
    for what, *_ in whole.values():
        for one in what[0]:
            codec.encode(text_of(one.ids))  # so that it can read what another has written
    guide = loop.Guide(
        engine=ScriptedEngine(LIVELY, codec),
        reward_model=ScriptedRewardModel(codec),
        codec=codec,
        config=CONFIG,
        max_depth=5,
        seed=3,
    )
    loop.find(
        scripted.prompts(9),
        lambda state: beams.sample(state, (), [x.ids for x in unread[state.prompt.id][0][0]]),
        guide=guide,
        read_at=64,
        on_found=lambda state, what: late.update({state.prompt.id: (what, state)}),
    )
    for id, ((drawn, read), state) in late.items():
        assert (drawn, state.tokens) == ([], 0)
        assert read == whole[id][0][0]


def text_of(ids):
    """The text of ids that some scripted rollout came to."""
    codec = ScriptedCodec()
    for i in range(50):
        codec.encode(f"{OUTPUT}final {i}{OUTPUT_END}")
    return codec.decode(ids)


class Sated(ScriptedEngine):
    """Hungry until it has seen all prompts of a test."""

    roots = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, slowest=40, **kwargs)

    def root(self, ids):
        self.roots += 1
        return super().root(ids)

    @property
    def hungry(self):
        return self.roots < 40


def test_reading_waits_for_company_while_the_engine_has_work():
    rows = scripted.prompts(40)
    plan = lambda state: beams.sample(state, range(3))  # noqa: E731
    patient, _, reader = run(plan, rows=rows, kind=Sated)
    assert len(reader.calls) == 2  # 64 are enough; the others once the engine is idle
    assert reader.calls[0] >= 64
    eager, _, reader = run(plan, rows=rows, kind=Sated, read_at=1)
    assert len(reader.calls) > 2
    assert eager == patient


def test_a_hungry_engine_gets_new_prompts_before_a_few_steps_are_read():
    plan = lambda state: beams.sample(state, range(3))  # noqa: E731
    reader = run(plan, rows=scripted.prompts(40), appetite=6)[2]
    assert reader.calls[0] >= 64
    assert reader.calls[-1] < 64  # no prompt was left: what waited was read at once


@pytest.mark.parametrize("where", ["engine", "model", "receiver", "plan"])
def test_whatever_fails_everything_is_given_back(where):
    class Tired(ScriptedEngine):
        def step(self):
            if self.counters["steps"] > 4:
                raise RuntimeError("engine")
            super().step()

    class Blind(ScriptedRewardModel):
        def read(self, items):
            if len(self.calls) > 2:
                raise RuntimeError("model")
            return super().read(items)

    def plan(state):
        found = yield from beams.beam(state, parse("beam_2x3"))
        if where == "plan":
            raise RuntimeError("plan")
        return found

    def on_found(state, found):
        raise RuntimeError("receiver")

    codec = ScriptedCodec()
    engine = (Tired if where == "engine" else ScriptedEngine)(LIVELY, codec)
    reader = (Blind if where == "model" else ScriptedRewardModel)(codec)
    guide = loop.Guide(
        engine=engine, reward_model=reader, codec=codec, config=CONFIG, max_depth=5, seed=0
    )
    with pytest.raises(RuntimeError, match=where):
        loop.find(scripted.prompts(7), plan, guide=guide, read_at=64, on_found=on_found)
    assert engine.released > 0
    assert not engine.held
    assert not reader.held
    assert engine.idle


def test_prompts_without_room_are_passed_over_by_name():
    rows = scripted.prompts(5)
    rows[1] = dataclasses.replace(rows[1], question="long " * 20)
    rows[3] = dataclasses.replace(rows[3], question="longer" * 9)
    codec, found = ScriptedCodec(), []
    engine = ScriptedEngine(LIVELY, codec, max_prompt=90)
    reader = ScriptedRewardModel(codec, max_prompt=50)
    guide = loop.Guide(
        engine=engine, reward_model=reader, codec=codec, config=CONFIG, max_depth=5, seed=0
    )

    def on_found(state, what):
        found.append(state.prompt.id)

    passed = loop.find(rows, of("beam_2x2"), guide=guide, read_at=64, on_found=on_found)
    assert set(passed) == {"p1", "p3"}
    assert "at most 90" in passed["p1"]
    assert "at most 50" in passed["p3"]
    assert sorted(found) == ["p0", "p2", "p4"]
    assert not engine.held
    assert not reader.held


def test_two_prompts_of_one_id_are_refused():
    with pytest.raises(ValueError, match="id 'p0' found 2 times"):
        run(of("beam_1x1"), rows=scripted.prompts(1) * 2)


def test_a_sequence_at_the_end_of_its_context_is_cut():
    class Narrow(ScriptedEngine):
        """As an engine whose context is full: an empty answer."""

        def _answer(self, request):
            if len(request.prefix.ids) >= 7:
                request = dataclasses.replace(request, max_tokens=0)
            return super()._answer(request)

    found, _, _ = run(of("beam_2x3"), RandomScript("s", ends=0.1), kind=Narrow)
    assert any(len(what.ids) == 6 and len(what.raw) == 2 for what, *_ in found.values())


class Odd(ScriptedRewardModel):
    """Some steps have a score that is not finite, and others one far beyond where units round."""

    def score(self, prompt, trajectory):
        raw = 30 * super().score(prompt, trajectory) - 110
        where = scripted_policy.unit("odd", prompt, *trajectory)
        return (math.nan, math.inf, -math.inf)[int(where * 18)] if where < 1 / 6 else raw


@pytest.mark.parametrize("name", ["beam_2x3", "diverse_2x3"])
def test_beams_compare_raw_scores_and_never_keep_one_without(name):
    found, _, reader = run(of(name), model=Odd)
    seen = [score for what, *_ in found.values() for score in what.raw]
    assert len(seen) > 20
    known = [score for score in seen if score is not None]
    assert len(known) > 0.9 * len(seen)  # a sixth has none; where no sibling has one, it is kept
    assert {float(reader.readout.unit(score)) for score in known} == {0.0}  # they all round
    wider, *_ = run(of("beam_9x3"), model=Odd)
    last = {
        name: [what.raw[-1] or -200 for what, *_ in some.values()]
        for name, some in (("narrow", found), ("wide", wider))
    }
    assert sum(last["wide"]) > sum(last["narrow"])


def test_what_is_missing_is_counted_and_a_blind_choice_too():
    class Silent(ScriptedRewardModel):
        def score(self, prompt, trajectory):
            return math.nan

    codec, states = ScriptedCodec(), {}
    guide = loop.Guide(
        engine=ScriptedEngine(LIVELY, codec),
        reward_model=Silent(codec),
        codec=codec,
        config=CONFIG,
        max_depth=5,
        seed=3,
    )
    loop.find(
        scripted.prompts(2),
        of("beam_2x3"),
        guide=guide,
        read_at=64,
        on_found=lambda state, what: states.update({state.prompt.id: (state, what)}),
    )
    for state, what in states.values():
        assert what.ids
        assert set(what.raw) == {None}
        assert state.missing >= len(what.raw)
        assert state.blind >= 2  # a round or more, and the last choice
