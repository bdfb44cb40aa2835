"""How likely the policy finds a step: the prior of PUCB."""

import math
from collections.abc import Sequence

from stair_jax.config.schema import SearchConfig


def prior(logps: Sequence[float], config: SearchConfig) -> float:
    """Returns PUCB's p of a step from its tokens' log-probs; 1 where the score does not use it.

    "arithmetic" is the mean of the probabilities, "geometric" the exponential of the mean
    log-prob, "uniform" one over the number of children. Source: thu-ml/STAIR src/mcts.py.
    """
    if config.score != "pucb":
        return 1.0
    if config.prior == "uniform":
        return 1.0 / config.num_children
    if not logps:  # a step that had no room for a token
        return 0.0
    if config.prior == "geometric":
        return math.exp(math.fsum(logps) / len(logps))
    return math.fsum(map(math.exp, logps)) / len(logps)
