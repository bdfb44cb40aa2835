"""`search.value` from the configuration to the trees: a folder's reward model values steps."""

import itertools
import shutil

import numpy as np
import pytest

from stair_jax.model import reward
from stair_jax.model.reward import Readout
from stair_jax.run import models, reward_models
from stair_jax.run.known_models import SFT_MODEL
from stair_jax.run.models import Policy
from stair_jax.search.tree_file import open_to_append
from stair_jax.stages import search
from tests.support import judging
from tests.support.judging import Model, run_of
from tests.support.reward_folders import TINY, codec, edit_config, our_scores, save, weights

READOUT = Readout(position="step_end", loss="mse", low=-3.0, high=3.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("reward") / "model", readout=READOUT)


@pytest.fixture
def trees_of(tmp_path, monkeypatch):
    """Grows a tree under `search.value`, its policy a script that shares the folder's tokens."""
    monkeypatch.setattr(judging, "CODEC", codec())
    policy = Policy(SFT_MODEL, TINY, params=None, codec=codec())
    monkeypatch.setattr(models, "load", lambda *_, **__: policy)
    monkeypatch.setattr(search.counters, "shares", lambda _: {})

    def grow(value, **changes):
        model = Model(lambda _: "")
        monkeypatch.setattr(models, "engine_for", lambda *_: model)
        shutil.rmtree(tmp_path, ignore_errors=True)
        tmp_path.mkdir()
        run = run_of(tmp_path, search__value=value, data__round_prompts=4, **changes)
        (tmp_path / "round-1" / "trees").mkdir(parents=True)
        trees = open_to_append(tmp_path / "round-1" / "trees")
        asked = search.rows.for_round(run.config, 1)[:1]
        found = search._grow(run, 1, SFT_MODEL, asked, trees, None)[1]
        assert not model.held
        return next(iter(trees)), model, found

    return grow


def test_steps_have_the_value_that_the_folders_model_reads(trees_of, folder):
    tree, model, found = trees_of("prm", search__value_model=str(folder))
    assert not model.kinds["end"]  # no rollout
    assert found["valuer/prefilled"] > 0
    prompt = codec().prompt_ids(tree.prompt.question)
    steps = [i for i, node in enumerate(tree.nodes) if node.depth and not node.terminal]
    leaves = [i for i in steps if all(node.parent != i for node in tree.nodes)]
    assert leaves
    params = weights(TINY)
    for i in leaves:
        ids = [*prompt, *itertools.chain(*(node.ids for node in tree.path(i)))]
        raw = float(our_scores(reward.scalar(TINY), params, [ids])[0][-1])
        np.testing.assert_allclose(tree.nodes[i].value, READOUT.value(raw), atol=1e-4)


def test_a_mix_rolls_out_too_and_the_weight_counts(trees_of, folder):
    found = {}
    for weight in (0.25, 0.75):
        tree, model, _ = trees_of(
            "mix", search__value_model=str(folder), search__value_weight=weight
        )
        assert model.kinds["end"]
        found[weight] = [node.value_sum for node in tree.nodes]
    assert found[0.25] != found[0.75]


def test_a_rollout_wants_no_model(trees_of):
    assert trees_of("rollout")[1].kinds["end"]


def test_what_cannot_value_is_refused_in_one_line(tmp_path, folder):
    policy = Policy(SFT_MODEL, TINY, params=None, codec=codec())

    def value(path, policy=policy):
        (tmp_path / "w").mkdir(exist_ok=True)
        run = run_of(tmp_path / "w", search__value="prm", search__value_model=str(path))
        return reward_models.prm_for_search(run, policy)

    assert value(folder) is not None
    with pytest.raises(ValueError, match=r"search\.value_model: empty, search\.value 'prm' wants"):
        value("")
    other = Policy(SFT_MODEL, TINY, params=None, codec=judging.CODEC)
    with pytest.raises(ValueError, match=r"value_model: .* has other tokens than sft"):
        value(folder, other)
    theirs = shutil.copytree(folder, tmp_path / "theirs")
    edit_config(theirs, stair_readout="gone")
    with pytest.raises(ValueError, match="reads no steps, it is no export of ours"):
        value(theirs)
