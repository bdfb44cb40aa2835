"""Judges that know the truth: a world's truth function."""

from collections.abc import Callable

from stair_jax.judges.base import FunctionJudge, FunctionRater, Rating, Score
from stair_jax.records import Prompt
from stair_jax.world import Verdict


class VerifierJudge(FunctionJudge):
    """A judge from a function that knows the truth; it may return None for no verdict."""

    def __init__(self, verify: Callable[[Prompt, str], Verdict | None]):
        def score(prompt: Prompt, response: str) -> Score | None:
            verdict = verify(prompt, response)
            if verdict is None:
                return None
            return Score(safety=float(verdict.safety), helpfulness=float(verdict.helpfulness))

        super().__init__(score)


class VerifierRater(FunctionRater):
    """One side of a verifier's verdict; `verify` is given the final answer alone."""

    def __init__(self, verify: Callable[[Prompt, str], Verdict | None], side: str):
        def rate(prompt: Prompt, answer: str) -> Rating:
            verdict = verify(prompt, answer)
            return None if verdict is None else float(getattr(verdict, side))

        super().__init__(rate)
