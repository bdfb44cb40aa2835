import dataclasses
import functools
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
from jax.sharding import NamedSharding, PartitionSpec
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from stair_jax import mesh as mesh_lib
from stair_jax.io import hf, hf_export, hf_import, hf_names, tags
from stair_jax.miniature import tokenizer as miniature_tokenizer
from stair_jax.model import transformer
from stair_jax.model.spec import RopeScaling, Spec
from stair_jax.text import TAGS

END = "<|endoftext|>"  # a qwen2 folder gets this token from transformers, listed or not
TINY = Spec(
    L=3, D=12, N=4, K=2, H=8, F=7, V=271, vocab=271, eps=1e-5, theta=1e4, tied=False,
    rope_scaling=RopeScaling(factor=8.0, low=1.0, high=4.0, original=32), qkv_bias=False,
    qk_norm=False, family="llama",
)  # fmt: skip
TIED = dataclasses.replace(TINY, tied=True)
QWEN2 = dataclasses.replace(TINY, family="qwen2", qkv_bias=True)
QWEN3 = dataclasses.replace(TINY, family="qwen3", qk_norm=True)


def make_tokenizer():
    """Returns one token per byte, and one that ends a turn: 257 in all."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, END])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    return tokenizer


@functools.cache
def weights(spec):
    shapes = jax.eval_shape(functools.partial(transformer.init, spec), jax.random.key(0))
    random = np.random.default_rng(0)
    return jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), shapes)


def save(path, spec=TINY, **options):
    defaults = {"end_ids": [256], "dtype": "float32"}
    tokenizer = options.pop("tokenizer", None) or make_tokenizer()
    hf_export.save(path, spec, weights(spec), tokenizer, **(defaults | options))
    return path


def load(path):
    """Returns all that a run reads of a folder: sizes, parameters, tokenizer."""
    return *hf_import.load_onto(path), hf.load_frame(path)[1]


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "model")


def edit_json(file, **change):
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def edit_tensors(folder, change):
    file = folder / hf.WEIGHTS
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("rule", hf_names.RULES, ids=lambda r: r.ours)
def test_each_rule_has_their_shape_and_its_own_inverse(rule):
    shape = hf_names.their_shape(rule, TINY)
    x = np.random.default_rng(0).normal(size=shape)
    ours = hf_names.to_ours(rule, x, TINY)
    assert ours.shape == tuple(getattr(TINY, a) for a in rule.axes)
    np.testing.assert_array_equal(hf_names.to_theirs(rule, ours, TINY), x)


def test_heads_are_the_outer_part_of_their_projections():
    rule = next(r for r in hf_names.RULES if r.ours == "layers/wq")
    x = np.arange(4 * 8 * 12.0).reshape(32, 12)
    np.testing.assert_array_equal(hf_names.to_ours(rule, x, TINY)[:, 3, 5], x[3 * 8 + 5])


@pytest.mark.parametrize(
    "spec", [TINY, TIED, QWEN2, QWEN3], ids=["llama", "tied", "qwen2", "qwen3"]
)
def test_every_parameter_has_a_rule_with_its_shape(spec):
    rules = {r.ours: r for r in hf_names.rules_of(spec)}
    for path, shape in hf_names.shapes_of(spec).items():
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
    text = " ".join(["What is", *TAGS, *list(tokenizer.get_vocab())[5:60]])
    assert got.get_vocab() == tokenizer.get_vocab()
    assert got.encode(text) == tokenizer.encode(text)
    assert len(set(got.encode(text))) > 20
    assert got.decode(got.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert set(got.all_special_tokens) == set(tokenizer.all_special_tokens)


def test_bfloat16_export_rounds_and_halves(tmp_path):
    whole, half = save(tmp_path / "a"), save(tmp_path / "b", dtype="bfloat16")
    size = lambda p: (p / hf.WEIGHTS).stat().st_size  # noqa: E731
    assert size(half) < 0.6 * size(whole)
    assert json.loads((half / "config.json").read_text())["torch_dtype"] == "bfloat16"
    round_off = lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32)  # noqa: E731
    want = jax.tree.map(round_off, weights(TINY))
    assert not np.array_equal(want["embed"], weights(TINY)["embed"])
    jax.tree.map(np.testing.assert_array_equal, hf_import.load_onto(half)[1], want)


def test_tied_weights_are_written_once(tmp_path):
    names = safetensors.numpy.load_file(save(tmp_path / "model", TIED) / hf.WEIGHTS)
    assert "lm_head.weight" not in names
    assert "lm_head.weight" in safetensors.numpy.load_file(save(tmp_path / "b") / hf.WEIGHTS)


def test_a_repeated_tied_head_is_accepted_only_where_it_is_the_embedding(tmp_path):
    folder = save(tmp_path / "model", TIED)
    embed = weights(TIED)["embed"]
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": embed}))
    jax.tree.map(np.testing.assert_array_equal, hf_import.load_onto(folder)[1], weights(TIED))
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": embed + 1}))
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from the embedding"):
        hf_import.load_onto(folder)


def test_inverse_frequencies_of_old_checkpoints_are_ignored(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(folder, lambda t: t.update({name: np.ones(4, np.float32)}))
    jax.tree.map(np.testing.assert_array_equal, hf_import.load_onto(folder)[1], weights(TINY))


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

    monkeypatch.setattr(hf_export.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save(folder, QWEN3)
    assert hf_import.load_onto(folder)[0] == TINY


def test_parameters_of_another_model_are_not_exported(tmp_path):
    arguments = {"end_ids": [1], "dtype": "float32"}
    with pytest.raises(ValueError, match=r"q_norm.* do not fit the spec"):
        hf_export.save(tmp_path / "a", TINY, weights(QWEN3), None, **arguments)
    with pytest.raises(ValueError, match=r"embed has shape \(271, 12\), expected \(9, 12\)"):
        hf_export.save(
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
    r"model\.safetensors is broken": lambda d: (d / hf.WEIGHTS).write_bytes(b"torn"),
    r"expected model\.safetensors .*pytorch_model\.bin: \.bin weights": lambda d: (
        d / hf.WEIGHTS
    ).rename(d / "pytorch_model.bin"),
    r"config\.json is missing": lambda d: (d / "config.json").unlink(),
    r"config\.json is not JSON": lambda d: (d / "config.json").write_text("{"),
    r"config\.json: found a list, expected an object": lambda d: (d / "config.json").write_text(
        "[]"
    ),
    r"config\.json: quantised weights \(gptq\)": lambda d: edit_json(
        d / "config.json", quantization_config={"quant_method": "gptq"}
    ),
    r"names missing files \['gone\.safetensors'\]": lambda d: (d / hf.INDEX).write_text(
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
        hf.resolve("someone/model")
    assert "\n" not in str(error.value)
    assert hf.resolve(tmp_path) == tmp_path


@pytest.mark.parametrize("spec", [TINY, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("V", [271, 258], ids=["spare rows", "grown"])
def test_tags_become_special_tokens_with_rows_near_the_mean(spec, V):
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
        mean = old[:257].mean(axis=0)
        gaps = np.linalg.norm(new[rows] - mean, axis=1)
        assert (gaps > 0).all()
        assert gaps.max() < 0.5 * np.linalg.norm(old[:257] - mean, axis=1).mean()
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
    hf_export.save(tmp_path / "m", spec, params, tokenizer, end_ids=[256], dtype="float32")
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
    hf_export.save(tmp_path / "m", padded, params, None, end_ids=[256], dtype="float32")
    back_spec, back = hf_import.load_onto(tmp_path / "m")
    assert back_spec == spec
    for name in ("embed",) if spec.tied else ("embed", "head"):
        assert params[name].shape == (280, spec.D)
        np.testing.assert_array_equal(back[name], params[name][:271])
    report = hf_export.export_report(tmp_path / "m", padded, params, [[1, 2, 3]], dtype="float32")
    assert report["against"]["reload"] < 1e-6


def test_a_table_is_padded_on_its_way_in():
    (rule,) = (rule for rule in hf_names.RULES if rule.ours == "embed")
    padded, theirs = dataclasses.replace(TINY, V=280), np.ones((271, TINY.D), np.float32)
    ours = hf_names.to_ours(rule, theirs, padded)
    assert ours.shape == (280, TINY.D)
    assert ours.sum(axis=1).tolist() == [TINY.D] * 271 + [0] * 9


def test_the_report_measures_the_export(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)  # as without torch
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    report = hf_export.export_report(folder, TINY, weights(TINY), prompts, dtype="float32")
    assert report == {"max_abs_diff": 0.0, "against": {"reload": 0.0}, "prompts": 2}
    assert json.loads((folder / "export_report.json").read_text()) == report
    edit_tensors(folder, lambda t: t.update({"model.norm.weight": t["model.norm.weight"] * 2}))
    worse = hf_export.export_report(folder, TINY, weights(TINY), prompts, dtype="float32")
    assert worse["max_abs_diff"] > 0.1


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "spec", [TINY, TIED, QWEN2, QWEN3], ids=["llama", "tied", "qwen2", "qwen3"]
)
def test_transformers_loads_the_export_and_agrees(tmp_path, spec, dtype):
    pytest.importorskip("torch")
    folder = save(tmp_path / "model", spec, dtype=dtype)
    report = hf_export.export_report(folder, spec, weights(spec), [[1, 2, 3], [9, 8]], dtype=dtype)
    assert set(report["against"]) == {"reload", "transformers"}
    assert report["max_abs_diff"] <= 1e-4
    assert report["prompts"] == 2
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("hi" + END).input_ids) == "hi" + END
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 knows it
    shutil.rmtree(folder)


def on_a_mesh(spec, shape):
    """Returns the shardings of a model's parameters over eight devices."""
    draw = functools.partial(transformer.init, spec)
    shapes = jax.eval_shape(draw, jax.random.key(0))
    return mesh_lib.shardings(transformer.logical_axes(spec), mesh_lib.make(shape), shapes)


WIDE = dataclasses.replace(TINY, D=16, F=8, V=264, vocab=264, qkv_bias=True, family="qwen2")


@pytest.mark.parametrize("shape", [(1, 4, 2), (2, 1, 4)])
def test_import_places_every_shard_and_export_gathers_them(tmp_path, shape):
    folder, places = save(tmp_path / "a", WIDE, shard_bytes=9_000), on_a_mesh(WIDE, shape)
    _, params = hf_import.load_onto(folder, places)
    there = lambda x, place: x.sharding.is_equivalent_to(place, x.ndim)  # noqa: E731
    assert jax.tree.all(jax.tree.map(there, params, places))
    assert any(not x.is_fully_replicated for x in jax.tree.leaves(places))
    jax.tree.map(np.testing.assert_array_equal, params, weights(WIDE))
    hf_export.save(tmp_path / "b", WIDE, params, make_tokenizer(), end_ids=[256], dtype="float32",
                   shard_bytes=9_000)  # fmt: skip
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    exact = hf_export.export_report(tmp_path / "b", WIDE, params, [[1, 2]], dtype="float32")
    assert exact["against"]["reload"] == 0


def contents(folder):
    """Returns the bytes of all weights of a folder, by file."""
    files = {p.name: p.read_bytes() for p in folder.iterdir() if "safetensors" in p.name}
    assert files
    return files


def test_import_in_bfloat16_rounds_once(tmp_path):
    folder = save(tmp_path / "model")
    whole, half = hf_import.load_onto(folder)[1], hf_import.load_onto(folder, dtype="bfloat16")[1]
    assert {x.dtype for x in jax.tree.leaves(half)} == {np.dtype(ml_dtypes.bfloat16)}
    assert not np.array_equal(half["embed"].astype(np.float32), whole["embed"])
    same = lambda a, b: np.testing.assert_array_equal(a, np.asarray(b).astype(a.dtype))  # noqa: E731
    jax.tree.map(same, half, whole)


@pytest.mark.parametrize("kind", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floats_are_read_as_they_are(folder, kind):
    name = "model.layers.1.mlp.up_proj.weight"
    want = np.ascontiguousarray(weights(TINY)["layers"]["w_up"][1].T.astype(kind))
    edit_tensors(folder, lambda t: t.update({name: want}))
    got = hf_import.load_onto(folder)[1]["layers"]["w_up"]
    np.testing.assert_array_equal(got[1], want.T.astype(np.float32))
    np.testing.assert_array_equal(got[2], weights(TINY)["layers"]["w_up"][2])


def test_a_stack_is_filled_in_its_own_memory(folder):
    """Import of a large model has no room for a second stack."""
    rule = next(r for r in hf_names.RULES if r.ours == "layers/w_up")
    place = NamedSharding(mesh_lib.make((1, 1, 1)), PartitionSpec())
    form = {"rule": rule, "spec": TINY, "place": place, "dtype": np.dtype(np.float32)}
    stack, x = (jax.device_put(np.zeros(n, np.float32), place) for n in [(3, 12, 7), (7, 12)])
    where = stack.unsafe_buffer_pointer()
    filled = hf_import._filled(stack, x + 1, np.int32(1), **form)
    assert stack.is_deleted()
    assert filled.unsafe_buffer_pointer() == where
    assert filled.sum() == 12 * 7 == filled[1].sum()


def test_large_tensors_leave_the_devices_in_parts(tmp_path, monkeypatch):
    whole = contents(save(tmp_path / "a"))
    monkeypatch.setattr(hf_export, "_PULLED", 100)
    sizes = []
    cut = hf_export._cut
    monkeypatch.setattr(hf_export, "_cut", lambda x, start, size: sizes.append(
        size * x[:1].nbytes) or cut(x, start, size=size))  # fmt: skip
    assert contents(save(tmp_path / "b")) == whole
    assert max(sizes) <= 12 * 32  # no more than a row beyond what is allowed
    assert len(sizes) > 300


def test_a_written_file_has_an_aligned_header_and_no_gap(folder):
    raw = (folder / hf.WEIGHTS).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert length % 8 == 0
    assert header.pop("__metadata__") == {"format": "pt"}
    spans = sorted(entry["data_offsets"] for entry in header.values())
    assert [a for a, _ in spans] == [0, *(b for _, b in spans[:-1])]
    assert spans[-1][1] == len(raw) - 8 - length


def test_added_tags_stay_on_the_devices(tmp_path):
    spec = dataclasses.replace(WIDE, V=258, vocab=258)
    _, params = hf_import.load_onto(save(tmp_path / "a", spec), on_a_mesh(spec, (1, 4, 2)))
    with jax.transfer_guard_device_to_host("disallow"):
        _, after, grown = tags.add_tags(make_tokenizer(), spec, params, seed=5)
    assert (after.V, after.vocab) == (264, 261)
    want = tags.add_tags(make_tokenizer(), spec, weights(spec), seed=5)[2]
    assert not np.array_equal(grown["embed"][257], params["embed"][257])
    np.testing.assert_allclose(grown["embed"], want["embed"], atol=1e-6)
    assert len(grown["embed"].sharding.device_set) == 8


THEIRS = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
}  # fmt: skip


@pytest.mark.parity
@pytest.mark.parametrize("family", THEIRS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_shards_tied_with_added_tokens_come_back_byte_for_byte(tmp_path, family, dtype):
    """Written by transformers, read by us, written by us: the same tensors in every byte."""
    torch = pytest.importorskip("torch")
    name = THEIRS[family][0]
    tokenizer = make_tokenizer()
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=24, tie_word_embeddings=True,
        initializer_range=0.3, max_position_embeddings=64, eos_token_id=256, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    tokenizer.add_tokens(["<extra>", "<other>"])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    room = 23 if dtype == "float32" else 12  # two files each
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path / "a", max_shard_size=f"{room}KB")
    tokenizer.save_pretrained(tmp_path / "a")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) == 2
    spec, params, got = load(tmp_path / "a")
    assert (spec.vocab, spec.tied) == (259, True)
    assert got.convert_tokens_to_ids("<other>") == 258
    hf_export.save(tmp_path / "b", spec, params, got, end_ids=[256, 258], dtype=dtype,
                   source=tmp_path / "a", shard_bytes=room * 1000)  # fmt: skip
    a, b = (raw_tensors(tmp_path / x) for x in "ab")
    assert "lm_head.weight" not in b
    assert a == b
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "b").eos_token_id == [256, 258]
    auto, ids = transformers.AutoModelForCausalLM, torch.tensor([[1, 257, 258, 3]])
    with torch.no_grad():
        x, y = (auto.from_pretrained(tmp_path / f, dtype=torch.float32)(ids).logits for f in "ab")
    assert (x == y).all()
    assert hf.load_frame(tmp_path / "b")[1].get_vocab() == tokenizer.get_vocab()


def raw_tensors(folder):
    """Returns dtype, shape and bytes of each tensor of a folder."""
    found = {}
    for file in folder.glob("*.safetensors"):
        for name, x in safetensors.numpy.load_file(file).items():
            found[name] = (str(x.dtype), x.shape, x.tobytes())
    return found


def test_what_cannot_be_written_leaves_nothing_half_done(tmp_path, monkeypatch):
    def full(_file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf_export.os, "fsync", full)
    with pytest.raises(OSError, match=r"model was not written: .*No space left on device"):
        save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
