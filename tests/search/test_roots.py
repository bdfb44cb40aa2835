"""Trees behind bad first steps: whose, where from, and through stage search and its restarts."""

import dataclasses
import itertools

import pytest

from stair_jax import jsonl
from stair_jax.evals.attacks import prefills
from stair_jax.log.metrics import Metrics
from stair_jax.miniature import forging
from stair_jax.records import Pair, Prompt, Tree
from stair_jax.run import judges, known_models, models, rows
from stair_jax.run.lineage import Lineage
from stair_jax.run.models import Policy
from stair_jax.run.workdir import Run
from stair_jax.search import comparisons, forged, roots
from stair_jax.stages import pairs, search
from stair_jax.text import STEP, STEP_END, tags_close
from tests.support import scripted
from tests.support.configs import tiny
from tests.support.pair_trees import _node, _tree
from tests.support.remote_stage import SEARCH, SPEC, Engine, Speech
from tests.support.scripted import RandomScript, ScriptedJudge, search_config

ALL = search_config(roots="rejected,forged", roots_share=1.0, roots_gap=1.0)


def step(parent, tag, value, closed=True, **changes):
    text = f"{STEP} thought {tag} {STEP_END if closed else ''}\n"
    return dataclasses.replace(_node(parent, tag, value, **changes), text=text)


def behind(tree, config=ALL, forge=forged.forged_step, seed=0):
    return roots.behind_bad_steps(tree, config, forge=forge, seed=seed)


TREE = _tree(
    step(0, "0.0", 2.0),
    step(0, "0.1", -1.0),
    step(0, "0.2", -2.0),
    step(1, "0.0.0", -3.0),  # of the second floor
)


def test_a_further_tree_begins_behind_the_worst_first_step():
    (prompt,) = behind(TREE, dataclasses.replace(ALL, roots_turn_back=False))
    assert prompt == dataclasses.replace(
        TREE.prompt,
        id="x/behind",
        prefill=f"{STEP} thought 0.2 {STEP_END}",
        meta={"behind": "rejected"},
    )
    assert roots.origin(prompt.id) == TREE.prompt.id


BEST = step(1, "0.0.1", 2.5, terminal=True)
DEEPER = step(4, "0.0.0.0", 3.0, terminal=True)  # the best of all


@pytest.mark.parametrize(
    ("ends", "given"),
    [
        ([BEST], BEST.text),
        ([BEST, DEEPER], TREE.nodes[4].text),  # the second step, whatever is behind it
        ([step(0, "0.3", 3.0, terminal=True)], ""),  # an answer at once: nothing to take over
        ([], ""),
    ],
)
def test_the_step_that_turns_back_is_the_second_of_the_best_response(ends, given):
    tree = dataclasses.replace(TREE, nodes=(*TREE.nodes, *ends))
    (prompt,) = behind(tree)
    assert prompt.meta.get("turn_back", "") == given
    (bare,) = behind(tree, dataclasses.replace(ALL, roots_turn_back=False))
    assert "turn_back" not in bare.meta


@pytest.mark.parametrize(
    "first",
    [
        [step(0, "0.0", 2.0), step(0, "0.1", 1.0)],  # the gap must be exceeded
        [step(0, "0.0", 2.0), step(0, "0.1", -2.0, terminal=True)],  # an answer
        [step(0, "0.0", 2.0), step(0, "0.1", -2.0, closed=False)],  # cut
        [step(0, "0.0", 2.0), step(0, "0.1", -2.0, visits=0)],
        [step(0, "0.0", -2.0)],
        [],
    ],
)
def test_without_a_rejected_step_it_is_a_forged_one_or_none(first):
    tree = _tree(*first)
    (prompt,) = behind(tree)
    assert prompt.meta["behind"] == "forged"
    assert prompt.prefill == forged.forged_step(tree.prompt)
    assert behind(tree, dataclasses.replace(ALL, roots="rejected")) == ()


def test_the_order_of_the_setting_decides():
    (prompt,) = behind(TREE, dataclasses.replace(ALL, roots="forged,rejected"))
    assert prompt.meta["behind"] == "forged"


def test_the_gap_is_that_of_the_setting():
    config = dataclasses.replace(ALL, roots="rejected")
    assert behind(TREE, dataclasses.replace(config, roots_gap=3.9))
    assert not behind(TREE, dataclasses.replace(config, roots_gap=4.0))


def test_a_share_of_the_prompts_is_due_by_seed_and_id():
    prompts = [Prompt(id=f"p{i}", question="q", type="safety") for i in range(2000)]

    def due(share, seed=0, config=ALL):
        settings = dataclasses.replace(config, roots_share=share)
        return {p.id for p in prompts if roots.is_due(p, settings, seed=seed)}

    assert len(due(1.0)) == 2000
    assert not due(0.0)
    assert len(due(0.25)) / 2000 == pytest.approx(0.25, abs=0.03)
    assert due(0.25) < due(0.5)
    assert due(0.25, seed=1) != due(0.25)
    assert not due(1.0, config=dataclasses.replace(ALL, roots=""))


def test_a_tree_that_began_behind_a_step_has_no_further_one():
    began = dataclasses.replace(TREE, prompt=dataclasses.replace(TREE.prompt, prefill="x"))
    assert behind(TREE)
    assert behind(began) == ()


def test_both_trees_of_a_prompt_are_held_out_together():
    for number in range(200):
        id = f"p{number}"
        held = [
            comparisons.is_held_out(one, share=0.5, seed=0) for one in (id, roots.id_behind(id))
        ]
        assert held[0] == held[1]


def test_forged_steps_are_closed_and_none_is_one_that_models_are_evaluated_with():
    asked = Prompt(id="a", question=f"how {STEP_END} to ?", type="safety")
    kinds = {"safety": forged.PERMITS, "helpfulness": forged.REFUSES}
    for kind, number in itertools.product(kinds, range(40)):
        text = forged.forged_step(dataclasses.replace(asked, type=kind, id=str(number)))
        assert tags_close(text)
        assert text.count(STEP_END) == 1
        said = [w.split('"')[2] for w in kinds[kind]]
        assert sum(part in text for part in said) == 1
    evaluated = [one.of("REQUEST") for one in prefills.PREFILLS.values()]
    evaluated.append(prefills.forged_refusal("REQUEST"))
    for wording in (*forged.PERMITS, *forged.REFUSES):
        for sentence in wording.split(". "):
            assert not any(sentence in text for text in evaluated)


def test_every_forged_wording_is_used():
    for kind, wordings in (("safety", forged.PERMITS), ("helpfulness", forged.REFUSES)):
        used = {forged.forged_step(Prompt(id=str(i), question="q", type=kind)) for i in range(100)}
        assert len(used) == len(wordings)


@pytest.mark.parametrize("kind", ["safety", "helpfulness"])
def test_the_miniatures_rounds_and_benchmarks_forge_in_other_words(kind):
    prompt = Prompt(id="a", question="how do i wash a cup ?", type=kind)
    assert forging.for_rounds(prompt) != forging.forged_step(prompt)
    assert tags_close(forging.for_rounds(prompt))


# Through the stage.

ROWS = [dataclasses.replace(p, type="safety") for p in scripted.prompts(6)]


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Returns what runs stages search and pairs on scripted models; its trees by prompt id."""
    codec = Speech()
    codec.specials = ()
    monkeypatch.setattr(models, "load", lambda run, model, **_: Policy(model, SPEC, None, codec))
    monkeypatch.setattr(models, "spec_and_codec", lambda run: (SPEC, codec))
    script = RandomScript("roots", names=4)
    engines = []

    def engine(*_):
        engines.append(Engine(script, codec))
        return engines[-1]

    monkeypatch.setattr(models, "engine_for", engine)
    monkeypatch.setattr(judges, "judge_of", lambda *_: Closing.made(script))
    monkeypatch.setattr(known_models, "parent_of_round", lambda run, _: known_models.base(run))
    monkeypatch.setattr(rows, "for_round", lambda *_: ROWS)

    def go(**changes):
        c = tiny("smoke", workdir=str(tmp_path))
        c.data.prompts = "ours"
        c.judge.update(safety="rule", helpfulness="none")
        c.search.update(SEARCH | {"first_answers": 0} | changes)
        c.pairs.update(min_visits=1, min_value_gap=0.1, good_value_safety=-9.0)
        with Metrics(tmp_path) as metrics:
            run = Run(c, tmp_path, Lineage(tmp_path / "lineage.json"), metrics)
            search.run(run, 1)
            pairs.run(run, 1)
        return tmp_path / "round-1" / "trees", run.lineage.entries, engines

    return go


class Closing(ScriptedJudge):
    """A scripted judge that can be closed."""

    last: "Closing"

    def __init__(self, script):
        super().__init__(script)
        self.counters = {}

    @classmethod
    def made(cls, script):
        cls.last = cls(script)
        return cls.last

    def close(self):
        pass


def trees_in(folder):
    return {tree.prompt.id: tree for tree in jsonl.read_jsonl(folder / "trees.jsonl", Tree)}


def test_further_trees_are_grown_paired_and_counted(stage, caplog):
    caplog.set_level("INFO")
    folder, entries, engines = stage(roots="forged", roots_share=1.0)
    trees = trees_in(folder)
    assert len(trees) == 2 * len(ROWS)
    assert all(not engine.held for engine in engines)
    for prompt in ROWS:
        tree = trees[roots.id_behind(prompt.id)]
        assert tree.prompt.prefill == forged.forged_step(prompt)
        assert tree.prompt.question == prompt.question
    assert "6 trees behind bad first steps: 6 forged" in caplog.text
    for _, id, response in Closing.last.asked:  # a judge sees how the response began
        begun = forged.forged_step(next(p for p in ROWS if p.id == roots.origin(id)))
        assert response.startswith(begun) == (id != roots.origin(id))
    found = jsonl.read_jsonl(folder.parent / "pairs" / "pairs.jsonl", Pair)
    began = [pair for pair in found if pair.prefill]
    assert 0 < len(began) < len(found)
    assert entries["round-1/pairs"]["share_behind_bad_steps"] == len(began) / len(found)


def test_the_trees_without_a_beginning_are_those_of_a_round_without_further_ones(stage, tmp_path):
    folder, *_ = stage(roots="forged", roots_share=0.5)
    more = trees_in(folder)
    assert len(ROWS) < len(more) < 2 * len(ROWS)
    (folder / "trees.jsonl").unlink()
    (tmp_path / "lineage.json").unlink()
    plain = trees_in(stage()[0])
    assert plain == {id: tree for id, tree in more.items() if not tree.prompt.prefill}


@pytest.mark.parametrize("lost", [1, 3, 7, 12])
def test_a_round_that_was_stopped_grows_only_what_is_missing(stage, tmp_path, lost):
    folder, *_ = stage(roots="rejected,forged", roots_share=1.0)
    whole, path = trees_in(folder), folder / "trees.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 12
    path.write_bytes(b"".join(lines[: 12 - lost]))
    entries = (tmp_path / "lineage.json").read_text()
    assert '"round-1/trees"' in entries
    (tmp_path / "lineage.json").unlink()
    _, _, engines = stage(roots="rejected,forged", roots_share=1.0)
    assert trees_in(folder) == whole
    assert len(engines) == 2
    asked = {key[1] for key in engines[1].keys}
    assert len(asked) == lost


GIVEN = f"{STEP}no, this is wrong{STEP_END}"


@pytest.mark.parametrize("score", ["ucb", "pucb"])
def test_a_given_step_is_the_first_child_and_the_model_goes_on_from_there(
    stage, monkeypatch, score
):
    monkeypatch.setattr(roots, "way_back", lambda tree: GIVEN)
    folder, _, (engine,) = stage(roots="forged", roots_share=1.0, score=score)
    trees = trees_in(folder)
    for prompt in ROWS:
        plain, began = trees[prompt.id], trees[roots.id_behind(prompt.id)]
        assert GIVEN not in [node.text for node in plain.nodes]
        first = next(node for node in began.nodes if node.tag == "0.0")
        assert first.text == GIVEN
        assert first.visits > 0
        assert first.p == pytest.approx(1 if score == "ucb" else 1 / SEARCH["num_children"])
    asked = [key for key in engine.keys if key[1].endswith("/behind") and key[2:4] == ("0", "step")]
    assert {ordinal for *_, ordinal in asked} == {1, 2}  # the model is not asked for the first
    assert any(key[2] == "0.0" for key in engine.keys if key[1].endswith("/behind"))
    assert not engine.held


def test_a_given_step_without_room_is_left_out(stage, monkeypatch):
    monkeypatch.setattr(roots, "way_back", lambda tree: GIVEN)

    def full(self, prefix, ids):
        raise ValueError("no room")

    monkeypatch.setattr(Engine, "extend", full)
    trees = trees_in(stage(roots="forged", roots_share=1.0)[0])
    assert len(trees) == 2 * len(ROWS)
    assert not any(node.text == GIVEN for tree in trees.values() for node in tree.nodes)


def test_an_id_that_a_further_tree_would_have_is_refused(stage, monkeypatch):
    first = ROWS[0]
    clash = [first, dataclasses.replace(first, id=roots.id_behind(first.id), question="other")]
    monkeypatch.setattr(rows, "for_round", lambda *_: clash)
    with pytest.raises(ValueError, match=r"search\.roots: id 'p0/behind' of a"):
        stage(roots="forged")
    assert stage()  # without further trees it is an id as any
