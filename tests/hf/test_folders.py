import dataclasses
import importlib.util
import json
import shutil

import huggingface_hub.constants
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import transformers

from stair_jax.hf import exporter, importer, metadata, tags
from stair_jax.hf import names as names_lib
from stair_jax.miniature import tokenizer as miniature_tokenizer
from stair_jax.text import TAGS
from tests.support.hf_folders import (
    END,
    TIED,
    TINY,
    edit_json,
    edit_tensors,
    folder,
    load,
    make_tokenizer,
    save,
    weights,
)

__all__ = ["folder"]
QWEN2 = dataclasses.replace(TINY, family="qwen2", qkv_bias=True)
QWEN3 = dataclasses.replace(TINY, family="qwen3", qk_norm=True)


@pytest.mark.parametrize("rule", names_lib.RULES, ids=lambda r: r.ours)
def test_each_rule_has_their_shape_and_its_own_inverse(rule):
    shape = names_lib.their_shape(rule, TINY)
    x = np.random.default_rng(0).normal(size=shape)
    ours = names_lib.to_ours(rule, x, TINY)
    assert ours.shape == tuple(getattr(TINY, a) for a in rule.axes)
    np.testing.assert_array_equal(names_lib.to_theirs(rule, ours, TINY), x)


def test_heads_are_the_outer_part_of_their_projections():
    rule = next(r for r in names_lib.RULES if r.ours == "layers/wq")
    x = np.arange(4 * 8 * 12.0).reshape(32, 12)
    np.testing.assert_array_equal(names_lib.to_ours(rule, x, TINY)[:, 3, 5], x[3 * 8 + 5])


@pytest.mark.parametrize(
    "spec", [TINY, TIED, QWEN2, QWEN3], ids=["llama", "tied", "qwen2", "qwen3"]
)
def test_every_parameter_has_a_rule_with_its_shape(spec):
    rules = {r.ours: r for r in names_lib.rules_of(spec)}
    for path, shape in names_lib.shapes_of(spec).items():
        ours = tuple(getattr(spec, a) for a in rules[path].axes)
        assert shape == ((spec.L, *ours) if path.startswith("layers/") else ours)


@pytest.mark.parametrize(
    "spec", [TINY, TIED, QWEN2, QWEN3], ids=["llama", "tied", "qwen2", "qwen3"]
)
@pytest.mark.parametrize("shard_bytes", [10**9, 3_000], ids=["one file", "shards"])
def test_what_is_saved_is_loaded(tmp_path, spec, shard_bytes):
    save(tmp_path / "model", spec, shard_bytes=shard_bytes)
    files = list((tmp_path / "model").glob("*.safetensors"))
    assert (len(files) > 1) == (shard_bytes == 3_000)
    got_spec, params, tokenizer = load(tmp_path / "model")
    assert got_spec == spec
    assert len(tokenizer) == 257
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
    jax.tree.map(np.testing.assert_array_equal, params, weights(spec))
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_the_tokenizer_of_the_miniature_survives(tmp_path):
    tokenizer = miniature_tokenizer.build()
    spec = dataclasses.replace(TIED, V=len(tokenizer), vocab=len(tokenizer))
    got = load(save(tmp_path / "model", spec, tokenizer=tokenizer))[2]
    text = " ".join(["What is", *TAGS, *sorted(tokenizer.get_vocab())[5:60]])
    assert got.get_vocab() == tokenizer.get_vocab()
    assert got.encode(text) == tokenizer.encode(text)
    assert len(set(got.encode(text))) > 20
    assert got.decode(got.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert set(got.all_special_tokens) == set(tokenizer.all_special_tokens)


def test_bfloat16_export_rounds_and_halves(tmp_path):
    whole, half = save(tmp_path / "a"), save(tmp_path / "b", dtype="bfloat16")
    size = lambda p: (p / metadata.WEIGHTS).stat().st_size  # noqa: E731
    assert size(half) < 0.6 * size(whole)
    assert json.loads((half / "config.json").read_text())["torch_dtype"] == "bfloat16"
    round_off = lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32)  # noqa: E731
    want = jax.tree.map(round_off, weights(TINY))
    assert not np.array_equal(want["embed"], weights(TINY)["embed"])
    jax.tree.map(np.testing.assert_array_equal, importer.load_onto(half)[1], want)


def test_tied_weights_are_written_once(tmp_path):
    names = safetensors.numpy.load_file(save(tmp_path / "model", TIED) / metadata.WEIGHTS)
    assert "lm_head.weight" not in names
    assert "lm_head.weight" in safetensors.numpy.load_file(save(tmp_path / "b") / metadata.WEIGHTS)


def test_a_repeated_tied_head_is_accepted_only_where_it_is_the_embedding(tmp_path):
    folder = save(tmp_path / "model", TIED)
    embed = weights(TIED)["embed"]
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": embed}))
    jax.tree.map(np.testing.assert_array_equal, importer.load_onto(folder)[1], weights(TIED))
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": embed + 1}))
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from the embedding"):
        importer.load_onto(folder)


def test_inverse_frequencies_of_old_checkpoints_are_ignored(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(folder, lambda t: t.update({name: np.ones(4, np.float32)}))
    jax.tree.map(np.testing.assert_array_equal, importer.load_onto(folder)[1], weights(TINY))


def test_configs_name_every_end_token_and_the_context_of_the_source(tmp_path):
    source = save(tmp_path / "source")
    edit_json(source / "config.json", max_position_embeddings=12345)
    model = save(
        tmp_path / "model", end_ids={256, 3}, source=source, chat_template="{{ bos_token }}hello"
    )
    config = json.loads((model / "config.json").read_text())
    generation = json.loads((model / "generation_config.json").read_text())
    assert config["eos_token_id"] == generation["eos_token_id"] == [3, 256]
    assert config["max_position_embeddings"] == 12345
    own = json.loads((source / "config.json").read_text())
    assert own["eos_token_id"] == 256
    assert load(model)[2].chat_template == "{{ bos_token }}hello"


def test_saving_again_replaces_the_folder_and_leaves_nothing_behind(tmp_path):
    save(tmp_path / "model", shard_bytes=3_000)
    save(tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == 1


def test_an_export_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    folder = save(tmp_path / "model")

    def fail(*_args, **_options):
        raise OSError("disk full")

    monkeypatch.setattr(exporter.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save(folder, QWEN3)
    assert importer.load_onto(folder)[0] == TINY


def test_parameters_of_another_model_are_not_exported(tmp_path):
    arguments = {"end_ids": [1], "dtype": "float32"}
    with pytest.raises(ValueError, match=r"q_norm.* do not fit the spec"):
        exporter.save(tmp_path / "a", TINY, weights(QWEN3), None, **arguments)
    with pytest.raises(ValueError, match=r"embed has shape \(271, 12\), expected \(9, 12\)"):
        exporter.save(
            tmp_path / "a",
            dataclasses.replace(TINY, V=9, vocab=9),
            weights(TINY),
            None,
            **arguments,
        )
    with pytest.raises(ValueError, match="'float8' is unknown"):
        save(tmp_path / "a", dtype="float8")
    assert not (tmp_path / "a").exists()


BROKEN = {
    r"model\.safetensors is broken": lambda d: (d / metadata.WEIGHTS).write_bytes(b"torn"),
    r"expected model\.safetensors .*pytorch_model\.bin: \.bin weights": lambda d: (
        d / metadata.WEIGHTS
    ).rename(d / "pytorch_model.bin"),
    r"config\.json is missing": lambda d: (d / "config.json").unlink(),
    r"config\.json is not JSON": lambda d: (d / "config.json").write_text("{"),
    r"config\.json: found a list, expected an object": lambda d: (d / "config.json").write_text(
        "[]"
    ),
    r"config\.json: quantised weights \(gptq\)": lambda d: edit_json(
        d / "config.json", quantization_config={"quant_method": "gptq"}
    ),
    r"names missing files \['gone\.safetensors'\]": lambda d: (d / metadata.INDEX).write_text(
        json.dumps({"weight_map": {"model.norm.weight": "gone.safetensors"}})
    ),
    r"1 tensors are missing \['model\.norm\.weight'\]": lambda d: edit_tensors(
        d, lambda t: t.pop("model.norm.weight")
    ),
    r"1 are unknown \['model\.layers\.3\.extra'\]": lambda d: edit_tensors(
        d, lambda t: t.update({"model.layers.3.extra": np.ones(3, np.float32)})
    ),
    r"norm\.weight has shape \(5,\), expected \(12,\)": lambda d: edit_tensors(
        d, lambda t: t.update({"model.norm.weight": np.ones(5, np.float32)})
    ),
    r"norm\.weight is I8, expected one of": lambda d: edit_tensors(
        d, lambda t: t.update({"model.norm.weight": np.ones(12, np.int8)})
    ),
    "the tokenizer cannot be read": lambda d: [p.unlink() for p in d.glob("tokenizer*")],
}


@pytest.mark.parametrize(("message", "damage"), BROKEN.items(), ids=BROKEN)
def test_an_unusable_folder_is_refused_in_one_line(folder, message, damage):
    load(folder)
    damage(folder)
    with pytest.raises(ValueError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)
    assert folder.name in str(error.value)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    small = dataclasses.replace(TINY, V=250, vocab=250)
    with pytest.raises(ValueError, match="disagree, found 257 tokens, expected at most the 250"):
        load(save(tmp_path / "model", small))


def test_a_hub_name_without_network_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"'someone/model' is no folder.*no network\?") as error:
        metadata.resolve("someone/model")
    assert "\n" not in str(error.value)
    assert metadata.resolve(tmp_path) == tmp_path


@pytest.mark.parametrize("spec", [TINY, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("V", [271, 258], ids=["spare rows", "grown"])
def test_tags_become_special_tokens_with_rows_of_their_own(spec, V):
    spec = dataclasses.replace(spec, V=V, vocab=V)
    before = weights(spec)
    tokenizer, after_spec, after = tags.add_tags(make_tokenizer(), spec, before, seed=5)
    rows = [257, 258, 259, 260]
    assert tokenizer.convert_tokens_to_ids(list(TAGS)) == rows
    assert set(TAGS) <= set(tokenizer.all_special_tokens)
    assert tokenizer("a" + TAGS[0]).input_ids[1:] == [257]
    V_after, vocab = (271, 271) if V == 271 else (264, 261)
    assert after_spec == dataclasses.replace(spec, V=V_after, vocab=vocab)
    for name in ("embed",) if spec.tied else ("embed", "head"):
        old, new = before[name], np.asarray(after[name])
        assert new.shape == (after_spec.V, spec.D)
        np.testing.assert_array_equal(new[:257], old[:257])
        assert len({tuple(row) for row in new[rows]}) == 4
        assert (new[vocab:] == 0).all()
    assert before["embed"].shape == (V, spec.D)
    assert after["norm"] is before["norm"]


def test_the_seed_of_the_tags_decides_their_rows():
    row = lambda seed: tags.add_tags(make_tokenizer(), TINY, weights(TINY), seed=seed)[2]["embed"]  # noqa: E731
    np.testing.assert_array_equal(row(1), row(1))
    assert not np.array_equal(row(1), row(2))


def test_tags_that_are_there_are_left(tmp_path):
    tokenizer, spec, params = tags.add_tags(make_tokenizer(), TINY, weights(TINY), seed=0)
    exporter.save(tmp_path / "m", spec, params, tokenizer, end_ids=[256], dtype="float32")
    again = load(tmp_path / "m")
    got = tags.add_tags(again[2], again[0], again[1], seed=9)
    assert len(got[0]) == len(tokenizer) == 261
    assert got[1] == spec
    jax.tree.map(np.testing.assert_array_equal, got[2], params)
    assert set(TAGS) <= set(got[0].all_special_tokens)


@pytest.mark.parametrize("spec", [TINY, TIED], ids=["untied", "tied"])
def test_an_export_leaves_out_the_rows_that_pad_the_vocabulary(tmp_path, spec):
    padded = dataclasses.replace(spec, V=280)
    params = weights(padded)
    exporter.save(tmp_path / "m", padded, params, None, end_ids=[256], dtype="float32")
    back_spec, back = importer.load_onto(tmp_path / "m")
    assert back_spec == spec
    for name in ("embed",) if spec.tied else ("embed", "head"):
        assert params[name].shape == (280, spec.D)
        np.testing.assert_array_equal(back[name], params[name][:271])
    report = exporter.export_report(tmp_path / "m", padded, params, [[1, 2, 3]], dtype="float32")
    assert report["against"]["reload"] < 1e-6


def test_a_table_is_padded_on_its_way_in():
    (rule,) = (rule for rule in names_lib.RULES if rule.ours == "embed")
    padded, theirs = dataclasses.replace(TINY, V=280), np.ones((271, TINY.D), np.float32)
    ours = names_lib.to_ours(rule, theirs, padded)
    assert ours.shape == (280, TINY.D)
    assert ours.sum(axis=1).tolist() == [TINY.D] * 271 + [0] * 9


def test_the_report_measures_the_export(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)  # as without torch
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    report = exporter.export_report(folder, TINY, weights(TINY), prompts, dtype="float32")
    largest = report.pop("largest")
    assert report == {
        "max_abs_diff": 0.0,
        "max_rel_diff": 0.0,
        "against": {"reload": 0.0},
        "prompts": 2,
    }
    report["largest"] = largest
    assert json.loads((folder / "export_report.json").read_text()) == report
    edit_tensors(folder, lambda t: t.update({"model.norm.weight": t["model.norm.weight"] * 2}))
    worse = exporter.export_report(folder, TINY, weights(TINY), prompts, dtype="float32")
    assert worse["max_abs_diff"] > 0.1
    assert worse["max_rel_diff"] == pytest.approx(1.0)  # the reload's logits are twice as large
    assert worse["max_abs_diff"] == pytest.approx(worse["largest"] * worse["max_rel_diff"])
    assert worse["largest"] == largest > 1


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "spec", [TINY, TIED, QWEN2, QWEN3], ids=["llama", "tied", "qwen2", "qwen3"]
)
def test_transformers_loads_the_export_and_agrees(tmp_path, spec, dtype):
    pytest.importorskip("torch")
    folder = save(tmp_path / "model", spec, dtype=dtype)
    report = exporter.export_report(folder, spec, weights(spec), [[1, 2, 3], [9, 8]], dtype=dtype)
    assert set(report["against"]) == {"reload", "transformers"}
    assert 0 < report["max_rel_diff"] <= 1e-4
    assert report["prompts"] == 2
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    assert tokenizer.decode(tokenizer("hi" + END).input_ids) == "hi" + END
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 knows it
    shutil.rmtree(folder)
