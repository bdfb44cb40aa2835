"""Log-probabilities of the tokens of rows under the model."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from stair_jax import ops
from stair_jax.config.schema import TrainConfig
from stair_jax.model import heads, lora
from stair_jax.model.layout import Layout
from stair_jax.model.spec import Spec
from stair_jax.model.transformer import Decoder


@struct.dataclass
class Scores:
    """What the model says of the tokens of rows."""

    logp: Any  # [B, T] float32 nats, given the tokens before it; 0 where it was not wanted
    hit: Any  # [B, T] bool, no token was likelier; False where it was not wanted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorer:
    """The model as the losses see it: tokens in, their log-probabilities out. Hashable."""

    spec: Spec
    compute_dtype: str
    remat: str
    head_chunk: int  # positions whose logits a device holds at once
    lora_scale: float  # of the adapters, where there are any
    new_rows: lora.Rows = ()  # tokens whose rows are trained beside them

    @classmethod
    def of(cls, spec: Spec, config: TrainConfig, new_rows: lora.Rows = ()) -> "Scorer":
        """Takes precision, remat, chunk and the scale of adapters from the configuration."""
        return cls(
            spec=spec,
            compute_dtype=config.compute_dtype,
            remat=config.remat,
            head_chunk=config.head_chunk,
            lora_scale=lora.scale_of(config),
            new_rows=new_rows if config.lora_rank else (),
        )

    def __call__(
        self,
        params: Any,
        tokens: Int[Array, "B T"],
        wanted: Bool[Array, "B T"],
        *,
        layout: Layout | None = None,
        base: Any = None,
    ) -> Scores:
        """Scores every wanted token given those before it; the first of a sequence counts as none.

        Rows are padded on the right: causality alone keeps padding out of real positions.

        Args:
          params: the model's, or where `base` is given the adapters on it.
          tokens: rows of one sequence each, or as `layout` says.
          wanted: which tokens to score; only these go through the head.
          layout: where the tokens of rows with more than one sequence stand.
          base: the frozen weights under the adapters.
        """
        spec = self.spec
        weights, hidden_BTD = self.hidden(params, tokens, layout=layout, base=base)
        B, T = tokens.shape
        if layout is None:  # shifting numbers is cheaper than shifting hidden states
            target_BT, wanted_BT = (jnp.roll(x, -1, axis=1) for x in (tokens, wanted))
            wanted_BT = wanted_BT.at[:, -1].set(False)
        else:
            parent_BT = layout.parent
            hidden_BTD = jnp.take_along_axis(hidden_BTD, parent_BT[..., None], axis=1)
            target_BT, wanted_BT = tokens, wanted & (parent_BT != jnp.arange(T)[None])
        scores = ops.linear_logp(
            hidden_BTD.reshape(B * T, spec.D),
            heads.matrix(weights, spec),
            target_BT.reshape(-1),
            wanted_BT.reshape(-1),
            vocab=spec.vocab,
            chunk=self.head_chunk,
        )
        back = 0 if layout else 1
        return Scores(*(jnp.roll(x_X.reshape(B, T), back, axis=1) for x_X in scores))

    def hidden(
        self, params: Any, tokens: Int[Array, "B T"], *, layout: Layout | None, base: Any
    ) -> tuple[Any, Float[Array, "B T D"]]:
        """Returns the weights that the head is read from, and the last hidden states."""
        variables = weights = {"params": params}
        if base is not None:
            weights = {"params": lora.with_rows(base, params, self.new_rows)}
            variables = weights | {"lora": {"layers": params["layers"]}}
        decoder = Decoder(
            self.spec, jnp.dtype(self.compute_dtype), self.remat, lora_scale=self.lora_scale
        )
        return weights["params"], decoder.apply(variables, tokens, layout=layout)[0]
