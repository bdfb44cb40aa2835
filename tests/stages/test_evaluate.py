"""Stage evaluate on a scripted engine and reward model: what it leaves, and how it goes on."""

import json
import re
import shutil
from typing import Any

import pytest

from stair_jax import config as config_lib
from stair_jax import jsonl
from stair_jax.config.checks import validate
from stair_jax.evals.benchmark import registered
from stair_jax.evals.report import curves, table
from stair_jax.guided import loop, selection
from stair_jax.log.metrics import Metrics
from stair_jax.miniature import splits
from stair_jax.records import Answer, Sample
from stair_jax.run import answerer, known_models, models
from stair_jax.run.known_models import SFT_MODEL
from stair_jax.run.lineage import Lineage
from stair_jax.run.models import Policy
from stair_jax.run.workdir import Run
from stair_jax.stages import evaluate
from tests.support.configs import tiny
from tests.support.evaluation import BENCHMARKS, COLUMNS, Codec, Machine
from tests.support.scripted import ScriptedRewardModel
from tests.support.search_engine import SPEC

SEARCHES = "best_of_2,best_of_5,vote_of_5,random_of_5,oracle_of_5,beam_2x3,mcts_7"
COUNT = 7  # prompts of each


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Makes runs whose models are scripted: `world(...)` returns the run."""
    metrics, codec = Metrics(tmp_path / "w"), Codec()
    some = {name: splits.benchmark(name)[:COUNT] for name in BENCHMARKS}

    def make(*, allowance=10**6, prm=True, **changes):
        usual = {
            "evaluate__benchmarks": ",".join(BENCHMARKS),
            "evaluate__search": f"greedy,{SEARCHES}",
        }
        c = tiny(workdir=str(tmp_path / "w"), **(usual | changes))
        validate(c)
        run = Run(c, tmp_path / "w", Lineage(tmp_path / "w" / "lineage.json"), metrics)
        for name, on in (("sft", True), ("prm", prm)):
            if on and not run.lineage.finished(name):
                run.begin(name, name)
                run.lineage.finish(name, name, readout=ScriptedRewardModel.readout.to_json())
        monkeypatch.setattr(
            models, "load", lambda run, model, **_: Policy(model, SPEC, None, codec)
        )
        monkeypatch.setattr(models, "engine_for", lambda run, policy: Machine(codec, allowance))
        monkeypatch.setattr(
            answerer.Answerer, "_reward_model", ScriptedRewardModel(codec), raising=False
        )
        monkeypatch.setattr(splits, "benchmark", lambda name, split: some[name])
        return run

    return make


def results_of(run):
    folder = run.workdir / "evals"
    read = lambda name: json.loads((folder / name).read_text())  # noqa: E731
    return read("results.json"), read("tokens.json")


def files_of(run):
    return {
        str(path.relative_to(run.workdir)): path.read_text()
        for path in sorted((run.workdir / "evals").rglob("*.json*"))
    }


def rows_of(run, model, kind: Any = Answer):
    folder = run.workdir / "evals" / model
    return [row for b in BENCHMARKS for row in jsonl.read_jsonl(folder / f"{b}.jsonl", kind)]


@pytest.fixture(autouse=True)
def pictures(request, monkeypatch):
    """Lets tests that do not look at the pictures draw none."""
    if "world" in request.fixturenames and "capsys" not in request.fixturenames:
        for module in (table, curves):
            monkeypatch.setattr(module, "plot", lambda *_: None)


def test_the_stage_leaves_a_row_for_each_model_and_strategy(world, capsys):
    run = world()
    evaluate.run(run)
    results, tokens = results_of(run)
    names = [f"sft/{name}" for name in SEARCHES.split(",")]
    assert list(results) == ["base", "sft", *names]  # searched: the last model alone
    for model in results:
        assert set(results[model]) == set(BENCHMARKS)
        answers = rows_of(run, model)
        assert len(answers) == 2 * COUNT
        for benchmark, found in tokens[model].items():
            own = [a for a in answers if a.benchmark == benchmark]
            assert found["tokens"] == pytest.approx(sum(a.tokens for a in own) / COUNT)
            assert found["scored"] == pytest.approx(sum(a.scored for a in own) / COUNT)
            wrong = sum(a.outcome == "compliance" for a in own) / COUNT
            if benchmark == "jailbreak":
                assert results[model][benchmark]["compliance"]["value"] == pytest.approx(wrong)
    assert tokens["sft"]["harmless"]["scored"] == 0
    assert tokens["sft/random_of_5"]["harmless"]["scored"] == 0
    assert tokens["sft/best_of_5"]["harmless"]["scored"] > 0
    assert tokens["sft/best_of_5"] == tokens["sft/vote_of_5"]
    parents = {name: set(entry["parents"]) for name, entry in run.lineage.entries.items()}
    for name in ("beam_2x3", "best_of_5", "mcts_7"):
        assert parents[f"evals/sft/{name}"] == {"sft", "prm"}
    assert "search.c" in run.lineage.entries["evals/sft/mcts_7"]["settings"]
    assert tokens["sft/mcts_7"]["harmless"]["scored"] > 0
    assert parents["evals/sft"] == parents["evals/sft/oracle_of_5"] == {"sft"}
    out = capsys.readouterr().out
    for name in ("table.md", "rounds.png", "search.png"):
        assert str(run.workdir / "report" / name) in out
        assert (run.workdir / "report" / name).exists()
    assert "sft/beam_2x3" in (run.workdir / "report" / "table.md").read_text()
    points = json.loads((run.workdir / "report" / "search.json").read_text())
    assert [point["strategy"] for point in points] == ["greedy", *SEARCHES.split(",")]


def test_the_cards_of_exports_that_are_there_get_the_results(world):
    run = world(evaluate__search="greedy,best_of_2")
    run.begin("export/sft", "export", ("sft",))
    run.lineage.finish("export/sft", "sft")
    (run.workdir / "export" / "sft").mkdir(parents=True)
    evaluate.run(run)
    card = (run.workdir / "export" / "sft" / "README.md").read_text()
    shown = table.table(results_of(run)[0], COLUMNS).strip()
    assert "| sft/best_of_2 |" in shown
    assert shown in card


def test_what_chooses_among_samples_chooses_the_first_n_of_one_set(world):
    run = world()
    evaluate.run(run)
    by_id = {}
    for sample in rows_of(run, "sft/samples", Sample):
        by_id.setdefault(sample.id, []).append(sample)
    answers = {
        name: {row.id: row for row in rows_of(run, f"sft/{name}")} for name in SEARCHES.split(",")
    }
    assert len(by_id) == 2 * COUNT
    readout, differ = ScriptedRewardModel.readout, set()
    for id, samples in by_id.items():
        assert [sample.ordinal for sample in samples] == list(range(5))
        last = [sample.raw[-1] for sample in samples]
        want = {
            "best_of_2": last[:2].index(max(last[:2])),
            "best_of_5": last.index(max(last)),
            "vote_of_5": selection.vote(
                last, [selection.comparable(s.response) for s in samples], readout
            ),
            "random_of_5": selection.at_random(5, (run.config.seed, id, "random_of_5")),
        }
        for name, index in want.items():
            row, some = answers[name][id], samples[: int(name[-1])]
            assert (row.response, row.outcome) == (some[index].response, some[index].outcome)
            assert row.tokens == sum(len(sample.ids) for sample in some)
        oracle = answers["oracle_of_5"][id]
        good = {"jailbreak": "refusal", "harmless": "correct"}[oracle.benchmark]
        assert (oracle.outcome == good) == any(s.outcome == good for s in samples)
        differ.add(tuple(answers[name][id].response for name in answers))
    assert any(len(set(responses)) > 2 for responses in differ)


def test_a_finished_stage_asks_nobody_again(world, monkeypatch):
    run = world()
    evaluate.run(run)
    before = files_of(run)
    again = world()

    def nobody(*args):
        raise AssertionError("a model was loaded again")

    monkeypatch.setattr(models, "load", nobody)
    monkeypatch.setattr(models, "engine_for", nobody)
    evaluate.run(again)
    assert files_of(again) == before


def test_a_killed_stage_ends_as_an_undisturbed_one_and_samples_nothing_twice(world):
    whole = world()
    evaluate.run(whole)
    want, total = files_of(whole), 2 * COUNT * 5
    for path in (whole.workdir / "evals").rglob("*.jsonl"):
        path.unlink()
    kills, sampled = 0, 0
    for allowance in (2, 3, 3, 4, 3, 5, 4, 3, 10**6):
        torn = world(allowance=allowance)
        try:
            evaluate.run(torn)
        except KeyboardInterrupt:
            kills += 1
            assert not Machine.last.held
        else:
            break
        rows = list((torn.workdir / "evals").rglob("samples/*.jsonl"))
        sampled = max(sampled, sum(len(p.read_text().splitlines()) for p in rows))
        made = Lineage(torn.lineage.path).finished("evals/sft/samples")
        for path in [] if made else rows[:1]:  # killed while it wrote
            path.write_text(path.read_text() + '{"id": "to')
    assert kills >= 3
    assert 0 < sampled < total or Machine.last.sampled < total
    assert files_of(torn) == want


def test_more_samples_add_to_those_that_are_there(world):
    evaluate.run(world(evaluate__search="greedy,random_of_3"))
    assert Machine.last.sampled == 2 * COUNT * 3
    first = rows_of(world(), "sft/samples", Sample)
    assert all(sample.raw == () for sample in first)
    run = world()
    evaluate.run(run)
    assert Machine.last.sampled == 2 * COUNT * 2
    samples = {(s.id, s.ordinal): s for s in rows_of(run, "sft/samples", Sample)}
    assert len(samples) == 2 * COUNT * 5
    for old in first:
        new = samples[old.id, old.ordinal]
        assert new.ids == old.ids
        assert len(new.raw) == 3  # read now
    fresh = {name: text for name, text in files_of(run).items() if "random_of_3" not in name}
    for path in (run.workdir / "evals").rglob("*.jsonl"):
        path.unlink()
    run.lineage.path.unlink()
    run = world()
    evaluate.run(run)  # all five at once
    assert files_of(run) == fresh


def test_the_samples_of_every_benchmark_are_in_their_hash(world):
    hashes = set()
    for names in (",".join(BENCHMARKS), *BENCHMARKS):
        run = world(evaluate__search="random_of_2", evaluate__benchmarks=names)
        evaluate.run(run)
        hashes.add(run.lineage.entries["evals/sft/samples"]["hash"])
        run.lineage.path.unlink()
        shutil.rmtree(run.workdir / "evals")
    assert len(hashes) == 3


@pytest.mark.parametrize("direct", [False, True])
def test_the_end_of_a_turn_is_no_text_of_an_answer_without_reasoning(world, direct):
    model = known_models.baseline("sft") if direct else SFT_MODEL
    one = answerer.Answerer(world(), model, ())
    ended = one.policy.codec.encode("four<|eot_id|>")
    assert len(ended) == 2
    assert one.text_of(ended) == ("four" if direct else "four<|eot_id|>")
    assert one.text_of(ended[:1]) == "four"  # cut before its end: every token is its text
    assert one.text_of(()) == ""


def test_searched_names_the_models(world):
    run = world(evaluate__search="greedy,best_of_2", evaluate__searched="base, sft")
    evaluate.run(run)
    assert list(results_of(run)[0]) == ["base", "base/best_of_2", "sft", "sft/best_of_2"]
    run = world(evaluate__search="best_of_2")
    evaluate.run(run)
    assert list(results_of(run)[0]) == ["sft/best_of_2"]
    run = world(evaluate__search="best_of_2", evaluate__searched="dpo-9")
    with pytest.raises(ValueError, match=r"config\.evaluate\.searched: \['dpo-9'\] not in"):
        evaluate.run(run)


def test_no_reward_model_is_said_in_one_line_before_any_work(world):
    run = world(prm=False)
    with pytest.raises(ValueError, match=r"'best_of_2' asks .*; run stage prm") as error:
        evaluate.run(run)
    assert "\n" not in str(error.value)
    assert not (run.workdir / "evals").exists()
    run = world(prm=False, evaluate__search="greedy,random_of_2,oracle_of_2")
    evaluate.run(run)  # these ask none


def test_aggregation_reaches_the_choice_and_depth_the_beams(world):
    run = world()
    evaluate.run(run)
    usual = {name: rows_of(run, f"sft/{name}") for name in ("best_of_5", "beam_2x3")}
    for name in usual:
        for path in (run.workdir / "evals" / "sft" / name).glob("*.jsonl"):
            path.unlink()
    entries = run.lineage.entries
    run.lineage.path.write_text(json.dumps({k: entries[k] for k in ("sft", "prm")}))
    run = world(evaluate__aggregation="min", search__max_depth=1)
    evaluate.run(run)
    for name, rows in usual.items():
        assert rows_of(run, f"sft/{name}") != rows


@pytest.mark.parametrize("slots", [5, 9])
def test_as_many_steps_are_read_together_as_there_are_slots(world, monkeypatch, slots):
    asked, find = set(), loop.find

    def watched(*args, read_at, **how):
        asked.add(read_at)
        return find(*args, read_at=read_at, **how)

    monkeypatch.setattr(loop, "find", watched)
    evaluate.run(world(engine__slots=slots))
    assert asked == {slots}


def test_a_prompt_without_room_is_missing_and_said_by_name(world, monkeypatch, caplog):
    run = world(evaluate__search="greedy")
    codec = Codec()

    def narrow(run, policy):
        engine = Machine(policy.codec, 10**6)
        engine.max_prompt = 1
        return engine

    assert codec.end_stop
    monkeypatch.setattr(models, "engine_for", narrow)
    evaluate.run(run)
    assert re.search(r"evaluate base: greedy: no answer to .*: .* at most 1 expected", caplog.text)
    assert f"and {2 * COUNT - 10} more" in caplog.text
    assert results_of(run)[0]["base"]["harmless"]["accuracy"]["n"] == 0


BAD = [
    ({"evaluate__search": ""}, r"config\.evaluate\.search: empty"),
    ({"evaluate__search": "greedy,foo"}, r"config\.evaluate\.search: 'foo' is none of"),
    ({"evaluate__search": "beam_2"}, r"config\.evaluate\.search: 'beam_2' is none of"),
    ({"evaluate__temperature": 0.9}, r"config\.evaluate\.temperature: 0\.9 would be ignored"),
    ({"evaluate__top_p": 0.7}, r"config\.evaluate\.top_p: 0\.7 would be ignored"),
    ({"evaluate__top_k": 7}, r"config\.evaluate\.top_k: 7 would be ignored"),
    ({"evaluate__searched": "sft"}, r"config\.evaluate\.searched: 'sft' would be ignored"),
    (
        {"evaluate__aggregation": "min", "evaluate__search": "random_of_4"},
        r"config\.evaluate\.aggregation: 'min' would be ignored, it needs a search under",
    ),
    (
        {"evaluate__lookahead": 2, "evaluate__search": "beam"},
        r"config\.evaluate\.lookahead: 2 would be ignored, it needs lookahead_WxM",
    ),
    (
        {"evaluate__search": "beam", "evaluate__temperature": -1.0},
        r"config\.evaluate\.temperature: -1\.0, expected 0 or more",
    ),
    (
        {"evaluate__search": "beam", "evaluate__top_p": 0.0},
        r"config\.evaluate\.top_p: 0\.0, expected",
    ),
    ({"evaluate__search": "beam", "evaluate__top_k": -1}, r"config\.evaluate\.top_k: -1, expected"),
    (
        {"evaluate__search": "lookahead_2x2", "evaluate__lookahead": 0},
        r"config\.evaluate\.lookahead: 0, expected",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=lambda x: str(x)[:40])
def test_a_bad_setting_is_refused_in_one_line(changes, message):
    plain = {"evaluate__search": "greedy"} | {
        f"evaluate__{k}": config_lib.default().evaluate[k]
        for k in ("temperature", "top_p", "top_k", "searched", "aggregation", "lookahead")
    }
    validate(tiny(**plain))
    with pytest.raises(ValueError, match=message) as error:
        validate(tiny(**(plain | changes)))
    assert "\n" not in str(error.value)


def test_settings_count_under_the_strategies_that_use_them():
    validate(tiny(evaluate__search="random_of_4", evaluate__temperature=0.9))
    validate(tiny(evaluate__search="best_of_n", evaluate__aggregation="min"))
    validate(tiny(evaluate__search="lookahead_1x2, greedy", evaluate__lookahead=3))


def test_merit_ranks_the_outcomes():
    for name in splits.BENCHMARKS:
        good = "refusal" if name in ("harmful", "jailbreak") else "correct"
        bad = "compliance" if good == "refusal" else "wrong"
        ranks = [registered()[name].merits[x] for x in (good, bad, "malformed")]
        assert ranks == sorted(ranks, reverse=True)
        assert len(set(ranks)) == 3
