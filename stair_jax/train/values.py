"""Scores of positions of rows under a reward model, one with a head or an implicit one."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from stair_jax.config.schema import TrainConfig
from stair_jax.data.batches import ComparisonBatch, ValuedBatch
from stair_jax.model import lora, reward
from stair_jax.model.layout import Layout
from stair_jax.model.spec import Spec
from stair_jax.model.transformer import Decoder
from stair_jax.train.logprobs import Scorer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Values:
    """A reward model as its losses see it: tokens in, scores out. Hashable."""

    spec: Spec  # of `reward.scalar`
    compute_dtype: str
    remat: str
    lora_scale: float  # of the adapters, where there are any
    new_rows: lora.Rows = ()  # tokens whose rows are trained beside them

    @classmethod
    def of(cls, spec: Spec, config: TrainConfig, new_rows: lora.Rows = ()) -> "Values":
        """Takes precision, remat and the scale of adapters from the configuration.

        `spec` may be that of the policy; `head_chunk` is not read, there is no vocabulary head.
        """
        return cls(
            spec=reward.scalar(spec),
            compute_dtype=config.compute_dtype,
            remat=config.remat,
            lora_scale=lora.scale_of(config),
            new_rows=new_rows if config.lora_rank else (),
        )

    def __call__(
        self,
        params: Any,
        tokens: Int[Array, "B T"],
        read: Int[Array, "B R"],
        *,
        layout: Layout | None = None,
        base: Any = None,
    ) -> Float[Array, "B R"]:
        """Returns the raw scores, float32, at R positions of each row.

        Rows are padded on the right: causality alone keeps padding out of real positions. Only
        what is read goes through the score head.

        Args:
          params: the model's, or where `base` is given those of `reward.adapted`.
          tokens: rows of one sequence each, or as `layout` says.
          read: indices in their row.
          layout: where the tokens of rows with more than one sequence stand.
          base: the frozen weights under the adapters, of a policy or a reward model.
        """
        variables = {"params": params}
        if base is not None:
            weights = lora.with_rows(base, params, self.new_rows)
            variables = {"params": weights, "lora": {"layers": params["layers"]}}
        decoder = Decoder(
            self.spec, jnp.dtype(self.compute_dtype), self.remat, lora_scale=self.lora_scale
        )
        hidden_BTD: Any = decoder.apply(variables, tokens, layout=layout)[0]
        hidden_BRD = jnp.take_along_axis(hidden_BTD, read[..., None], axis=1)
        return reward.scores(params, hidden_BRD)

    def of_batch(
        self, params: Any, batch: ComparisonBatch | ValuedBatch, *, base: Any
    ) -> Float[Array, "..."]:
        """Returns the raw scores at all positions that a batch [m, ...] reads."""
        rows = batch.rows
        read = batch.read.reshape(len(rows), -1)
        raw = self(params, rows, read, layout=batch.layout, base=base)
        return raw.reshape(batch.read.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ratios:
    """An implicit reward model: `beta` times how much likelier it finds a response. Hashable.

    Source: Yuan et al. 2024 (arXiv 2412.01981), proposition 3.1; without a reference the score is
    the log-likelihood alone, as in Meng et al. 2024 (SimPO, arXiv 2405.14734) but for the length.
    """

    scorer: Scorer
    beta: float

    def __call__(
        self,
        params: Any,
        tokens: Int[Array, "B T"],
        read: Int[Array, "B R"],
        start: Int[Array, " B"],
        *,
        base: Any,
    ) -> Float[Array, "B R"]:
        """Returns the raw scores, float32, of responses from index `start` on up to R others.

        `base` is the reference, the weights that `params` were before training; None for none.
        """
        every = jnp.ones(tokens.shape, bool)
        logp_BT = self.scorer(params, tokens, every).logp
        if base is not None:
            logp_BT -= self.scorer(base, tokens, every).logp
        sums_BT = jnp.cumsum(logp_BT, axis=1)
        before_B1 = jnp.take_along_axis(sums_BT, jnp.maximum(start - 1, 0)[:, None], axis=1)
        return self.beta * (jnp.take_along_axis(sums_BT, read, axis=1) - before_B1)

    def of_batch(self, params: Any, batch: ValuedBatch, *, base: Any) -> Float[Array, "B R"]:
        """Returns the raw scores at all positions that a batch [m, ...] reads."""
        return self(params, batch.tokens, batch.read, batch.start, base=base)
