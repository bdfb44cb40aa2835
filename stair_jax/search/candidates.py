"""Whole responses sampled side by side and judged: what Self-Rewarding learns from.

Source: Yuan et al. 2024 (arXiv 2401.10020), section 2.2: several candidates a prompt, the best
against the worst, nothing where they tie.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable

from stair_jax.engine.request import EngineLike, Prefix, Request, Sampling
from stair_jax.records import Candidate, Prompt
from stair_jax.rewards.combine import Reward
from stair_jax.rewards.judges import Judge
from stair_jax.search.growth import CodecLike


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """How the candidates of a prompt are drawn."""

    count: int
    sampling: Sampling
    max_tokens: int  # new ones, of a candidate
    key: tuple[int | str, ...]  # of the random draws, besides the candidate's id


def sample(
    prompts: Iterable[Prompt],
    draw: Draw,
    *,
    engine: EngineLike,
    codec: CodecLike,
    judge: Judge,
    reward: Reward,
    have: Collection[str],
    on_candidate: Callable[[Candidate], None],
) -> dict[str, str]:
    """Samples and judges candidates for every prompt.

    Args:
      prompts: with ids of their own.
      draw: how many, and how.
      engine: that decodes with the model.
      codec: of the model.
      judge: of whole responses that do not reason.
      reward: of what the judge says.
      have: ids of the candidates that are there already.
      on_candidate: takes each as soon as it is judged, in the order of the verdicts.

    Returns:
      Why prompts were passed over, by id.
    """
    flow, left = _Flow(engine, codec, draw, have), collections.deque(prompts)
    waiting: dict[str, tuple[Prompt, Candidate]] = {}  # for the verdict
    while left or flow.roots or waiting:
        while left and engine.hungry:
            flow.ask(left.popleft())
        for prompt, found in flow.answers():
            waiting[found.id] = prompt, found
            judge.submit(found.id, prompt, found.text)
        for name, score in judge.collect():
            prompt, found = waiting.pop(str(name))
            if score is not None and found.ended:
                value = reward(score.safety, score.helpfulness, prompt.type)
                found = dataclasses.replace(found, reward=float(value))
            on_candidate(found)
    return flow.passed_over


class _Flow:
    """The engine's side: prompts in, responses out, every sequence given back."""

    def __init__(self, engine: EngineLike, codec: CodecLike, draw: Draw, have: Collection[str]):
        self._engine, self._codec, self._draw, self._have = engine, codec, draw, have
        self.roots: dict[str, Prefix] = {}  # of the prompts that are being answered
        self._open: dict[str, Prompt] = {}  # by candidate
        self.passed_over: dict[str, str] = {}

    def ask(self, prompt: Prompt) -> None:
        """Submits what is missing of a prompt's candidates."""
        missing = [i for i in range(self._draw.count) if id_of(prompt, i) not in self._have]
        ids = self._codec.prompt_ids(prompt.question)
        try:
            root = self._engine.root(ids)
        except ValueError as error:
            self.passed_over[prompt.id] = str(error)
            return
        for number in missing:
            name = id_of(prompt, number)
            self._open[name] = prompt
            self._engine.submit(
                Request(
                    id=name, prefix=root, key=(*self._draw.key, prompt.id, number),
                    stop="end", sampling=self._draw.sampling, max_tokens=self._draw.max_tokens,
                    group=prompt.id, shared=len(ids),
                )
            )  # fmt: skip
        self.roots[prompt.id] = root
        self._close(prompt)

    def answers(self) -> list[tuple[Prompt, Candidate]]:
        """Lets the engine work, and returns what came of it."""
        if not self._engine.idle:
            self._engine.step()
        found = []
        for result in self._engine.collect():
            self._engine.release(result.prefix)
            prompt = self._open.pop(str(result.id))
            self._close(prompt)
            found.append((prompt, _candidate(str(result.id), prompt, result.ids, self._codec)))
        return found

    def _close(self, prompt: Prompt) -> None:
        """Gives the prompt's sequence back once nothing continues it any more."""
        if prompt.id not in {asked.id for asked in self._open.values()}:
            self._engine.release(self.roots.pop(prompt.id))


def id_of(prompt: Prompt, number: int) -> str:
    """Returns the id of a prompt's candidate."""
    return f"{prompt.id}/{number}"


def _candidate(name: str, prompt: Prompt, ids: tuple[int, ...], codec: CodecLike) -> Candidate:
    """Returns a candidate that waits for its reward; its text is without the end of the turn."""
    ended = bool(ids) and ids[-1] in codec.end_stop
    return Candidate(
        id=name, prompt=prompt.id, question=prompt.question, type=prompt.type, ids=ids,
        text=codec.decode(ids[:-1] if ended else ids), reward=None, ended=ended,
    )  # fmt: skip


def best_against_worst(candidates: Iterable[Candidate]) -> list[tuple[Candidate, Candidate]]:
    """Returns (best, worst) of every prompt whose candidates do not all tie, by prompt id.

    Candidates without a reward take no part. Among equals the first by id is taken.
    """
    rewarded = sorted(
        (c for c in candidates if c.reward is not None), key=lambda c: (c.prompt, c.id)
    )
    pairs = []
    for _, group in itertools.groupby(rewarded, key=lambda c: c.prompt):
        siblings = list(group)
        best = max(siblings, key=_reward)
        worst = min(siblings, key=_reward)
        if _reward(best) > _reward(worst):
            pairs.append((best, worst))
    return pairs


def _reward(candidate: Candidate) -> float:
    assert candidate.reward is not None
    return candidate.reward
