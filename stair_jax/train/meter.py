"""Speed and memory of training steps, from what the batch holds and the clock says."""

from collections.abc import Mapping

import numpy as np

from stair_jax.io.batches import padding_share, real_tokens


class Meter:
    """Figures of one step at a time."""

    def __init__(self) -> None:
        self._tokens = 0

    def figures(self, batch: Mapping[str, np.ndarray], *, seconds: float) -> dict[str, float]:
        """Returns tokens a second (padding apart), the share of padding, and tokens so far."""
        tokens = real_tokens(dict(batch))
        self._tokens += tokens
        return {
            "tokens_per_s": tokens / seconds, "padding_share": padding_share(dict(batch)),
            "num_tokens": self._tokens,
        }  # fmt: skip
