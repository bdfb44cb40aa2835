"""Reward models as folders: against transformers' own classes, both directions, and refusals."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from stair_jax import mesh as mesh_lib
from stair_jax import text
from stair_jax.hf import exporter, metadata, reward_model
from stair_jax.miniature import tokenizer as miniature_tokenizer
from stair_jax.model import reward, transformer
from stair_jax.model.reward import Readout
from tests.support.reward_folders import (
    EOS,
    TINY,
    TOKENIZER,
    VOCAB,
    codec,
    edit_config,
    our_scores,
    save,
    weights,
)

TOLERANCE = 1e-4  # float32, against torch
PADDED = dataclasses.replace(TINY, V=VOCAB + 5, tied=True)  # rows that only pad the table
QWEN2 = dataclasses.replace(TINY, family="qwen2", qkv_bias=True, rope_scaling=None)
QWEN3 = dataclasses.replace(TINY, family="qwen3", qk_norm=True, rope_scaling=None)
STEPS = Readout(position="step_end", loss="mse", low=-3.0, high=2.5)
LENGTHS = (29, 11, 40)  # of the sequences; 40 is well past the rope's original context


def sequences(end=None):
    """Returns random ids, with no padding and no end in them but the one asked for."""
    random, own = np.random.default_rng(0), codec()
    barred = {own.tokenizer.pad_token_id, own.eos_id}
    ordinary = [i for i in range(VOCAB) if i not in barred]
    rows = [random.choice(ordinary, n).tolist() for n in LENGTHS]
    return rows if end is None else [[*row, end] for row in rows]


def edit_tensors(folder, change):
    tensors = safetensors.numpy.load_file(folder / metadata.WEIGHTS)
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / metadata.WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(("spec", "readout"), [(TINY, EOS), (PADDED, STEPS)], ids=["eos", "steps"])
def test_what_is_saved_is_loaded(tmp_path, spec, readout):
    folder = save(tmp_path / "m", spec, readout, codec=codec("be kind"), shard_bytes=9_000)
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert not (folder / "generation_config.json").exists()
    got = reward_model.load(folder)
    assert got.own
    assert got.readout == readout
    assert got.codec is not None
    assert (got.codec.system, got.codec.template) == ("be kind", "llama3")
    assert got.codec.prompt_ids("how many") == codec("be kind").prompt_ids("how many")
    assert got.codec.prompt_ids("how many") != codec().prompt_ids("how many")
    assert got.spec == reward.scalar(dataclasses.replace(spec, V=spec.vocab))
    assert not spec.tied or spec.V > got.spec.V
    want = weights(spec)
    want = want | {"embed": want["embed"][: spec.vocab]}
    jax.tree.map(np.testing.assert_array_equal, got.params, want)


def test_a_mesh_takes_its_parts_and_bfloat16_spares_the_score(tmp_path):
    folder = save(tmp_path / "m")
    mesh = mesh_lib.make((1, 2, 2), jax.devices()[:4])
    got = reward_model.load(folder, mesh, "bfloat16").params
    assert got["layers"]["wq"].sharding.mesh.shape == mesh.shape
    assert got["layers"]["wq"].addressable_shards[0].data.size < got["layers"]["wq"].size
    assert (got["embed"].dtype, got["score"].dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(got["score"], weights(TINY)["score"])


def padded_with_its_end():
    tokenizer = miniature_tokenizer.build()
    tokenizer.pad_token = text.TURN_ENDS["llama3"]
    return text.Codec(tokenizer, "llama3")


def test_the_padding_never_ends_a_sequence(tmp_path):
    own = padded_with_its_end()
    assert own.tokenizer.pad_token_id == own.eos_id
    folder = save(tmp_path / "m", codec=own)
    config = json.loads((folder / "config.json").read_text())
    assert config["eos_token_id"] == own.eos_id
    assert config["pad_token_id"] != own.eos_id
    assert reward_model.load(folder).tokenizer.pad_token_id == config["pad_token_id"]
    assert own.tokenizer.pad_token_id == own.eos_id  # the caller's is left alone


@pytest.mark.parametrize(("readout", "end"), [(EOS, True), (STEPS, False)], ids=["eos", "steps"])
def test_the_report_sees_a_wrong_weight(tmp_path, readout, end):
    folder = save(tmp_path / "m", readout=readout, dtype="bfloat16")
    rows = sequences(codec().eos_id if end else None)
    args = folder, TINY, weights(TINY), readout, rows
    report = reward_model.export_report(*args, dtype="bfloat16")
    assert report["max_abs_diff"] <= TOLERANCE
    assert report["prompts"] == len(rows)
    assert report == json.loads((folder / "export_report.json").read_text())
    edit_tensors(folder, lambda t: t.update({"score.weight": t["score.weight"] * 2}))
    assert reward_model.export_report(*args, dtype="bfloat16")["against"]["reload"] > 0.01


def test_what_does_not_fit_is_not_exported(tmp_path):
    policy, tied = weights(TINY, transformer.init), reward.scalar(TINY)
    with pytest.raises(ValueError, match=r"\['head', 'score'\] do not fit"):
        reward_model.save(tmp_path / "m", TINY, policy, EOS, codec(), dtype="float32")
    with pytest.raises(ValueError, match=r"\['score'\] do not fit"):
        exporter.save(tmp_path / "m", tied, weights(tied), None, end_ids=[1], dtype="float32")


def drop(name):
    return lambda d: edit_tensors(d, lambda t: t.pop(name))


def rename(old, new):
    return lambda d: edit_tensors(d, lambda t: t.update({new: t.pop(old)}))


def strip_prefix(folder):
    def change(tensors):
        for name in [n for n in tensors if n.startswith("model.")]:
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    edit_tensors(folder, change)


def put(name, value):
    return lambda d: edit_tensors(d, lambda t: t.update({name: np.asarray(value, np.float32)}))


BROKEN = {
    r"config\.json: unsupported architecture \['LlamaForCausalLM'\], expected one of \['Llama": (
        lambda d: edit_config(d, architectures=["LlamaForCausalLM"])
    ),
    r"unsupported architecture \[\], expected": lambda d: edit_config(d, architectures="gone"),
    r"config\.json: model_type is 'qwen2', expected 'llama'": lambda d: edit_config(
        d, model_type="qwen2"
    ),
    r"config\.json: found 3 labels, expected 1": lambda d: edit_config(
        d, id2label={"0": "a", "1": "b", "2": "c"}
    ),
    r"config\.json: found 2 labels, expected 1": lambda d: edit_config(
        d, id2label="gone", num_labels="gone"
    ),
    r"config\.json: quantised weights \(gptq\)": lambda d: edit_config(
        d, quantization_config={"quant_method": "gptq"}
    ),
    r"config\.json: stair_readout cannot be read: .*'loss'": lambda d: edit_config(
        d, stair_readout={"position": "eos", "low": 0, "high": 1}
    ),
    r"stair_readout is at 'step_end', expected 'eos' for a SequenceClassification": (
        lambda d: edit_config(d, stair_readout=STEPS.to_json())
    ),
    r"config\.json: stair_codec cannot be read": lambda d: edit_config(d, stair_codec="gone"),
    r"stair_codec cannot be read: model\.template: 'x' is not": lambda d: edit_config(
        d, stair_codec={"template": "x", "system": ""}
    ),
    r"expected the tensor score\.weight, found \['v_head\.weight'\]": rename(
        "score.weight", "v_head.weight"
    ),
    r"expected the tensor score\.weight, found \[\]": drop("score.weight"),
    r"safetensors: score\.weight has 2 labels, expected 1": put("score.weight", np.ones((2, 12))),
    r"score\.weight has shape \(1, 5\), expected \(1, 12\)": put("score.weight", np.ones((1, 5))),
    r"safetensors: score\.bias is \[0\.5\], expected 0 or none": put("score.bias", [0.5]),
    r"tensors are missing \['model\.embed_tokens\.weight'.*are unknown \['embed_tokens\.weight'": (
        strip_prefix
    ),
    r"the tokenizer cannot be read": lambda d: [p.unlink() for p in d.glob("tokenizer*")],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save(tmp_path_factory.mktemp("whole") / "m")


def test_every_unusable_folder_is_refused_in_one_line(whole, tmp_path):
    for i, (message, damage) in enumerate(BROKEN.items()):
        folder = shutil.copytree(whole, tmp_path / str(i))
        damage(folder)
        with pytest.raises(ValueError, match=message) as caught:
            reward_model.load(folder)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)


def test_an_output_head_and_a_bias_of_zero_are_passed_over(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "m")
    put("lm_head.weight", np.ones((VOCAB, 12)))(folder)
    put("score.bias", [0.0])(folder)
    got = reward_model.load(folder).params
    jax.tree.map(np.testing.assert_array_equal, got, reward_model.load(whole).params)


# Against transformers.

THEIRS = {
    "llama": (
        "Llama",
        "SequenceClassification",
        {
            "rope_parameters": {
                "rope_theta": 1e4,
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "qwen2": ("Qwen2", "TokenClassification", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", "SequenceClassification", {}),
}


def their_model(family, kind, change):
    torch = pytest.importorskip("torch")
    import transformers

    sizes = {
        "num_hidden_layers": 2,
        "hidden_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "intermediate_size": 28,
        "vocab_size": VOCAB,
        "max_position_embeddings": 64,
        "num_labels": 1,
        "pad_token_id": TOKENIZER.pad_token_id,
    }
    config = getattr(transformers, f"{family}Config")(**sizes | change)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}For{kind}")(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(torch.randn_like(p) * (0.3 if "norm" in name or "bias" in name else 0.2))
        if kind == "TokenClassification":
            model.score.bias.zero_()
    return model


def their_scores(model, rows, pad):
    """Returns transformers' answer to one batch with padding at the right."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
    with torch.no_grad():
        return model(ids, attention_mask=(ids != pad).long()).logits.float().numpy()


@pytest.mark.parity
@pytest.mark.parametrize("name", THEIRS)
def test_their_checkpoint_gives_their_scores_here(name, tmp_path):
    family, kind, change = THEIRS[name]
    model = their_model(family, kind, change)
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    TOKENIZER.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    got = reward_model.load(tmp_path)
    rows = sequences()
    want = their_scores(model, rows, TOKENIZER.pad_token_id)
    ours = our_scores(got.spec, got.params, rows)
    assert not got.own
    assert got.pad_id == TOKENIZER.pad_token_id
    once = kind == "SequenceClassification"
    place = "eos" if once else "step_end"
    assert got.readout == Readout(position=place, loss="bt", low=-1.0, high=1.0)
    want = [x if once else x[: len(row), 0] for x, row in zip(want, rows, strict=True)]
    ours = [x[-1:] if once else x for x in ours]
    assert np.ptp(np.concatenate(want)) > 0.1  # equal ones would agree by accident
    for a, b in zip(want, ours, strict=True):
        np.testing.assert_allclose(b, a, atol=TOLERANCE)


@pytest.mark.parity
def test_in_bfloat16_scores_agree_as_far_as_it_can_tell(tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    save(tmp_path / "m", QWEN3, STEPS, dtype="bfloat16")
    auto = transformers.AutoModelForTokenClassification
    model = auto.from_pretrained(tmp_path / "m", trust_remote_code=False).eval()
    assert model.dtype == torch.bfloat16
    got = reward_model.load(tmp_path / "m", dtype="bfloat16")
    rows = sequences()
    want = their_scores(model, rows, TOKENIZER.pad_token_id)
    ours = our_scores(got.spec, got.params, rows, jnp.bfloat16)
    exact = np.concatenate(our_scores(got.spec, got.params, rows))  # the same weights in float32
    theirs = np.concatenate([a[: len(b), 0] for a, b in zip(want, ours, strict=True)])
    off = [np.linalg.norm(x - exact) for x in (np.concatenate(ours), theirs)]
    # Each rounds in its own places: 0.016 of the norm, either of them, with SSE4.2 as with AVX-512.
    assert max(off) < 0.07 * np.linalg.norm(exact), off
    assert max(off) < 4 * min(off), off


OURS = {
    "untied, eos": (TINY, EOS),
    "padded and tied, steps": (PADDED, STEPS),
    "qwen2, eos": (QWEN2, EOS),
    "qwen3, steps": (QWEN3, STEPS),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", OURS)
def test_our_export_gives_our_scores_there(name, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    spec, readout = OURS[name]
    once = readout.position == "eos"
    end = codec().eos_id if once else None
    folder = save(tmp_path / "m", spec, readout, shard_bytes=9_000)
    assert len(list(folder.glob("*.safetensors"))) > 1
    kind = "SequenceClassification" if once else "TokenClassification"
    auto = getattr(transformers, f"AutoModelFor{kind}")
    model, found = auto.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
    )
    assert (
        type(model).__name__
        == {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[spec.family] + f"For{kind}"
    )
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    rows = sequences(end)
    want = our_scores(reward.scalar(spec), weights(spec), rows)
    got = their_scores(model.eval(), rows, model.config.pad_token_id)
    assert np.ptp(np.concatenate(want)) > 0.1
    for a, b in zip(want, got, strict=True):
        np.testing.assert_allclose(
            b if once else b[: len(a), 0], a[-1:] if once else a, atol=TOLERANCE
        )
    report = reward_model.export_report(folder, spec, weights(spec), readout, rows, dtype="float32")
    assert {*report["against"]} == {"reload", "transformers"}
    assert 0 <= report["max_abs_diff"] <= TOLERANCE


@pytest.mark.parity
def test_padding_that_ended_sequences_would_be_read_elsewhere(tmp_path):
    """An export of a tokenizer that pads with the end: read at its own end all the same."""
    torch = pytest.importorskip("torch")
    import transformers

    own = padded_with_its_end()
    folder = save(tmp_path / "m", codec=own)
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    rows = sequences(own.eos_id)
    want = [x[-1:] for x in our_scores(reward.scalar(TINY), weights(TINY), rows)]
    got = their_scores(model, rows, model.config.pad_token_id)
    np.testing.assert_allclose(got, want, atol=TOLERANCE)
    model.config.pad_token_id = own.eos_id  # as it would be
    spoilt = their_scores(model, rows, own.eos_id)
    assert np.abs(spoilt - want).max() > 100 * TOLERANCE
