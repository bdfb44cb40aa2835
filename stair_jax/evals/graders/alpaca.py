"""AlpacaEval 2: a judge's preference between two answers, and win rates.

The judge names the better answer by one token, "m" for the first and "M" for the second, which is
the model's. Its preference is of the probabilities of both tokens at its first position:
1 + p(M) / (p(m) + p(M)), from 1 (the first answer) to 2 (the second). A token that is not among the
top ones has no probability; where neither is, the preference is missing.

The length-controlled win rate is `length_control.win_rate`. It needs `df_gamed.csv` of the data set
tatsu-lab/alpaca_eval (CC-BY-NC-4.0): answers of gamed baselines, and how difficult each instruction
is. Without it a regression on lengths alone gave 20.7 where 12.38 is published, so there is none.

Source: tatsu-lab/alpaca_eval (Apache-2.0): weighted_alpaca_eval_gpt4_turbo, logprob_parser, metrics
of pairwise win rates.
"""

import math
from collections.abc import Mapping, Sequence

FIRST, SECOND = "m", "M"
DRAW = 1.5


def preference(top_logprobs: Mapping[str, float], switched: bool = False) -> float | None:
    """Returns a preference from 1 (the baseline's answer) to 2 (the model's); None if missing.

    Args:
      top_logprobs: natural log-probabilities of the top tokens at the judge's first position.
      switched: whether the model's answer was shown first.
    """
    first, second = (math.exp(top_logprobs.get(token, -math.inf)) for token in (FIRST, SECOND))
    if not first + second:
        return None
    share = second / (first + second)
    return 2 - share if switched else 1 + share


def win_rate(preferences: Sequence[float | None]) -> float | None:
    """Returns the raw win rate from 0 to 1: the mean of `preference - 1`, without the missing."""
    known = [one for one in preferences if one is not None]
    return math.fsum(one - 1 for one in known) / len(known) if known else None


def discrete_win_rate(preferences: Sequence[float | None]) -> float | None:
    """Returns the share of preferences for the model, draws as half of one, without the missing."""
    known = [one for one in preferences if one is not None]
    wins = sum(one > DRAW for one in known) + sum(one == DRAW for one in known) / 2
    return wins / len(known) if known else None
