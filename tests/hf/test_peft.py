"""Adapters in PEFT's format: PEFT itself loads them, and computes what we compute."""

import json
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from stair_jax.hf import exporter, peft
from stair_jax.model import heads, lora, transformer
from stair_jax.model.spec import Spec

RANK, ALPHA = 3, 4.5
SIZES = {
    "L": 2,
    "D": 12,
    "N": 4,
    "K": 2,
    "H": 6,
    "F": 20,
    "V": 40,
    "vocab": 40,
    "eps": 1e-5,
    "theta": 1e3,
    "rope_scaling": None,
    "qk_norm": False,
}
LLAMA = Spec(**SIZES, qkv_bias=False, tied=False, family="llama")
QWEN2 = Spec(**SIZES, qkv_bias=True, tied=True, family="qwen2")
TOKENS = np.random.default_rng(0).integers(0, 40, (2, 11)).astype(np.int32)


def random(shapes, seed):
    """Returns numpy weights in the place of shapes; none is zero, no gain is one."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda x: 0.3 * draw.normal(size=x.shape).astype(np.float32), shapes)


def weights(spec):
    return random(jax.eval_shape(partial(transformer.init, spec), jax.random.key(0)), 1)


def factors(spec, targets):
    draw = partial(lora.init, spec, rank=RANK, targets=targets)
    return random(jax.eval_shape(draw, jax.random.key(0)), 2)


def ours(spec, params, factors):
    @jax.jit
    def run(params, factors):
        decoder = transformer.Decoder(spec, jnp.float32, lora_scale=ALPHA / RANK)
        variables = {"params": params, "lora": factors}
        return heads.logits(params, decoder.apply(variables, jnp.asarray(TOKENS))[0], spec)

    return np.asarray(run(params, factors))


def save(folder, spec=LLAMA, targets=("q", "o"), made=None, **change):
    options = {
        "alpha": ALPHA,
        "rank": RANK,
        "targets": targets,
        "base_name": "base",
        "dtype": "float32",
    }
    made = factors(spec, targets) if made is None else made
    peft.save(folder, spec, made, **options | change)
    return made


@pytest.mark.parity
@pytest.mark.parametrize(
    ("spec", "targets"),
    [(LLAMA, ("q", "v", "o", "down")), (QWEN2, tuple(lora.TARGETS))],
    ids=["llama", "qwen2"],
)
def test_peft_loads_the_adapter_and_gives_our_logits(tmp_path, spec, targets):
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    params = weights(spec)
    base = tmp_path / "base"
    exporter.save(base, spec, params, None, end_ids=[7], dtype="float32")
    made = save(tmp_path / "adapter", spec, targets, base_name=str(base))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, trust_remote_code=False
    ).eval()

    def theirs(model):
        with torch.no_grad():
            return model(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()

    plain = theirs(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers' words to PEFT
        adapted = library.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    loaded = {name for name, _ in adapted.named_parameters() if "lora_" in name}
    assert len(loaded) == 2 * spec.L * len(targets)
    want = ours(spec, params, made)
    assert np.abs(theirs(adapted) - plain).max() > 0.1
    assert np.abs(theirs(adapted) - want).max() <= 1e-4
    merged = jax.tree.map(np.asarray, lora.merge(params, made, ALPHA / RANK))
    exporter.save(tmp_path / "merged", spec, merged, None, end_ids=[7], dtype="float32")
    whole = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", dtype=torch.float32
    )
    assert np.abs(theirs(whole.eval()) - want).max() <= 1e-4


def test_the_files_say_what_was_asked(tmp_path):
    save(tmp_path / "a", base_name="some/model", dtype="bfloat16")
    config = json.loads((tmp_path / "a" / peft.CONFIG).read_text())
    assert (config["r"], config["lora_alpha"]) == (RANK, ALPHA)
    assert config["base_model_name_or_path"] == "some/model"
    assert config["target_modules"] == ["o_proj", "q_proj"]
    tensors = safetensors.numpy.load_file(tmp_path / "a" / peft.WEIGHTS)
    name = "base_model.model.model.layers.1.self_attn.o_proj.lora_A.weight"
    assert len(tensors) == 2 * LLAMA.L * 2
    assert (tensors[name].shape, tensors[name].dtype.name) == ((RANK, 24), "bfloat16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]  # nothing half-written stays


def test_a_folder_is_replaced_whole(tmp_path, monkeypatch):
    save(tmp_path / "a")
    save(tmp_path / "a", targets=("v",))
    assert json.loads((tmp_path / "a" / peft.CONFIG).read_text())["target_modules"] == ["v_proj"]
    monkeypatch.setattr(exporter, "write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(tmp_path / "a")
    assert json.loads((tmp_path / "a" / peft.CONFIG).read_text())["target_modules"] == ["v_proj"]


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("dtype 'int8' is unknown", {"dtype": "int8"}),
        (r"adapters of \['o', 'q'\], expected \['q'\]", {"targets": ("q",)}),
        ("adapter 'q': .* expected 2 layers of 12 to 24 with rank 2", {"rank": 2}),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, message, change):
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "a", made=factors(LLAMA, ("q", "o")), **change)
    assert not (tmp_path / "a").exists()
