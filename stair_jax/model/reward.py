"""Reward models: a decoder with one number a position in the place of the vocabulary.

The tree is the decoder's without an output head, and "score" [D] float32 beside it:
{"embed", "layers", "norm", "score"}. `Decoder` ignores the leaf that it does not know.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stair_jax.model import lora, transformer
from stair_jax.model.spec import Spec
from stair_jax.ops import products

POSITIONS = ("eos", "step_end")
LOSSES = ("bt", "bce", "mse", "implicit")
_BODY = ("embed", "layers", "norm")


def scalar(spec: Spec) -> Spec:
    """Returns the sizes of a reward model on this decoder; "tied", so that no head is declared."""
    return dataclasses.replace(spec, tied=True)


def deepened(params: Any, spec: Spec, key: jax.Array) -> Any:
    """Returns a policy with layers on top that change nothing yet: they add 0.

    What a token should have been is known in a decoder's last layers only, and at the position
    before it; layers on top of those can compare the two. Source of the growth by blocks whose
    output projections are 0: Wu et al. 2024 (LLaMA Pro, arXiv 2401.02415).

    Args:
      params: of the policy, with fewer layers than `spec`.
      spec: sizes of the result.
      key: of the new layers; consumed. May be jitted.
    """
    ours = params["layers"]
    more = spec.L - len(jax.tree.leaves(ours)[0])
    fresh = transformer.init(dataclasses.replace(spec, L=more), key)["layers"]
    fresh |= {name: jnp.zeros_like(fresh[name]) for name in ("wo", "w_down")}
    stacked = jax.tree.map(lambda a, b: jnp.concatenate([a, b.astype(a.dtype)]), ours, fresh)
    return params | {"layers": stacked}


def body(params: Any) -> Any:
    """Returns what a reward model shares with a policy of these weights: all but the head."""
    return {name: params[name] for name in _BODY}


def from_policy(params: Any, key: jax.Array) -> Any:
    """Returns a reward model on the weights of a policy, which are shared, not copied.

    The score head is normal with standard deviation 1 / (D + 1), OpenRLHF's start and near that of
    Stiennon et al. 2020, appendix B.1: scores begin near 0, so the first pairs cost about log 2.

    Args:
      params: of the policy; its output head is left out.
      key: of the score head; consumed.
    """
    (D,) = params["norm"].shape
    return body(params) | {"score": jax.random.normal(key, (D,), jnp.float32) / (D + 1)}


def init(spec: Spec, key: jax.Array) -> Any:
    """Returns random float32 parameters of a reward model; `key` is consumed. May be jitted."""
    body, head = jax.random.split(key)
    return from_policy(transformer.init(scalar(spec), body), head)


def logical_axes(spec: Spec) -> Any:
    """Returns the tree of `init` with a tuple of logical axis names for each parameter."""
    return transformer.logical_axes(scalar(spec)) | {"score": (None,)}


def adapted(params: Any, factors: lora.Factors) -> Any:
    """Returns what is trained of a reward model under adapters: these, and the score head.

    A head that stayed at its random start would say nothing. Of new tokens' rows those of the
    embedding are kept, the output head's are left out with it.
    """
    trained = {"layers": factors["layers"], "score": params["score"]}
    if lora.ROWS in factors:
        trained[lora.ROWS] = {name: x for name, x in factors[lora.ROWS].items() if name in params}
    return trained


def merge(base: Any, trained: Any, scale: float, new_rows: lora.Rows = ()) -> Any:
    """Returns the reward model that `trained`, of `adapted`, makes of the weights `base`.

    `base` may be those of a policy, its output head is left out; the others are `lora.merge`'s.
    """
    return lora.merge(body(base), trained, scale, new_rows) | {"score": trained["score"]}


def scores(params: Any, hidden: Float[Array, "*B D"]) -> Float[Array, "*B"]:
    """Returns the raw score of each hidden state, float32: a product with the head, no bias.

    Float32 states are multiplied as such on a GPU too: TensorFloat-32 would round them.
    """
    dims = (((hidden.ndim - 1,), (0,)), ((), ()))
    return products.dot_general(
        hidden, params["score"], dims, jnp.float32, jax.lax.Precision.HIGHEST
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Readout:
    """Where a score is read and how it becomes a number; stored with the checkpoint."""

    position: str  # "eos": at an end of sequence put behind the last step; or at each "step_end"
    loss: str  # that trained the scores: one of LOSSES
    low: float  # the least reward, from which the targets were scaled
    high: float  # the greatest

    def __post_init__(self):
        for name, known in (("position", POSITIONS), ("loss", LOSSES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"readout {name} {getattr(self, name)!r} is unknown, expected one of {known}"
                )
        if not self.low < self.high:
            raise ValueError(f"readout: low={self.low} is not below high={self.high}")

    def unit(self, raw: Any) -> Any:
        """Returns raw scores, numbers or NumPy arrays of them, between 0 and 1.

        A logistic score is a probability: that the node is good (bce), or that it is better than
        one of score 0 (bt, implicit). A score of mse is 2 q - 1 of the scaled value q.
        """
        if self.loss == "mse":
            return np.clip((raw + 1) / 2, 0, 1)
        return (1 + np.tanh(raw / 2)) / 2  # the sigmoid, which overflows nowhere

    def log_units(self, raw: float) -> tuple[float, float]:
        """Returns the logs of u = `unit(raw)` and of 1 - u: a logistic u rounds to 0 and to 1."""
        if self.loss == "mse":
            unit = float(self.unit(raw))
            return _log(unit), _log(1 - unit)
        return -float(np.logaddexp(0, -raw)), -float(np.logaddexp(0, raw))

    def value(self, raw: Any) -> Any:
        """Returns raw scores on the scale of the rewards, from `low` to `high`."""
        return self.low + (self.high - self.low) * self.unit(raw)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON knows them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Readout":
        """Returns what `to_json` was called on.

        Raises:
          TypeError: for a field too few or too many.
        """
        return cls(**found)


def _log(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf
