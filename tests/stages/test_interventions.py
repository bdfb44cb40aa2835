"""Interventions in stage evaluate, on scripted models: controls, files, and how it goes on."""

import dataclasses
import json
import logging

import pytest

from stair_jax import jsonl
from stair_jax.config.checks import validate
from stair_jax.evals.benchmark import registered
from stair_jax.evals.report import curves, table
from stair_jax.log.metrics import Metrics
from stair_jax.miniature import splits
from stair_jax.records import Answer
from stair_jax.run import models
from stair_jax.run.lineage import Lineage
from stair_jax.run.models import Policy
from stair_jax.run.workdir import Run
from stair_jax.stages import evaluate
from stair_jax.text import OUTPUT, OUTPUT_END, STEP, STEP_END
from tests.support.configs import tiny
from tests.support.evaluation import Codec, Machine
from tests.support.scripted import ScriptedPrefix
from tests.support.search_engine import SPEC

COUNT, STEPS = 7, 3  # prompts of each benchmark, steps of each answer
BENCHMARKS = ("jailbreak", "harmless")
REFUSAL = "sorry , i can not help with that"
BEGIN = "problem analysis : "


def prompts_of(name):
    """Some prompts of the miniature; of harmless ones those with a truth of their own."""
    found = {}
    for prompt in splits.benchmark(name):
        key = prompt.id if prompt.type == "safety" else prompt.ground_truth
        if key is not None:
            found.setdefault(key, prompt)
    return list(found.values())[:COUNT]


SOME = {name: prompts_of(name) for name in BENCHMARKS}
BEST = {p.question: p.ground_truth or REFUSAL for some in SOME.values() for p in some}


class Copies:
    """A model of some steps: it goes on as its last step says, and answers that."""

    def __init__(self):
        self.asked = []

    def rollout(self, question, begun, ordinal):
        self.asked.append((question, tuple(begun)))
        steps = [piece.removeprefix(STEP).strip() for piece in begun]
        steps += self.more(question, steps)
        answer = self.answer(question, steps)
        blocks = [f" {STEP} {step} {STEP_END}" for step in steps[len(begun) :]]
        return "".join(blocks) + f" {OUTPUT} final answer : {answer} {OUTPUT_END}"

    def more(self, question, steps):
        last = steps[-1] if steps else BEGIN + BEST[question]
        return [last] * (STEPS - len(steps))

    def answer(self, question, steps):
        return steps[-1].removeprefix(BEGIN)


class Ignores(Copies):
    """It thinks of the question alone."""

    def more(self, question, steps):
        return [BEGIN + BEST[question]] * (STEPS - len(steps))

    def answer(self, question, steps):
        return BEST[question]


class Last(Copies):
    """It thinks of the question alone, and answers what the last step says."""

    def more(self, question, steps):
        return [BEGIN + BEST[question]] * (STEPS - len(steps))


class Engine(Machine):
    """A scripted engine that sees which steps a response begins with."""

    def __init__(self, script, codec, allowance=10**6):
        super().__init__(codec, allowance)
        self.script = script
        self.limits = []

    def root(self, ids):
        question, begun = self.codec.decode(ids[:1]), self.codec.decode(ids[1:])
        assert not begun or begun.endswith(STEP_END)
        steps = [piece.strip() for piece in begun.split(STEP_END)[:-1]]
        prefix = ScriptedPrefix(tuple(ids), question.removeprefix("prompt: "), tuple(steps))
        return self._hold(prefix)

    def submit(self, request):
        self.limits.append(request.max_tokens)
        super().submit(request)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Makes runs with one scripted model: `world(script, ...)` returns the run."""
    metrics, codec = Metrics(tmp_path / "w"), Codec()
    for module in (table, curves):
        monkeypatch.setattr(module, "plot", lambda *_: None)
    monkeypatch.setattr(splits, "benchmark", lambda name, split: SOME[name])

    def make(script, *, allowance=10**6, **changes):
        usual = {
            "evaluate__benchmarks": ",".join(BENCHMARKS),
            "evaluate__search": "greedy",
            "evaluate__models": "sft",
            "evaluate__interventions": "cut,swap,forge",
        }
        c = tiny(workdir=str(tmp_path / "w"), **(usual | changes))
        validate(c)
        run = Run(c, tmp_path / "w", Lineage(tmp_path / "w" / "lineage.json"), metrics)
        for artefact, stage in (("sft", "sft"), ("baselines/sft", "baselines.sft")):
            if not run.lineage.finished(artefact):
                run.begin(artefact, stage)
                run.lineage.finish(artefact, artefact)
        load = lambda run, model, **_: Policy(model, SPEC, None, codec)  # noqa: E731
        monkeypatch.setattr(models, "load", load)
        monkeypatch.setattr(
            models, "engine_for", lambda run, policy: Engine(script, codec, allowance)
        )
        return run

    return make


def figures_of(run):
    return json.loads((run.workdir / "evals" / "causal.json").read_text())["sft"]


def rows_of(run, benchmark):
    folder = run.workdir / "evals" / "sft" / "interventions"
    return jsonl.read_jsonl(folder / f"{benchmark}.jsonl", Answer)


def files_of(run):
    return {
        str(path.relative_to(run.workdir)): path.read_text()
        for folder in ("evals", "report")
        for path in sorted((run.workdir / folder).rglob("*.*"))
    }


def shares(figures):
    """{benchmark: {(kind, place): (share, n)}}, of what has an n."""
    return {
        benchmark: {
            (kind, place): (f["value"], f["n"])
            for kind, places in kinds.items()
            for place, f in places.items()
            if f["n"]
        }
        for benchmark, kinds in figures.items()
    }


PLACES = [*map(str, range(1, STEPS + 1)), "any"]


def test_a_model_that_copies_its_last_step_reads_one_for_swap_and_forge(world):
    run = world(Copies())
    evaluate.run(run)
    found = shares(figures_of(run))
    want = {(kind, place): (1.0, COUNT) for kind in ("swap", "forge") for place in PLACES}
    want |= {("cut", place): (0.0, COUNT) for place in PLACES}
    want |= {("first_step", "1"): (1.0, COUNT)}
    assert found["harmless"] == want
    # All harmful prompts are refused in the same words, so that there is nothing to swap.
    assert found["jailbreak"] == {key: n for key, n in want.items() if key[0] != "swap"}
    outcomes = {row.outcome for row in rows_of(run, "jailbreak") if "/forge-" in row.id}
    assert outcomes == {"compliance"}


def test_a_model_that_ignores_its_steps_reads_zero(world):
    run = world(Ignores())
    evaluate.run(run)
    found = shares(figures_of(run))
    assert {n for some in found.values() for n in some.values()} == {(0.0, COUNT)}
    assert ("swap", "2") in found["harmless"]
    assert ("forge", "any") in found["jailbreak"]


def test_the_place_that_decides_is_told_from_those_that_do_not(world):
    run = world(Last())
    evaluate.run(run)
    found = shares(figures_of(run))["harmless"]
    assert [found["swap", place][0] for place in PLACES] == [0, 0, 1, 1]
    assert [found["forge", place][0] for place in PLACES] == [0, 0, 1, 1]
    assert found["first_step", "1"] == (0.0, COUNT)


def test_the_kinds_that_are_named_are_asked_and_no_others(world):
    for kinds, count in (("forge", 2 * 3), ("cut", 2 * 3), ("swap", 3), ("forge,swap", 9)):
        script = Copies()
        run = world(script, evaluate__interventions=kinds)
        evaluate.run(run)
        for benchmark, some in figures_of(run).items():
            expected = {*kinds.split(",")} - ({"swap"} if benchmark == "jailbreak" else set())
            assert set(some) - {"first_step"} == expected
        rows = [row for name in BENCHMARKS for row in rows_of(run, name)]
        assert len(rows) == count * COUNT
    run = world(Copies(), evaluate__interventions="")
    (run.workdir / "evals" / "causal.json").unlink()
    evaluate.run(run)
    assert not (run.workdir / "evals" / "causal.json").exists()


def test_the_files_say_what_was_asked_and_found(world, capsys, caplog):
    with caplog.at_level(logging.INFO, logger="stair_jax"):
        run = world(Copies())
        evaluate.run(run)
    entry = run.lineage.entries["evals/sft/interventions"]
    assert entry["finished"]
    assert entry["stage"] == "evaluate.interventions"
    assert set(entry["parents"]) == {"sft"}
    assert "seed" in entry["settings"]
    assert entry["interventions"] == COUNT * STEPS * (2 + 3)
    told = (run.workdir / "report" / "causal.md").read_text()
    assert len(told.splitlines()) == 2 + 4 * 5 + 2 + 1  # places of kinds, first steps, opposed
    assert "| sft   | harmless  | swap       | 1       | 100.0   | 7 |" in told
    assert str(run.workdir / "report" / "causal.md") in capsys.readouterr().out
    said = "decisions on harmless: cut changed 0.0 % of 7, swap changed 100.0 % of 7"
    assert said in caplog.text
    for row in rows_of(run, "harmless"):
        assert row.response.startswith(row.prefill)
        assert row.benchmark == "harmless"
        assert row.tokens > 0
    results = json.loads((run.workdir / "evals" / "results.json").read_text())
    assert list(results) == ["sft"]


def test_nothing_is_asked_twice_and_what_asks_something_else_now_is_asked_anew(world):
    first = Copies()
    evaluate.run(world(first))
    assert len(first.asked) == 2 * COUNT + COUNT * STEPS * (2 + 3)
    before = files_of(world(first))
    again = Copies()
    evaluate.run(world(again))
    assert again.asked == []
    assert files_of(world(again)) == before
    path = world(first).workdir / "evals" / "sft" / "interventions" / "harmless.jsonl"
    rows = jsonl.read_jsonl(path, Answer)
    jsonl.write_jsonl(path, [dataclasses.replace(rows[0], prefill="x"), *rows[2:]])
    evaluate.run(world(again))
    assert len(again.asked) == 2
    assert files_of(world(again)) == before


def test_a_killed_stage_ends_as_an_undisturbed_one(world):
    evaluate.run(world(Copies()))
    run = world(Copies())
    want = files_of(run)
    for path in (run.workdir / "evals").rglob("*.jsonl"):
        path.unlink()
    (run.workdir / "evals" / "causal.json").unlink()
    kills, between, seen = 0, 0, 0
    for allowance in (2, 3, 3, 2, 2, 2, 2, 2, 10**6):
        script = Copies()
        run = world(script, allowance=allowance)
        try:
            evaluate.run(run)
        except KeyboardInterrupt:
            kills += 1
            assert not Machine.last.held
        rows = sum(
            len(path.read_text().splitlines())
            for path in (run.workdir / "evals").rglob("interventions/*.jsonl")
        )
        assert rows >= seen
        between, seen = between + (0 < seen < rows), rows
    assert kills >= 3
    assert between, "never went on from some of the interventions"
    assert files_of(run) == want


def test_what_is_kept_counts_towards_a_responses_limit(world):
    evaluate.run(world(Copies(), evaluate__interventions="cut", evaluate__max_tokens=41))
    # A step is four tokens of the script: a space, its tags, and the text between them.
    assert sorted(set(Machine.last.limits)) == [41 - 8, 41 - 4, 41]


def test_a_forged_beginning_takes_no_room_and_is_graded_as_its_benchmark_does(world, monkeypatch):
    begun = f"{STEP} {BEGIN}forged {STEP_END}"
    prompts = [dataclasses.replace(prompt, prefill=begun) for prompt in SOME["harmless"]]
    seen, plain = [], registered()["harmless"]

    def grade(prompt, response, direct):
        seen.append((prompt.id, prompt.prefill))
        return plain.grade(prompt, response, direct)

    monkeypatch.setitem(SOME, "harmless", prompts)
    monkeypatch.setitem(registered(), "harmless", dataclasses.replace(plain, grade=grade))
    changes = {"evaluate__benchmarks": "harmless", "evaluate__max_tokens": 41}
    run = world(Copies(), evaluate__interventions="cut,forge", **changes)
    evaluate.run(run)
    assert set(seen) == {(prompt.id, begun) for prompt in prompts}
    # Two of the three steps are the model's, the first of which repeats the beginning. A forged
    # step has the space in front that the model wrote there.
    assert sorted(set(Machine.last.limits)) == [41 - 8, 41 - 4, 41]
    found = shares(figures_of(run))["harmless"]
    assert found["cut", "2"] == (0.0, COUNT)
    assert ("cut", "3") not in found
    assert all(row.response.startswith(begun) for row in rows_of(run, "harmless"))


def test_the_seed_of_a_run_fixes_which_steps_are_swapped(world):
    def swaps(seed):
        run = world(Copies(), seed=seed, evaluate__interventions="swap")
        run.lineage.entries.pop("evals/sft/interventions", None)
        for path in (run.workdir / "evals").rglob("interventions/*.jsonl"):
            path.unlink()
        evaluate.run(run)
        return [(row.id, row.prefill) for row in rows_of(run, "harmless")]

    assert swaps(0) == swaps(0) != swaps(1)


def test_a_response_without_room_for_more_is_undecided(world, monkeypatch, caplog):
    long = f"{STEP} x {STEP_END}" * 20
    wordy = dataclasses.replace(registered()["harmless"], forge=lambda _: long)
    monkeypatch.setitem(registered(), "harmless", wordy)
    run = world(Copies(), evaluate__interventions="forge", evaluate__max_tokens=41)
    evaluate.run(run)
    found = figures_of(run)["harmless"]["forge"]["any"]
    assert (found["n"], found["undecided"], found["value"]) == (0, COUNT, None)
    assert (
        f"evaluate sft: {STEPS * COUNT} interventions had no room, and are undecided" in caplog.text
    )
    assert figures_of(run)["jailbreak"]["forge"]["any"]["n"] == COUNT


def test_a_limit_of_the_benchmark_holds_behind_changed_steps_too(world, monkeypatch):
    limited = dataclasses.replace(registered()["harmless"], max_tokens=17)
    monkeypatch.setitem(registered(), "harmless", limited)
    evaluate.run(world(Copies(), evaluate__interventions="cut"))
    assert 17 in Machine.last.limits
    assert 64 in Machine.last.limits


def test_a_model_without_reasoning_has_none(world, caplog):
    run = world(Ignores(), evaluate__models="baseline-sft")
    with caplog.at_level(logging.INFO, logger="stair_jax"):
        evaluate.run(run)
    assert "evaluate baseline-sft: no interventions, it does not reason" in caplog.text
    assert not (run.workdir / "evals" / "causal.json").exists()
    assert "evals/baseline-sft/interventions" not in run.lineage.entries
    rows = jsonl.read_jsonl(run.workdir / "evals/baseline-sft/harmless.jsonl", Answer)
    assert len(rows) == COUNT


@pytest.mark.parametrize("search", ["greedy", "random_of_2"])
def test_beginnings_with_tags_are_missing_for_a_model_without_reasoning(
    world, monkeypatch, caplog, search
):
    tagged = dataclasses.replace(registered()["harmless"], reasons=True, protocol="p")
    monkeypatch.setitem(registered(), "harmless", tagged)
    said = "its tags mean nothing to a model without reasoning"
    found, asked = {}, {}
    for model in ("baseline-sft", "sft"):
        script = Ignores()
        run = world(
            script, evaluate__models=model, evaluate__interventions="", evaluate__search=search
        )
        evaluate.run(run)
        (results,) = json.loads((run.workdir / "evals" / "results.json").read_text()).values()
        accuracy = results["harmless"]["accuracy"]
        found[model] = accuracy["n"], accuracy["missing"]
        asked[model] = len(script.asked)
        assert caplog.text.count(said) == COUNT  # of the first model alone
    assert found == {"baseline-sft": (0, COUNT), "sft": (COUNT, 0)}
    assert asked["sft"] == 2 * asked["baseline-sft"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate__interventions": "cut,swop"}, r"config\.evaluate\.interventions: .*'swop'"),
        (
            {"evaluate__interventions": "cut", "evaluate__search": "random_of_2"},
            r"config\.evaluate\.interventions: 'cut' would be ignored, it needs greedy in",
        ),
    ],
)
def test_a_bad_setting_is_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        validate(tiny(**changes))
    assert "\n" not in str(error.value)
