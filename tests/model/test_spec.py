import copy
import dataclasses
import json
from typing import Any

import jax
import pytest

from stair_jax.model import transformer
from stair_jax.model.spec import RopeScaling, Spec
from tests.support import specs

SCALING = RopeScaling(factor=8.0, low=1.0, high=4.0, original=32)
SIZES = {
    "L": 2,
    "D": 6,
    "N": 4,
    "K": 2,
    "H": 8,
    "F": 7,
    "V": 11,
    "vocab": 11,
    "eps": 1e-5,
    "theta": 5e5,
}
SPECS = {
    "llama": Spec(
        **SIZES, rope_scaling=SCALING, qkv_bias=False, qk_norm=False, tied=False, family="llama"
    ),
    "qwen2": Spec(
        **SIZES, rope_scaling=None, qkv_bias=True, qk_norm=False, tied=True, family="qwen2"
    ),
    "qwen3": Spec(
        **SIZES, rope_scaling=None, qkv_bias=False, qk_norm=True, tied=False, family="qwen3"
    ),
}
STYLE_4 = {"rope_theta", "rope_scaling"}
STYLE_5 = {"rope_parameters"}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("other_style", [STYLE_4, STYLE_5, set()], ids=["5", "4", "both"])
def test_a_spec_survives_config_json_in_either_style(spec, other_style):
    hf = {k: v for k, v in spec.to_hf().items() if k not in other_style}
    assert Spec.from_hf(json.loads(json.dumps(hf))) == spec


@pytest.mark.parametrize("field", dataclasses.fields(Spec), ids=lambda f: f.name)
def test_every_field_reaches_config_json(field):
    spec = SPECS["llama"]
    other = {
        "rope_scaling": None,
        "family": "qwen2",
        "tied": True,
        "N": 6,
        "K": 1,
        "H": 4,
        "eps": 1e-3,
        "theta": 1e4,
    }
    change = {field.name: other.get(field.name, 13)}
    if field.name in ("qkv_bias", "qk_norm", "family"):  # they move together
        change = {"family": "qwen3" if field.name == "qk_norm" else "qwen2"}
        change |= {"qkv_bias": change["family"] == "qwen2", "qk_norm": change["family"] == "qwen3"}
    if field.name in ("V", "vocab"):  # a table without padding, as every file's is
        change = {"V": 13, "vocab": 13}
    changed = dataclasses.replace(spec, **change)
    assert changed != spec
    assert changed.to_hf() != spec.to_hf()
    assert Spec.from_hf(changed.to_hf()) == changed


def test_rows_that_pad_the_table_are_no_part_of_config_json():
    padded = dataclasses.replace(SPECS["llama"], V=16)
    assert padded.to_hf() == SPECS["llama"].to_hf()
    assert padded.parameters - SPECS["llama"].parameters == 2 * 5 * padded.D
    with pytest.raises(ValueError, match=r"vocab=17 tokens, expected 1 to the V=16 rows"):
        dataclasses.replace(padded, vocab=17)


_QWEN = {"rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768}
_LLAMA_ROPE = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
# What the configurations of the published models say: family, layers, width, heads, kv heads,
# feed-forward width, vocabulary, whether tables are tied, and what else they have.
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "Llama-3.1-8B-Instruct": (
        "llama",
        32,
        4096,
        32,
        8,
        14336,
        128256,
        False,
        {"rms_norm_eps": 1e-5, "rope_theta": 5e5, "rope_scaling": _LLAMA_ROPE},
    ),
    "Qwen2-7B-Instruct": (
        "qwen2",
        28,
        3584,
        28,
        4,
        18944,
        152064,
        False,
        _QWEN | {"use_sliding_window": False, "sliding_window": None},
    ),
    "Qwen2.5-0.5B-Instruct": ("qwen2", 24, 896, 14, 2, 4864, 151936, True, _QWEN),
    "Qwen2.5-1.5B-Instruct": ("qwen2", 28, 1536, 12, 2, 8960, 151936, True, _QWEN),
    "Qwen2.5-7B-Instruct": ("qwen2", 28, 3584, 28, 4, 18944, 152064, False, _QWEN),
    "Qwen3-0.6B": ("qwen3", 28, 1024, 16, 8, 3072, 151936, True, _QWEN | {"head_dim": 128}),
    "Qwen3-8B": ("qwen3", 36, 4096, 32, 8, 12288, 151936, False, _QWEN | {"head_dim": 128}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_models_are_read(name):
    family, layers, width, heads, kv_heads, wide, vocab, tied, more = PUBLISHED[name]
    config = {
        "model_type": family,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": wide,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        **more,
    }
    spec = Spec.from_hf(config)
    assert (layers, width, heads, kv_heads, wide) == (spec.L, spec.D, spec.N, spec.K, spec.F)
    assert (spec.V, spec.tied, spec.family) == (vocab, tied, family)
    assert (64 if name == "Qwen2.5-0.5B-Instruct" else 128) == spec.H
    assert (spec.theta, spec.eps) == (more["rope_theta"], more["rms_norm_eps"])
    assert (spec.qkv_bias, spec.qk_norm) == (family == "qwen2", family == "qwen3")
    assert (spec.rope_scaling is not None) == (family == "llama")
    assert Spec.from_hf(spec.to_hf()) == spec


def test_the_8b_model_has_8_billion_parameters():
    spec = Spec(
        L=32,
        D=4096,
        N=32,
        K=8,
        H=128,
        F=14336,
        V=128256,
        vocab=128256,
        eps=1e-5,
        theta=5e5,
        tied=False,
        rope_scaling=RopeScaling(factor=8.0, low=1.0, high=4.0, original=8192),
        qkv_bias=False,
        qk_norm=False,
        family="llama",
    )
    shapes = jax.eval_shape(lambda key: transformer.init(spec, key), jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 8_030_261_248


REFUSED = {
    "unsupported architecture": {"model_type": "mistral", "architectures": ["MistralForCausalLM"]},
    "LlamaForSequenceClassification": {"architectures": ["LlamaForSequenceClassification"]},
    r"quantised weights \(awq\)": {"quantization_config": {"quant_method": "awq"}},
    "hidden_act 'gelu'": {"hidden_act": "gelu"},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "sliding window of 9": {"sliding_window": 9},
    "sliding window of 8": {"layer_types": ["sliding_attention"] * 2, "sliding_window": 8},
    "rope type 'yarn'": {"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn"}},
    "rope type 'linear'": {"rope_parameters": None, "rope_scaling": {"type": "linear"}},
    "partial_rotary_factor": {"partial_rotary_factor": 0.5},
    "'rope_theta' is missing": {"rope_parameters": None, "rope_theta": None},
    "'low_freq_factor' is missing": {
        "rope_parameters": {"rope_theta": 1e4, "rope_type": "llama3", "factor": 8.0}
    },
    "'rms_norm_eps' is missing": {"rms_norm_eps": None},
    r"num_attention_heads\) do not divide into 3 of .*num_key_value_heads": {
        "num_key_value_heads": 3
    },
    "head_dim is 5, expected an even": {"head_dim": 5},
}


@pytest.mark.parametrize(("message", "change"), REFUSED.items(), ids=REFUSED)
def test_what_we_do_not_have_is_refused_by_name(message, change):
    hf = copy.deepcopy(SPECS["llama"].to_hf())
    Spec.from_hf(hf)
    with pytest.raises(ValueError, match=message) as error:
        Spec.from_hf(hf | change)
    assert "\n" not in str(error.value)


NONSENSE = {
    "num_attention_heads": [0, "2", True, 2.0, -4, [4], {}, 2**40],
    "num_key_value_heads": [0, "2", True, 2.0, -2],
    "num_hidden_layers": [0, "2", False, 2.5, -1, [2]],
    "hidden_size": [0, None, "6", float("nan")],
    "head_dim": [0, "8", -8, 8.0],
    "intermediate_size": [0, "7", None],
    "vocab_size": [0, "11", True, -11],
    "rms_norm_eps": [0, "1e-5", True, -1e-5, float("nan"), float("inf"), [1e-5]],
    "rope_theta": [0, "5e5", True, -1.0, float("inf"), 10**400],
    "rope_parameters": ["llama3", [1], 7],
    "rope_scaling": ["llama3", [1], True],
    "tie_word_embeddings": ["false", 0, 1, []],
    "attention_bias": ["false", 0, []],
    "architectures": ["LlamaForCausalLM", {"LlamaForCausalLM": 1}, [1]],
    "model_type": [["llama"], {}, 5],
    "hidden_act": [["silu"], {}, True],
    "quantization_config": ["gptq", ["gptq"]],
    "layer_types": ["full_attention", [1], {"full_attention": 1}],
    "sliding_window": ["9", -9, True],
    "use_sliding_window": ["false", 0],
}


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, values in NONSENSE.items() for value in values],
    ids=lambda x: str(x)[:20],
)
def test_nonsense_in_a_config_is_refused_by_name(key, value):
    hf = SPECS["llama"].to_hf()
    assert Spec.from_hf(hf) == SPECS["llama"]
    where = "architecture" if key == "model_type" else key.removeprefix("quantization_")
    with pytest.raises(ValueError, match=where) as error:
        Spec.from_hf(hf | {key: value})
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


STRETCHED = dict(SPECS["llama"].to_hf()["rope_scaling"])
TWO_TRUTHS = {
    "rope_parameters is .* and rope_scaling is": {"rope_scaling": STRETCHED | {"factor": 4.0}},
    "rope_parameters is .*default.* and rope_scaling is .*llama3": {
        "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}
    },
    "rope_scaling is .*default": {"rope_scaling": {"type": "default"}},
    r"rope_theta is 500000\.0 and rope_parameters\.rope_theta is 10000\.0": {
        "rope_parameters": STRETCHED | {"rope_theta": 1e4}
    },
    r"rope_theta is 500000\.0 and rope_scaling\.rope_theta is 10000\.0": {
        "rope_scaling": STRETCHED | {"rope_theta": 1e4}
    },
    "rope_type is 'llama3' and type is 'default'": {
        "rope_parameters": STRETCHED | {"type": "default"}
    },
    "rope factor 8.0 without a rope type": {"rope_parameters": {"rope_theta": 5e5, "factor": 8.0}},
    "partial_rotary_factor": {"rope_parameters": STRETCHED | {"partial_rotary_factor": 0.5}},
    r"low_freq_factor is 4\.0, expected it below": {
        "rope_parameters": STRETCHED | {"low_freq_factor": 4.0}
    },
}


@pytest.mark.parametrize(("message", "change"), TWO_TRUTHS.items(), ids=TWO_TRUTHS)
def test_two_truths_about_the_rope_are_refused_by_name(message, change):
    hf = SPECS["llama"].to_hf()
    assert hf["rope_scaling"] == STRETCHED
    assert STRETCHED["factor"] == 8.0
    with pytest.raises(ValueError, match=message) as error:
        Spec.from_hf(hf | change)
    assert "\n" not in str(error.value)


def test_what_agrees_may_stand_twice():
    hf = SPECS["llama"].to_hf()
    both = STRETCHED | {"rope_theta": 5e5, "type": "llama3", "partial_rotary_factor": 1.0}
    again = hf | {"rope_parameters": both, "rope_scaling": both, "rope_theta": 500_000}
    assert Spec.from_hf(again) == SPECS["llama"]


def test_heads_that_do_not_divide_the_width_need_a_head_dim():
    hf = SPECS["llama"].to_hf() | {"head_dim": None, "hidden_size": 16}
    assert Spec.from_hf(hf).H == 4
    with pytest.raises(ValueError, match="hidden_size 18 does not divide into num_attention_heads"):
        Spec.from_hf(hf | {"hidden_size": 18})


def test_a_qwen2_window_counts_only_where_a_layer_uses_it():
    hf = SPECS["qwen2"].to_hf() | {"sliding_window": 9, "max_window_layers": 2}
    assert Spec.from_hf(hf) == SPECS["qwen2"]
    assert Spec.from_hf(hf | {"use_sliding_window": True}) == SPECS["qwen2"]  # from layer 2 of 2
    with pytest.raises(ValueError, match="sliding window of 9"):
        Spec.from_hf(hf | {"use_sliding_window": True, "max_window_layers": 1})


def test_qwen3_must_state_its_head_dim():
    hf = SPECS["qwen3"].to_hf()
    with pytest.raises(ValueError, match="'head_dim' is missing"):
        Spec.from_hf({k: v for k, v in hf.items() if k != "head_dim"})


@pytest.mark.parametrize("change", [{"qkv_bias": True}, {"qk_norm": True}, {"family": "gpt"}])
def test_a_spec_that_no_family_has_is_refused(change):
    with pytest.raises(ValueError, match="family"):
        dataclasses.replace(SPECS["llama"], **change)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_count_of_parameters_is_that_of_the_arrays(spec):
    import jax

    from stair_jax.model import transformer

    shapes = jax.eval_shape(lambda key: transformer.init(spec, key), jax.random.key(0))
    assert spec.parameters == sum(x.size for x in jax.tree.leaves(shapes))


def test_a_plain_spec_is_a_llama_with_one_table_for_both_ends():
    sizes = {"L": 2, "D": 6, "N": 4, "K": 2, "H": 8, "F": 7, "eps": 1e-5, "theta": 100.0}
    found = Spec.plain(11, **sizes)
    expected = specs.llama(**sizes, V=11, tied=True)
    assert found == expected
    assert Spec.plain(12, **sizes) != expected
    with pytest.raises(TypeError, match="'F'"):
        Spec.plain(11, **{k: v for k, v in sizes.items() if k != "F"})
