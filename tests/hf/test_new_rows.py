"""Rows of tags that a checkpoint did not have: where they start, what rate they learn at, and how
they are trained, kept and read beside adapters.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import transformers

from stair_jax import config as config_lib
from stair_jax import jsonl, pipeline
from stair_jax.hf import exporter, peft, tags
from stair_jax.log.metrics import Metrics
from stair_jax.model import lora
from stair_jax.run import known_models, models
from stair_jax.run.known_models import SFT_MODEL
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import Run
from stair_jax.text import TAGS
from stair_jax.train import optimizer
from stair_jax.train import step as step_lib
from tests.support.hf_folders import TIED, TINY, make_tokenizer, weights
from tests.support.training import train_config

SMALL = dataclasses.replace(TINY, L=2, D=16, H=4, F=24, V=264, vocab=264, rope_scaling=None)
ROWS = (260, 261, 262, 263)
TURNS = ("<|im_start|>", "<|im_end|>")


def spelled(name):
    return make_tokenizer().encode(name, add_special_tokens=False)


@pytest.mark.parametrize("spec", [TINY, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("V", [271, 258], ids=["spare rows", "grown"])
def test_a_new_tag_starts_as_the_mean_of_what_spelled_it(spec, V):
    spec = dataclasses.replace(spec, V=V, vocab=V)
    before = weights(spec)
    after = tags.add_tags(make_tokenizer(), spec, before, seed=5)[2]
    for table in ("embed",) if spec.tied else ("embed", "head"):
        old, new = before[table], np.asarray(after[table])
        for row, name in enumerate(TAGS, start=257):
            pieces = old[spelled(name)]
            assert len(pieces) > 9
            gap = new[row] - pieces.mean(axis=0)
            assert 0 < np.abs(gap).max() < 5 * tags.TAG_NOISE * old.std()
        apart = np.abs(new[257:259].mean(axis=0) - new[259:261].mean(axis=0)).max()
        assert apart > 0.2 * old.std()  # other letters, other rows


def test_new_rows_have_a_rate_of_their_own():
    config = train_config(lr=1e-3, new_rows_lr=0.5, weight_decay=0.0)
    params = {"embed": jnp.asarray(weights(TINY)["embed"]), "norm": jnp.ones(12)}
    grads = jax.tree.map(jnp.ones_like, params)
    spreads = optimizer.spreads_of(params)
    assert spreads == {"embed": pytest.approx(float(params["embed"].std()), rel=0.05)}
    tx = optimizer.of(config, (3, 8), spreads)
    update = jax.jit(step_lib.updated, static_argnums=3)
    lr = jnp.float32(config.lr)
    new = update(step_lib.State(params, tx.init(params)), grads, lr, tx)[0].params
    moved = np.abs(np.asarray(new["embed"] - params["embed"]))
    want = np.full(len(moved), config.lr)
    want[[3, 8]] = 0.5 * spreads["embed"]
    np.testing.assert_allclose(moved, want[:, None].repeat(12, 1), rtol=1e-3)
    np.testing.assert_allclose(params["norm"] - new["norm"], config.lr, rtol=1e-3)
    # Beside adapters the rows are all there is of their table.
    trained = {"layers": {"q": {"a": jnp.ones(2)}}, "rows": {"embed": jnp.ones((2, 12))}}
    grads = jax.tree.map(jnp.ones_like, trained)
    new = update(step_lib.State(trained, tx.init(trained)), grads, lr, tx)[0].params
    np.testing.assert_allclose(1 - new["rows"]["embed"], 0.5 * spreads["embed"], rtol=1e-3)
    np.testing.assert_allclose(1 - new["layers"]["q"]["a"], 1e-3, rtol=1e-2)


def test_without_new_rows_or_a_rate_of_theirs_the_optimiser_is_the_same():
    usual, fast = train_config(), train_config(new_rows_lr=0.5)
    assert optimizer.of(fast) is optimizer.of(usual)
    assert optimizer.of(usual, (3,), {"embed": 1.0}) is optimizer.of(usual)
    assert optimizer.of(fast, (3,), {"embed": 1.0}) is not optimizer.of(usual)


def checkpoint(folder, spec=SMALL, knows=()):
    """A model of bytes with ChatML's turns, and the tags that it `knows`, on disk."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [*TURNS, *knows]})
    exporter.save(folder, spec, weights_of(spec), tokenizer, end_ids=[256], dtype="float32")
    return folder


def weights_of(spec):
    return jax.tree.map(lambda x: 0.3 * x, weights(spec))


ANSWER = "{0}ab {1} ba{2}{3}c{4}"


def rows_file(path, count=6):
    answer = ANSWER.format(TAGS[0], "is", TAGS[1], TAGS[2], TAGS[3])
    rows = [{"prompt": f"q {i}", "answer": answer} for i in range(count)]
    jsonl.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_of(tmp_path, workdir="run", folder=None, **train):
    c = config_lib.default()
    c.workdir, c.stages = str(tmp_path / workdir), "sft"
    c.mesh.shape = (1, 1, 1)
    c.model.update(
        checkpoint=str(folder or tmp_path / "model"), template="chatml", compute_dtype="float32"
    )
    c.data.sft = str(tmp_path / "sft.jsonl")
    c.sft.train.update(
        batch=6,
        epochs=2.0,
        lr=1e-2,
        buckets=(64,),
        micro_tokens=1024,
        remat="none",
        lora_rank=2,
        new_rows_lr=0.2,
        head_chunk=64,
    )
    c.sft.train.update(train)
    c.engine.dtype = "float32"
    return c


def of(c):
    workdir = jsonl.pathlib.Path(c.workdir)
    return Run(c, workdir, Lineage(workdir / "lineage.json"), Metrics(workdir))


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def trained(request, tmp_path):
    """A run whose stage sft has trained adapters, and tables."""
    spec = dataclasses.replace(SMALL, tied=request.param)
    checkpoint(tmp_path / "model", spec)
    rows_file(tmp_path / "sft.jsonl")
    c = config_of(tmp_path)
    pipeline.run(c)
    return of(c), ("embed",) if spec.tied else ("embed", "head")


def test_adapters_train_the_rows_of_new_tags_and_no_others(trained):
    this, tables = trained
    base, sft = models.load(this, known_models.base(this)), models.load(this, SFT_MODEL)
    found = models.adapters_of(this, SFT_MODEL)
    assert found is not None
    assert found.new_rows == models.new_rows(this) == (259, 260, 261, 262)
    assert this.lineage.entries["sft"]["new_rows"] == [259, 260, 261, 262]
    assert set(found.factors[lora.ROWS]) == set(tables)
    for table in tables:
        a, b = (np.asarray(x.params[table]) for x in (base, sft))
        moved = np.flatnonzero((a != b).any(axis=1))
        assert moved.tolist() == [259, 260, 261, 262]
        np.testing.assert_array_equal(b[moved], found.factors[lora.ROWS][table])
        assert np.abs(b[moved] - a[moved]).max() > 0.1 * a.std()


def test_an_engine_gets_the_trained_rows(trained):
    this, tables = trained
    whole = models.load(this, SFT_MODEL).params
    later = models.load(this, SFT_MODEL, for_engine=True).params
    for table in tables:
        np.testing.assert_array_equal(later[table].make(), whole[table])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(models._made(a), b, atol=1e-6),
        later["layers"],
        whole["layers"],
        is_leaf=lambda x: hasattr(x, "make"),
    )


def test_adapters_of_an_earlier_version_are_refused_by_name(trained):
    this, _ = trained
    del this.lineage.entries["sft"]["new_rows"]
    for for_engine in (False, True):
        with pytest.raises(ValueError, match=r"sft: its adapters .*tokens \[\].*redo=sft") as error:
            models.load(this, SFT_MODEL, for_engine=for_engine)
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_knows_the_tags_gets_adapters_alone(tmp_path):
    checkpoint(tmp_path / "model", knows=TAGS)
    rows_file(tmp_path / "sft.jsonl")
    c = config_of(tmp_path)
    c.sft.train.new_rows_lr = config_lib.default().sft.train.new_rows_lr  # there are none
    pipeline.run(c)
    found = models.adapters_of(of(c), SFT_MODEL)
    assert found is not None
    assert lora.ROWS not in found.factors
    assert found.new_rows == ()


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers' words to PEFT
def test_peft_and_the_export_compute_what_we_do(trained):
    torch, library = pytest.importorskip("torch"), pytest.importorskip("peft")
    this, tables = trained
    for name in ("base", "sft"):
        c = this.config.copy_and_resolve_references()
        c.stages, c.export.model = "export", name
        pipeline.run(c)
    export = this.workdir / "export"
    tensors = safetensors.numpy.load_file(export / "sft-adapters" / peft.WEIGHTS)
    assert sum(name.endswith(peft.TOKENS) for name in tensors) == len(tables)
    load = transformers.AutoModelForCausalLM.from_pretrained
    ids = torch.tensor([[5, 259, 7, 260, 261, 9, 262]])

    def logits(model):
        with torch.no_grad():
            return model.eval()(ids).logits.numpy()

    plain = logits(load(export / "base"))
    adapted = library.PeftModel.from_pretrained(load(export / "base"), export / "sft-adapters")
    got, want = logits(adapted), logits(load(export / "sft"))
    assert np.abs(want - plain).max() > 0.1
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_rows_that_do_not_fit_are_not_exported(tmp_path):
    shapes = jax.eval_shape(
        lambda key: lora.init(SMALL, key, rank=2, targets=("q",), new_rows=4), jax.random.key(0)
    )
    made = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    how = {"alpha": 1.0, "rank": 2, "targets": ("q",), "base_name": "b", "dtype": "float32"}
    with pytest.raises(ValueError, match=r"rows .*\(4, 16\).* of new tokens, expected \{\}"):
        peft.save(tmp_path / "a", SMALL, made, **how)
    peft.save(tmp_path / "a", SMALL, made, **how, new_rows=(1, 2, 3, 4))
