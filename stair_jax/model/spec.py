"""Sizes and constants of a decoder of the Llama and Qwen families."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

# Per family: the Hugging Face architecture, and which of its layers carry (qkv bias, q/k norm).
FAMILIES = {
    "llama": ("LlamaForCausalLM", (False, False)),
    "qwen2": ("Qwen2ForCausalLM", (True, False)),
    "qwen3": ("Qwen3ForCausalLM", (False, True)),
}

# Their windows are off unless a switch is on; in any other family a stated window counts.
_SWITCHED_WINDOWS = ("qwen2", "qwen3")

LARGEST = 2**31 - 1  # size: what an index of 32 bits counts to
_FLOAT = 1e38  # bfloat16 and float32 end a little above


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
            raise ValueError(
                f"{self.N} query heads (num_attention_heads) do not divide into {self.K} of keys"
                " and values (num_key_value_heads)"
            )
        if self.H % 2:
            raise ValueError(
                f"head_dim is {self.H}, expected an even number, for rotary embeddings"
            )
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
    def plain(cls, vocab: int, **sizes: Any) -> "Spec":
        """Returns a Llama for random weights: its head is the embedding, nothing is stretched.

        Args:
            vocab: number of tokens.
            sizes: L, D, N, K, H, F, eps, theta.
        """
        return cls(
            V=vocab,
            vocab=vocab,
            rope_scaling=None,
            qkv_bias=False,
            qk_norm=False,
            tied=True,
            family="llama",
            **sizes,
        )

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> "Spec":
        """Returns the sizes of a Hugging Face `config.json`, of transformers 4 or 5 style.

        Raises:
            ValueError: a feature that this decoder does not have, or a missing key, by name.
        """
        family = _family(hf)
        _refuse_what_we_lack(hf, family)
        theta, scaling = _rope(hf)
        qkv_bias, qk_norm = FAMILIES[family][1]
        width, heads = _size(hf, "hidden_size"), _size(hf, "num_attention_heads")
        vocab = _size(hf, "vocab_size")
        return cls(
            L=_size(hf, "num_hidden_layers"),
            D=width,
            N=heads,
            K=_size(hf, "num_key_value_heads", heads),
            H=_head_dim(hf, family, width, heads),
            F=_size(hf, "intermediate_size"),
            V=vocab,
            vocab=vocab,
            eps=_positive(hf, "rms_norm_eps"),
            theta=theta,
            rope_scaling=scaling,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            tied=_flag(hf, "tie_word_embeddings", False),
            family=family,
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns the `config.json` fields of these sizes, for transformers 4 and 5 alike."""
        rope: dict[str, Any] = {"rope_type": "default"}
        if self.rope_scaling is not None:
            s = self.rope_scaling
            rope = {
                "rope_type": "llama3",
                "factor": s.factor,
                "low_freq_factor": s.low,
                "high_freq_factor": s.high,
                "original_max_position_embeddings": s.original,
            }
        hf: dict[str, Any] = {
            "architectures": [FAMILIES[self.family][0]],
            "model_type": self.family,
            "num_hidden_layers": self.L,
            "hidden_size": self.D,
            "num_attention_heads": self.N,
            "num_key_value_heads": self.K,
            "head_dim": self.H,
            "intermediate_size": self.F,
            "vocab_size": self.vocab,
            "rms_norm_eps": self.eps,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "use_cache": True,
            "rope_theta": self.theta,
            "rope_scaling": None if self.rope_scaling is None else rope,
            "rope_parameters": {"rope_theta": self.theta, **rope},
        }
        if self.family == "llama":
            hf |= {"attention_bias": False, "mlp_bias": False}
        if self.family == "qwen3":
            hf |= {"attention_bias": False}
        if self.family != "llama":
            hf |= {"use_sliding_window": False, "sliding_window": None}
        return hf


def agreed(found: Mapping[str, Any]) -> Any:
    """Returns the value that several keys state, None where none does.

    Raises:
        ValueError: two of them state different ones.
    """
    stated = {key: value for key, value in found.items() if value is not None}
    for (key, value), (other, another) in itertools.pairwise(stated.items()):
        if value != another:
            raise ValueError(
                f"{key} is {value!r:.80} and {other} is {another!r:.80}, expected one of the two, "
                f"or the same"
            )
    return next(iter(stated.values()), None)


def _need(hf: Mapping[str, Any], key: str) -> Any:
    if hf.get(key) is None:
        raise ValueError(f"key {key!r} is missing")
    return hf[key]


def _size(hf: Mapping[str, Any], key: str, default: int | None = None, *, least: int = 1) -> int:
    """Returns a count, `default` where there is none; true and 2.0 are none."""
    value = _need(hf, key) if default is None or hf.get(key) is not None else default
    if type(value) is not int or not least <= value <= LARGEST:
        raise ValueError(f"{key} is {value!r:.80}, expected a whole number of {least} to {LARGEST}")
    return value


def _positive(hf: Mapping[str, Any], key: str) -> float:
    value = _need(hf, key)
    if type(value) not in (int, float) or not 0 < value < _FLOAT:
        raise ValueError(f"{key} is {value!r:.80}, expected a number above 0")
    return float(value)


def _flag(hf: Mapping[str, Any], key: str, default: bool) -> bool:
    value = default if hf.get(key) is None else hf[key]
    if type(value) is not bool:
        raise ValueError(f"{key} is {value!r:.80}, expected true or false")
    return value


def _table(hf: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = {} if hf.get(key) is None else hf[key]
    if not isinstance(value, Mapping):
        raise ValueError(f"{key} is {value!r:.80}, expected a table of keys and values")
    return value


def _names(hf: Mapping[str, Any], key: str) -> list[str]:
    value = [] if hf.get(key) is None else hf[key]
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{key} is {value!r:.80}, expected a list of names")
    return [*value]


def _head_dim(hf: Mapping[str, Any], family: str, width: int, heads: int) -> int:
    if hf.get("head_dim") is not None:
        return _size(hf, "head_dim")
    if family == "qwen3":  # its default is not D / N
        raise ValueError("key 'head_dim' is missing, a qwen3 model must state it")
    if width % heads:
        raise ValueError(
            f"hidden_size {width} does not divide into num_attention_heads {heads}, and no "
            f"head_dim is stated"
        )
    return width // heads


def _family(hf: Mapping[str, Any]) -> str:
    """Returns the family, from `model_type` and, where stated, `architectures`."""
    family, architectures = hf.get("model_type"), _names(hf, "architectures")
    known = [name for name, _ in FAMILIES.values()]
    if not isinstance(family, str) or family not in FAMILIES:
        found = architectures or family
        raise ValueError(f"unsupported architecture {found!r:.80}, expected one of {known}")
    if any(name != FAMILIES[family][0] for name in architectures):
        raise ValueError(f"unsupported architecture {architectures}, expected one of {known}")
    return family


def _refuse_what_we_lack(hf: Mapping[str, Any], family: str) -> None:
    """Raises ValueError, by name, for a feature that would change the output unseen."""
    if quantised := _table(hf, "quantization_config"):
        method = quantised.get("quant_method", "unknown")
        raise ValueError(
            f"quantised weights ({method!s:.40}) are not supported, expected plain floats"
        )
    activations = {key: hf.get(key) for key in ("hidden_act", "hidden_activation")}
    for key, name in activations.items():
        if name not in ("silu", "swish", None):
            raise ValueError(f"{key} {name!r:.80} is not supported, expected 'silu'")
    for key in ("attention_bias", "mlp_bias"):
        if _flag(hf, key, False):
            raise ValueError(f"{key} true is not supported for {family}, expected false")
    if kinds := _names(hf, "layer_types"):
        sliding = any(kind != "full_attention" for kind in kinds)
    else:
        switched = _flag(hf, "use_sliding_window", family not in _SWITCHED_WINDOWS)
        first = _size(hf, "max_window_layers", 0, least=0)  # those before it see everything
        window = _size(hf, "sliding_window", 0, least=0)
        sliding = switched and window and first < _size(hf, "num_hidden_layers")
    if sliding:
        raise ValueError(f"a sliding window of {hf.get('sliding_window')} tokens is not supported")


def _rope(hf: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Returns the rotary base and its scaling, of either style of `config.json`.

    A file may have both styles, for transformers 4 and 5: what both state must be the same, since
    one of the two versions would not read what we do.
    """
    tables = {key: _table(hf, key) for key in ("rope_parameters", "rope_scaling")}
    places = {"": hf} | {f"{key}.": table for key, table in tables.items()}
    scalings = {key: _scaling(table) for key, table in tables.items() if table}
    if len(scalings) == 2 and scalings["rope_parameters"] != scalings["rope_scaling"]:
        found = " and ".join(f"{key} is {dict(table)!r:.200}" for key, table in tables.items())
        raise ValueError(f"{found}, expected one of the two, or the same")
    if (theta := _stated(places, "rope_theta")) is None:
        raise ValueError("key 'rope_theta' is missing")
    if _stated(places, "partial_rotary_factor") not in (None, 1.0):
        raise ValueError("partial_rotary_factor is not supported, expected 1")
    return theta, next(iter(scalings.values()), None)


def _stated(places: Mapping[str, Mapping[str, Any]], key: str) -> float | None:
    """Returns the number that all tables agree on; a table is known by the prefix of its keys."""
    stated = {
        place + key: table[key] for place, table in places.items() if table.get(key) is not None
    }
    return agreed({name: _positive(stated, name) for name in stated})


def _scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    """Returns what a table says of the rotary frequencies beside their base."""
    kind = agreed({key: rope.get(key) for key in ("rope_type", "type")})
    if kind in (None, "default"):
        if rope.get("factor") not in (None, 1):
            raise ValueError(
                f"a rope factor {rope['factor']!r:.40} without a rope type, expected 'llama3'"
            )
        return None
    if kind != "llama3":
        raise ValueError(f"rope type {kind!r:.40} is not supported, expected 'default' or 'llama3'")
    scaling = RopeScaling(
        factor=_positive(rope, "factor"),
        low=_positive(rope, "low_freq_factor"),
        high=_positive(rope, "high_freq_factor"),
        original=_size(rope, "original_max_position_embeddings"),
    )
    if scaling.low >= scaling.high:
        raise ValueError(
            f"low_freq_factor is {scaling.low}, expected it below high_freq_factor {scaling.high}"
        )
    return scaling
