"""Logits against transformers' own PyTorch models, weights through our files, both directions."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax.hf import exporter, importer, metadata, names
from stair_jax.model import cache, heads, transformer
from stair_jax.model.cache import Rows
from stair_jax.model.spec import Spec

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

TOLERANCE = 1e-4  # float32, against torch; of the largest logit
REAL = os.environ.get("STAIR_REAL_MODEL", "")  # a folder with a real Llama or Qwen, such as SmolLM2
T = 47  # well past the original context of the scaled rope, so that its stretch matters
SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 20,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 28,
    "vocab_size": 43,
    "max_position_embeddings": 64,
    "attention_dropout": 0.0,
}
SCALED = {
    "rope_theta": 1e4,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
PLAIN = {"rope_theta": 3e3, "rope_type": "default"}
MODELS = {
    "llama-scaled": ("Llama", {"rope_parameters": SCALED, "rms_norm_eps": 1e-5}),
    "llama-tied": ("Llama", {"rope_parameters": PLAIN, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"rope_parameters": PLAIN, "rms_norm_eps": 1e-6}),
    "qwen2-tied": ("Qwen2", {"rope_parameters": PLAIN, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"rope_parameters": PLAIN, "rms_norm_eps": 1e-5}),
}


@pytest.fixture(scope="module", params=MODELS)
def theirs(request):
    family, change = MODELS[request.param]
    sizes = SIZES | change
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(
        getattr(transformers, f"{family}Config")(**sizes)
    ).eval()
    with torch.no_grad():  # biases are drawn as zero and gains as one: make them matter
        for name, p in model.named_parameters():
            p.add_(torch.randn_like(p) * (0.3 if "norm" in name or "bias" in name else 0.1))
    return model


def tokens():
    return np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, T))


def their_logits(model):
    with torch.no_grad():
        return model(torch.tensor(tokens())).logits.numpy()


def our_logits(spec, params):
    @jax.jit
    def run(params, ids):
        hidden, _ = transformer.Decoder(spec, jnp.float32).apply({"params": params}, ids)
        return heads.logits(params, hidden, spec)

    return np.asarray(run(params, jnp.asarray(tokens(), jnp.int32)))


def paged_logits(spec, params, chunk):
    @jax.jit
    def run(params, ids, pool, rows):
        hidden, pool = transformer.Decoder(spec, jnp.float32).apply(
            {"params": params}, ids, pool, rows
        )
        return heads.logits(params, hidden, spec), pool

    pool = cache.empty_pool(spec, pages=23, page_size=5, dtype=jnp.float32)
    table = np.random.default_rng(1).permutation(23)[:20].reshape(2, 10).astype(np.int32)
    ids, parts = tokens().astype(np.int32), []
    for start in range(0, T, chunk):
        part = ids[:, start : start + chunk]
        count = part.shape[1]
        rows = Rows(table, np.full(2, start, np.int32), np.full(2, count, np.int32))
        logits, pool = run(params, np.pad(part, ((0, 0), (0, chunk - count))), pool, rows)
        parts.append(logits[:, :count])
    return np.concatenate(parts, axis=1)


def furthest(found, want):
    """Returns the largest difference, as a share of the largest logit."""
    assert np.ptp(want) > 1  # a flat model would agree by accident
    return np.abs(found - want).max() / np.abs(want).max()


def test_their_checkpoint_gives_their_logits_here(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    spec, params = importer.load_onto(tmp_path)
    want = their_logits(theirs)
    assert furthest(our_logits(spec, params), want) <= TOLERANCE
    assert furthest(paged_logits(spec, params, 9), want) <= TOLERANCE


def test_our_checkpoint_gives_our_logits_there(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    spec, _ = importer.load_onto(tmp_path / "theirs")
    noise = np.random.default_rng(2)
    params = jax.tree.map(
        lambda x: np.asarray(x) + 0.1 * noise.normal(size=x.shape).astype(np.float32),
        transformer.init(spec, jax.random.key(3)),
    )
    exporter.save(
        tmp_path / "ours", spec, params, None, end_ids=[7], dtype="float32", shard_bytes=9_000
    )
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32, trust_remote_code=False
    )
    assert type(model) is type(theirs)
    assert furthest(our_logits(spec, params), their_logits(model.eval())) <= TOLERANCE


def test_the_table_names_their_parameters_exactly(theirs):
    spec = Spec.from_hf(theirs.config.to_dict())
    shapes = {name: tuple(p.shape) for name, p in theirs.named_parameters()}
    ours = {n: names.their_shape(r, spec) for n, (r, _) in names.tensors_of(spec).items()}
    assert ours == shapes


def test_the_stretched_rope_is_what_agrees(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, rope_parameters=SCALED)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    model.save_pretrained(tmp_path)
    spec, params = importer.load_onto(tmp_path)
    want = their_logits(model)
    unscaled = dataclasses.replace(spec, rope_scaling=None)
    assert spec.rope_scaling is not None
    assert furthest(our_logits(spec, params), want) <= TOLERANCE
    assert furthest(our_logits(unscaled, params), want) > 100 * TOLERANCE


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="STAIR_REAL_MODEL names no folder with a real model")
def test_a_real_model_gives_their_logits_here(monkeypatch):
    spec, tokenizer = metadata.load_spec_and_tokenizer(REAL)
    asked = "Why is the sky blue? Explain it to a child, in three steps, and end with a question."
    ids = np.array([tokenizer.encode(asked)] * 2)
    monkeypatch.setitem(globals(), "tokens", lambda: ids)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        REAL, dtype=torch.float32, trust_remote_code=False
    ).eval()
    want = their_logits(model)
    del model
    params = importer.load_onto(REAL)[1]
    assert furthest(our_logits(spec, params), want) <= TOLERANCE
