"""Stage prm on a workdir whose trees are grown by hand: no search, a model with random weights."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from stair_jax import jsonl, pipeline
from stair_jax.config import default, restore, reward_forms
from stair_jax.config.schema import PrmConfig, RewardConfig
from stair_jax.log.metrics import Metrics
from stair_jax.model import reward
from stair_jax.run import held_out, known_models, models, responses
from stair_jax.run.known_models import SFT_MODEL
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import Run
from stair_jax.stages import prm
from tests.support.comparisons import node, tree
from tests.support.configs import tiny

SMALL = {
    "rounds": 2,
    "stages": "prm",
    "model__size__L": 1,
    "model__size__D": 32,
    "model__size__F": 32,
    "model__size__N": 2,
    "model__size__K": 1,
    "model__size__H": 16,
    "prm__eval_share": 0.3,
    "prm__train__batch": 4,
    "prm__train__lr": 1e-2,
    "prm__train__buckets": (40,),
    "prm__train__remat": "none",
    "prm__train__epochs": 2.0,
    "prm__train__save_every": 3,
}


def small(workdir, **changes):
    """Sizes of the miniature with the paper's settings of the stage, so far as SMALL says none."""
    c = tiny("smoke", workdir=str(workdir))
    c.prm.update(default().prm)
    c.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in (SMALL | changes).items()}
    )
    return c


def grown(codec, number, count=12):
    """Trees whose good steps say "safe" and whose bad ones say "harm"."""
    good, bad = (codec.response_ids(word)[0] for word in ("refuse", "answer"))
    end = next(iter(codec.end_stop - codec.end_ids))
    step = next(iter(codec.step_stop - codec.end_stop))
    return [
        tree(
            node(0, "0.0", 2.0, ids=(good, step)),
            node(0, "0.1", -2.0, ids=(bad, step)),
            node(1, "0.0.0", 3.0, ids=(good, end), ends=True),
            node(1, "0.0.1", 1.0, ids=(bad, end), ends=True),
            node(2, "0.1.0", -3.0, ids=(bad, end), ends=True),
            id=f"round {number} prompt {i}",
        )
        for i in range(count)
    ]


def make(workdir, **changes):
    """Lays down the trees of two rounds, and a first model, as a run would have."""
    c = small(workdir, **changes)
    run = Run(c, workdir, Lineage(workdir / "lineage.json"), Metrics(workdir))
    codec = models.spec_and_codec(run)[1]
    for number in (1, 2):
        name = f"round-{number}/trees"
        run.begin(name, "search")
        trees = grown(codec, number)
        jsonl.write_jsonl(run.round_dir(number) / "trees" / "trees.jsonl", trees)
        run.lineage.finish(name, f"hash {number}")
    return c


def opened(c):
    workdir = pathlib.Path(c.workdir)
    return Run(c, workdir, Lineage(workdir / "lineage.json"), Metrics(workdir))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("prm") / "w"
    workdir.mkdir()
    c = make(workdir)
    pipeline.run(c)
    return c


def report_of(c):
    return json.loads((pathlib.Path(c.workdir) / "prm" / "report.json").read_text())


def test_the_stage_learns_from_trees_and_says_so(finished):
    run, found = opened(finished), report_of(finished)
    entry = run.lineage.entries["prm"]
    assert entry["finished"]
    assert entry["parents"] == {"round-1/trees": "hash 1", "round-2/trees": "hash 2"}
    assert found["start"] == "base"
    assert found["rounds"] == entry["rounds"] == [1, 2]
    assert (
        found["readout"]
        == entry["readout"]
        == {
            "position": "eos",
            "loss": "bt",
            "low": -3.0,
            "high": 3.0,
        }
    )
    assert found["trees"] == entry["trees"] == 24
    assert 0 < found["held_out_trees"] == found["held_out"]["trees"] < 24
    # Three a tree of 2 pairs of steps (of depth 1, none of depth 2) and 3 of whole responses.
    assert found["mined"] == entry["rows"] == 3 * (24 - found["held_out_trees"])
    assert found["step"] == entry["step"] == 2 * -(-entry["rows"] // 4)
    held = found["held_out"]
    assert held["pairs"] == 4 * held["trees"]
    assert held["accuracy"] > 0.9
    assert held["nodes"] == 5 * held["trees"]
    assert found["dropped"] == {"over_limit": 24 - held["trees"]}
    lines = jsonl.read_json_lines(run.workdir / "metrics.jsonl")
    [line] = [x for x in lines if x["stage"] == "prm/held_out"]
    assert line["accuracy"] == held["accuracy"]
    assert line["step"] == found["step"]
    steps = [x["step"] for x in lines if x["stage"] == "prm" and "loss" in x]
    assert steps == list(range(1, found["step"] + 1))
    preview = (run.workdir / "prm" / "preview.txt").read_text()
    assert "row 1, better" in preview
    assert "  read: '<|eot_id|>'" in preview


def test_the_trained_model_is_loaded_with_its_read_out(finished):
    run = opened(finished)
    found = models.reward_model(run)
    entry = run.lineage.entries["prm"]
    assert set(found.params) == {"embed", "layers", "norm", "score"}
    assert models.digest_of(found.params) == entry["hash"]
    assert found.readout.to_json() == entry["readout"]
    assert found.spec == reward.scalar(models.spec_and_codec(run)[0])
    assert found.codec.digest == models.spec_and_codec(run)[1].digest


def test_a_finished_reward_model_is_not_made_again(finished):
    before = (pathlib.Path(finished.workdir) / "lineage.json").read_text()
    pipeline.run(restore(json.loads(finished.to_json())))
    assert (pathlib.Path(finished.workdir) / "lineage.json").read_text() == before


def test_killed_while_it_measures_it_ends_as_an_undisturbed_run(finished, tmp_path, monkeypatch):
    workdir = tmp_path / "w"
    workdir.mkdir()
    c = make(workdir)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prm.reward_models, "report", killed)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(c)
    assert not Lineage(workdir / "lineage.json").finished("prm")
    assert not (workdir / "prm" / "report.json").exists()
    pipeline.run(c)
    assert report_of(c) == report_of(finished)
    hashes = [opened(x).lineage.entries["prm"]["hash"] for x in (c, finished)]
    assert hashes[0] == hashes[1]


def test_values_at_the_ends_of_steps_with_adapters(tmp_path):
    c = make(
        tmp_path,
        prm__loss="bce",
        prm__readout="step_end",
        prm__train__lora_rank=4,
        prm__train__epochs=5.0,
    )
    pipeline.run(c)
    found, entry = report_of(c), opened(c).lineage.entries["prm"]
    assert found["held_out"]["calibrated"]
    assert found["held_out"]["accuracy"] > 0.9
    assert found["held_out"]["ece"] < 0.1
    assert found["mined"] == 3 * (24 - found["held_out_trees"])  # one row a leaf
    assert entry["adapters_of"] == "base"
    # Loaded, the adapters are merged into the weights that they were trained on.
    model = models.reward_model(opened(c))
    base = models.load(opened(c), known_models.base(opened(c))).params
    assert model.readout.loss == "bce"
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), model.params["layers"], base["layers"]
    )
    assert max(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize("position", ["eos", "step_end"])
def test_every_node_of_a_tree_set_aside_is_scored_at_its_own_token(finished, position):
    run = opened(finished)
    codec = models.spec_and_codec(run)[1]
    config = dataclasses.replace(prm.PrmConfig.of(finished.prm), readout=position)
    readout = dataclasses.replace(prm.readout_of(finished), position=position)
    trees = grown(codec, 1, count=3)

    def score(batch):
        """The token that is read, its place, and a mark of the prompt, as one number."""
        at = np.take_along_axis(batch.tokens, batch.read, axis=-1)
        return at + 1000.0 * batch.read

    train = prm.train_config(finished, "prm")
    frame = {"seed": 0, "pad_id": codec.pad_id, "row_shards": 1}
    scored = held_out.scored(trees, codec, config, readout, train, frame, score)
    prompt = len(codec.prompt_ids("q"))
    for tree_, found in zip(trees, scored, strict=True):
        assert found.tree is tree_
        assert set(found.raw) == {"0.0", "0.1", "0.0.0", "0.0.1", "0.1.0"}
        for n in tree_.nodes[1:]:
            last = codec.eos_id if position == "eos" else n.ids[-1]
            place = prompt + 2 * n.depth - 1 + (position == "eos")
            assert found.raw[n.tag] == last + 1000 * place
            assert found.tokens[n.tag] == 2 * n.depth


@pytest.mark.parametrize(
    ("form", "constants", "want"),
    [
        ("paper", {}, (-3.0, 3.0)),
        ("paper", {"c2": 0.0}, (-2.0, 2.0)),
        ("paper", {"F": "quadratic"}, (-7.0, 3.0)),
        ("paper", {"F": "power"}, (-2.0, 3.0)),
        # R = 2 S^2 - 3 S at H = -1 has its least value between the ends of S, at 3/4.
        ("paper", {"F": "quadratic", "c2": 1.0}, (-1.125, 5.0)),
        ("safe-constraint", {"k1": 2.0, "k2": 0.5}, (-4.5, 4.5)),
        ("outcome", {}, (-1.0, 1.0)),
    ],
)
def test_the_range_of_rewards(form, constants, want):
    usual = {"F": "identity", "c1": 1.0, "c2": -1.0, "k1": 1.0, "k2": 1.0}
    found = reward_forms.bounds(form, RewardConfig(**(usual | constants)))
    assert found == pytest.approx(want)


def test_the_read_out_comes_from_the_configuration():
    found = prm.readout_of(
        small("x", search__reward="outcome", prm__loss="mse", prm__readout="step_end")
    )
    assert found.to_json() == {"position": "step_end", "loss": "mse", "low": -1.0, "high": 1.0}


@pytest.mark.parametrize("shown", [False, True])
def test_settings_of_further_prompts_reach_the_sampling(tmp_path, monkeypatch, shown):
    asked = []
    monkeypatch.setattr(responses, "sample", lambda *found: asked.extend(found) or NOTHING)
    settings = {"prompts": 6, "samples": 3, "temperature": 0.7, "demonstrations": shown}
    run = opened(small(tmp_path, **{f"prm__{key}": value for key, value in settings.items()}))
    assert prm._sampled(run, SFT_MODEL, PrmConfig.of(run.config.prm)) == []
    *_, rows, draw, given = asked
    assert (len(rows), draw.count, draw.sampling.temperature) == (6, 3, 0.7)
    assert list(given) == [row.id for row in rows] * shown


NOTHING = responses.Sampled([], {}, {})


def test_what_is_missing_is_said_in_one_line(tmp_path):
    (tmp_path / "none").mkdir()
    empty = small(tmp_path / "none")
    with pytest.raises(ValueError, match=r"stage prm needs round-1/trees: run stage search first"):
        pipeline.run(empty)
    with pytest.raises(ValueError, match=r"reward model: none in .*; run stage prm"):
        models.reward_model(opened(empty))
    (tmp_path / "w").mkdir()
    c = make(tmp_path / "w", prm__model="dpo-7")
    with pytest.raises(ValueError, match=r"needs model 'dpo-7' of config\.prm\.model, which is"):
        pipeline.run(c)
    shutil.rmtree(tmp_path / "w")
    (tmp_path / "w").mkdir()
    beyond = {"search__value": "prm", "search__value_model": "x"}  # a range that nobody knows
    c = make(tmp_path / "w", prm__min_value_gap=99.0, **beyond)
    with pytest.raises(ValueError, match=r"no row to train on: .*min_value_gap=99; lower"):
        pipeline.run(c)


def test_the_stage_comes_after_the_rounds_and_before_the_evaluation():
    items = pipeline.items_of(small("x", stages="evaluate,prm,dpo,search,pairs,sft"))
    names = [item.name for item in items]
    assert names[-3:] == ["round-2/dpo", "prm", "evaluate"]
    assert "prm" in pipeline.status(small("x"), Lineage(pathlib.Path("nowhere")))
