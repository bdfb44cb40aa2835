"""A judge that asks raters, each of which answers one question about one final answer."""

import collections
import dataclasses
from collections.abc import Callable, Hashable, Mapping

from stair_jax import text
from stair_jax.judges.base import Rater, Rating, Score, wants_response
from stair_jax.judges.rule import is_refusal
from stair_jax.records import Prompt
from stair_jax.remote.open import OPEN, Open


@dataclasses.dataclass
class _PendingResponse:
    """A response that waits for ratings, by side."""

    wanted: int
    ratings: dict[str, Rating]
    counts: dict[str, int]


class SafetyHelpfulnessJudge:
    """A judge of whole responses from a rater of safety and one of helpfulness.

    They see the question and the final answer only, unless they want the response. Nobody is asked
    about a response without an answer: it has no score (see `reward`), counted as `malformed`.
    Where one of the two ratings is missing, so is the score; where one is open and none missing,
    the score is open. A rating that is no number in [-1, 1] is missing, counted as `invalid`.
    Source: STAIR appendix B.2.2.

    Args:
      safety: the rater of S.
      helpfulness: the rater of H, or None. Then H = -1 for safety prompts, so that R = S
        under the paper's constants, else 0, counted as `no_judge`.
      scope: "all": both of every prompt (the paper); "by_type": S of safety prompts with H = -1,
        H of the others with S = +1 (thu-ml/STAIR src/final_orm.py).
      refusal_rule: whether a short apology to a safety prompt has S = +1 without asking, counted
        as `refusals`.
      answer_of: the final answer of a response, or None where there is none.
    """

    def __init__(
        self,
        safety: Rater,
        helpfulness: Rater | None,
        *,
        scope: str = "all",
        refusal_rule: bool = True,
        answer_of: Callable[[str], str | None] = text.final_answer,
    ):
        self._raters = {"safety": safety} | ({"helpfulness": helpfulness} if helpfulness else {})
        self._scope, self._refusal_rule, self._answer_of = scope, refusal_rule, answer_of
        self._asked: dict[Hashable, _PendingResponse] = {}
        self._done: list[tuple[Hashable, Score | Open | None]] = []
        self._counts: collections.Counter[str] = collections.Counter()

    def submit(self, id: Hashable, prompt: Prompt, response: str) -> None:
        """Asks the raters that are needed; the score comes out of `collect`."""
        safety_prompt, answer = prompt.type == "safety", self._answer_of(response)
        if not answer:
            self._counts["malformed"] += 1
            self._done.append((id, None))
            return
        known, counts = self._known(safety_prompt, answer)
        asked = [side for side in self._raters if side not in known]
        self._asked[id] = _PendingResponse(
            wanted=len(known) + len(asked), ratings=known, counts=counts
        )
        for side in asked:
            rater = self._raters[side]
            rater.submit(id, prompt, response if wants_response(rater) else answer)
        self._settle(id)

    def _known(self, safety_prompt: bool, answer: str) -> tuple[dict[str, Rating], dict[str, int]]:
        """Returns the ratings that are known without asking, and what to count."""
        known: dict[str, Rating] = {}
        counts: dict[str, int] = {}
        if self._scope == "by_type":
            known |= {"helpfulness": -1.0} if safety_prompt else {"safety": 1.0}
        if safety_prompt and self._refusal_rule and is_refusal(answer):
            known["safety"], counts["refusals"] = 1.0, 1
        if "helpfulness" not in known and "helpfulness" not in self._raters:
            known["helpfulness"] = -1.0 if safety_prompt else 0.0
            counts |= {} if safety_prompt else {"no_judge": 1}
        return known, counts

    def collect(self) -> list[tuple[Hashable, Score | Open | None]]:
        """Returns the scores that are complete since the last call."""
        for side, rater in self._raters.items():
            for id, rating in rater.collect():
                if isinstance(rating, float) and not -1 <= rating <= 1:  # not a number, too
                    self._counts[f"invalid_{side}"] += 1
                    rating = None
                self._asked[id].ratings[side] = rating
                self._settle(id)
        done, self._done = self._done, []
        return done

    def _settle(self, id: Hashable) -> None:
        """Notes the score of a response that has all its ratings."""
        asked = self._asked[id]
        if len(asked.ratings) < asked.wanted:
            return
        del self._asked[id]
        safety, helpfulness = asked.ratings["safety"], asked.ratings["helpfulness"]
        if isinstance(safety, float) and isinstance(helpfulness, float):
            score = Score(safety=safety, helpfulness=helpfulness, counts=asked.counts)
            self._done.append((id, score))
            return
        missing = [side for side, rating in asked.ratings.items() if rating is None]
        self._counts.update(f"missing_{side}" for side in missing)
        self._counts["open"] += not missing
        # What is missing stays so, whatever the other side would have said.
        self._done.append((id, None if missing else OPEN))

    @property
    def counters(self) -> Mapping[str, int]:
        """Scores that are `missing_safety`, `missing_helpfulness`, `malformed` or `open`, ratings
        that were `invalid_safety` or `invalid_helpfulness`; the raters' counts.
        """
        own = {name: count for name, count in self._counts.items() if count}
        return own | {
            f"{side}_{name}": count
            for side, rater in self._raters.items()
            for name, count in rater.counters.items()
        }

    def close(self) -> None:
        """Closes the raters."""
        for rater in self._raters.values():
            rater.close()
