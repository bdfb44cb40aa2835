"""Sizes and constants of a decoder of the Llama and Qwen families."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# Per family: the Hugging Face architecture, and which of its layers carry (qkv bias, q/k norm).
FAMILIES = {
    "llama": ("LlamaForCausalLM", (False, False)),
    "qwen2": ("Qwen2ForCausalLM", (True, False)),
    "qwen3": ("Qwen3ForCausalLM", (False, True)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3.1's stretch of the slow rotary frequencies."""

    factor: float  # how much longer the slow waves become
    low: float  # waves per original context: fewer than this are stretched whole
    high: float  # more than this are left alone; between the two it blends
    original: int  # tokens of context before the stretch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """Sizes of one decoder. No defaults: a forgotten field must fail, not guess."""

    L: int  # layers
    D: int  # model width
    N: int  # query heads
    K: int  # key/value heads
    H: int  # head dim
    F: int  # feed-forward width
    V: int  # rows of the embedding and the head, padding included
    vocab: int  # rows that are tokens to the model, those without a word yet included
    eps: float  # RMSNorm
    theta: float  # RoPE base
    rope_scaling: RopeScaling | None
    qkv_bias: bool  # biases on the q, k, v projections (Qwen2)
    qk_norm: bool  # RMSNorm over each head's query and key (Qwen3)
    tied: bool  # the output head is the embedding
    family: str  # "llama", "qwen2", "qwen3": what an export calls itself

    def __post_init__(self):
        if self.N % self.K:
            raise ValueError(f"N={self.N} query heads do not divide into K={self.K} kv heads")
        if self.H % 2:
            raise ValueError(f"head dim H={self.H} must be even for rotary embeddings")
        if not 0 < self.vocab <= self.V:
            raise ValueError(f"vocab={self.vocab} tokens, expected 1 to the V={self.V} rows")
        if self.family not in FAMILIES:
            raise ValueError(f"family {self.family!r} is unknown, expected one of {[*FAMILIES]}")
        found, expected = (self.qkv_bias, self.qk_norm), FAMILIES[self.family][1]
        if found != expected:
            raise ValueError(
                f"family {self.family!r}: (qkv_bias, qk_norm) is {found}, expected {expected}"
            )

    @property
    def G(self) -> int:
        """Query heads per kv head."""
        return self.N // self.K

    @property
    def parameters(self) -> int:
        """Number of parameters, a tied head counted once."""
        attention = 2 * self.D * self.H * (self.N + self.K)
        biases = self.H * (self.N + 2 * self.K) * self.qkv_bias + 2 * self.H * self.qk_norm
        layer = attention + biases + 3 * self.D * self.F + 2 * self.D
        return self.L * layer + self.V * self.D * (1 if self.tied else 2) + self.D

    def matrix_parameters(self, *, head: bool) -> int:
        """Number of parameters that a token is multiplied with; the embedding is only looked up."""
        attention = 2 * self.D * self.H * (self.N + self.K)
        return self.L * (attention + 3 * self.D * self.F) + self.V * self.D * head

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> "Spec":
        """Returns the sizes of a Hugging Face `config.json`, of transformers 4 or 5 style.

        Raises:
            ValueError: a feature that this decoder does not have, or a missing key, by name.
        """
        family = _family(hf)
        _refuse_what_we_lack(hf, family)
        theta, scaling = _rope(hf)
        if family == "qwen3" and hf.get("head_dim") is None:  # its default is not D / N
            raise ValueError("key 'head_dim' is missing, a qwen3 model must state it")
        qkv_bias, qk_norm = FAMILIES[family][1]
        heads = _need(hf, "num_attention_heads")
        return cls(
            L=_need(hf, "num_hidden_layers"), D=_need(hf, "hidden_size"), N=heads,
            K=hf.get("num_key_value_heads") or heads,
            H=hf.get("head_dim") or _need(hf, "hidden_size") // heads,
            F=_need(hf, "intermediate_size"), V=_need(hf, "vocab_size"), vocab=hf["vocab_size"],
            eps=float(_need(hf, "rms_norm_eps")), theta=theta, rope_scaling=scaling,
            qkv_bias=qkv_bias, qk_norm=qk_norm, tied=bool(hf.get("tie_word_embeddings", False)),
            family=family,
        )  # fmt: skip

    def to_hf(self) -> dict[str, Any]:
        """Returns the `config.json` fields of these sizes, for transformers 4 and 5 alike."""
        rope: dict[str, Any] = {"rope_type": "default"}
        if self.rope_scaling is not None:
            s = self.rope_scaling
            rope = {
                "rope_type": "llama3", "factor": s.factor, "low_freq_factor": s.low,
                "high_freq_factor": s.high, "original_max_position_embeddings": s.original,
            }  # fmt: skip
        hf: dict[str, Any] = {
            "architectures": [FAMILIES[self.family][0]], "model_type": self.family,
            "num_hidden_layers": self.L, "hidden_size": self.D, "num_attention_heads": self.N,
            "num_key_value_heads": self.K, "head_dim": self.H, "intermediate_size": self.F,
            "vocab_size": self.vocab, "rms_norm_eps": self.eps, "hidden_act": "silu",
            "tie_word_embeddings": self.tied, "attention_dropout": 0.0,
            "initializer_range": 0.02, "use_cache": True,
            "rope_theta": self.theta,
            "rope_scaling": None if self.rope_scaling is None else rope,
            "rope_parameters": {"rope_theta": self.theta, **rope},
        }  # fmt: skip
        if self.family == "llama":
            hf |= {"attention_bias": False, "mlp_bias": False}
        if self.family == "qwen3":
            hf |= {"attention_bias": False}
        if self.family != "llama":
            hf |= {"use_sliding_window": False, "sliding_window": None}
        return hf


def _need(hf: Mapping[str, Any], key: str) -> Any:
    if hf.get(key) is None:
        raise ValueError(f"key {key!r} is missing")
    return hf[key]


def _family(hf: Mapping[str, Any]) -> str:
    """Returns the family, from `model_type` and, where stated, `architectures`."""
    family = hf.get("model_type")
    known = [name for name, _ in FAMILIES.values()]
    architectures = hf.get("architectures") or ()
    if family not in FAMILIES:
        found = [*architectures] or family
        raise ValueError(f"unsupported architecture {found}, expected one of {known}")
    if any(name != FAMILIES[family][0] for name in architectures):
        raise ValueError(f"unsupported architecture {[*architectures]}, expected one of {known}")
    return family


def _refuse_what_we_lack(hf: Mapping[str, Any], family: str) -> None:
    """Raises ValueError, by name, for a feature that would change the output unseen."""
    if hf.get("quantization_config"):
        method = hf["quantization_config"].get("quant_method", "unknown")
        raise ValueError(f"quantised weights ({method}) are not supported, expected plain floats")
    for key in ("hidden_act", "hidden_activation"):
        if hf.get(key, "silu") not in ("silu", "swish", None):
            raise ValueError(f"{key} {hf[key]!r} is not supported, expected 'silu'")
    for key in ("attention_bias", "mlp_bias"):
        if hf.get(key):
            raise ValueError(f"{key} true is not supported for {family}, expected false")
    if hf.get("layer_types"):
        sliding = any(kind != "full_attention" for kind in hf["layer_types"])
    else:
        switched = hf.get("use_sliding_window", family == "llama")
        first = hf.get("max_window_layers", 0)  # the layers before it see everything
        sliding = switched and hf.get("sliding_window") and first < hf["num_hidden_layers"]
    if sliding:
        raise ValueError(f"a sliding window of {hf.get('sliding_window')} tokens is not supported")


def _rope(hf: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Returns the rotary base and its scaling, of either style of `config.json`."""
    either = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    rope = {"rope_theta": hf.get("rope_theta"), **either}
    theta = float(_need(rope, "rope_theta"))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", hf.get("partial_rotary_factor")) not in (None, 1, 1.0):
        raise ValueError("partial_rotary_factor is not supported, expected 1")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ValueError(f"rope type {kind!r} is not supported, expected 'default' or 'llama3'")
    return theta, RopeScaling(
        factor=float(_need(rope, "factor")), low=float(_need(rope, "low_freq_factor")),
        high=float(_need(rope, "high_freq_factor")),
        original=int(_need(rope, "original_max_position_embeddings")),
    )  # fmt: skip
