"""Whole responses sampled side by side and judged, for Self-Rewarding and for reward models.

Source of the former: Yuan et al. 2024 (arXiv 2401.10020), section 2.2: several candidates a prompt,
the best against the worst, nothing where they tie.
"""

import collections
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from stair_jax import text
from stair_jax.engine.request import EngineLike, Prefix, Request, Sampling
from stair_jax.judges.base import Judge
from stair_jax.records import Candidate, Node, Prompt, Tree
from stair_jax.remote.open import Open
from stair_jax.search.driver import PAUSE_S, Leftovers
from stair_jax.search.growth import SearchCodec
from stair_jax.search.reward import Reward


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """How the candidates of a prompt are drawn."""

    count: int
    sampling: Sampling
    max_tokens: int  # new ones, of a candidate
    key: tuple[int | str, ...]  # of the random draws, besides the candidate's id
    direct: bool  # answers without reasoning, whose text is without the end of the turn


def sample(
    prompts: Iterable[Prompt],
    draw: Draw,
    *,
    engine: EngineLike,
    codec: SearchCodec,
    judge: Judge,
    reward: Reward,
    have: Collection[str],
    on_candidate: Callable[[Candidate], None],
    given: Mapping[str, Sequence[int]] = {},
) -> Leftovers:
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
      given: ids of a response that is there already, by prompt id; one more candidate of it.

    Returns:
      Prompts passed over, and ids of the candidates without a verdict.
    """
    flow, left = _CandidateRequests(engine, codec, draw, have, given), collections.deque(prompts)
    waiting: dict[str, tuple[Prompt, Candidate]] = {}  # for the verdict
    left_open: list[str] = []
    while left or flow.roots or waiting:
        while left and engine.hungry:
            flow.ask(left.popleft())
        for prompt, found in flow.answers():
            waiting[found.id] = prompt, found
            judge.submit(found.id, prompt, prompt.prefill + found.text)
        if waiting and engine.idle:  # all there is to do is to wait for a judge
            time.sleep(PAUSE_S)
        for name, score in judge.collect():
            prompt, found = waiting.pop(str(name))
            if isinstance(score, Open):
                left_open.append(found.id)
                continue
            if score is not None and found.ended:
                value = reward(score.safety, score.helpfulness, prompt.type)
                if math.isfinite(value):
                    found = dataclasses.replace(found, reward=float(value))
            on_candidate(found)
    return Leftovers(flow.passed_over, tuple(left_open))


class _CandidateRequests:
    """The engine's side: prompts in, responses out, every sequence given back."""

    def __init__(
        self,
        engine: EngineLike,
        codec: SearchCodec,
        draw: Draw,
        have: Collection[str],
        given: Mapping[str, Sequence[int]],
    ):
        self._engine, self._codec, self._draw, self._have = engine, codec, draw, have
        self._given = given
        self._at_hand: list[tuple[Prompt, Candidate]] = []
        self.roots: dict[str, Prefix] = {}  # of the prompts that are being answered
        self._open: dict[str, Prompt] = {}  # by candidate
        self.passed_over: dict[str, str] = {}

    def ask(self, prompt: Prompt) -> None:
        """Submits what is missing of a prompt's candidates."""
        missing = [i for i in range(self._draw.count) if id_of(prompt, i) not in self._have]
        ids = text.opening_ids(self._codec, prompt)
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
                    id=name,
                    prefix=root,
                    key=(*self._draw.key, prompt.id, number),
                    stop="end",
                    sampling=self._draw.sampling,
                    max_tokens=self._draw.max_tokens,
                    group=prompt.id,
                    shared=len(ids),
                )
            )
        self.roots[prompt.id] = root
        self._close(prompt)
        name = f"{prompt.id}/given"
        if prompt.id in self._given and name not in self._have:
            ids = tuple(self._given[prompt.id])
            self._at_hand.append((prompt, self._candidate(name, prompt, ids)))

    def answers(self) -> list[tuple[Prompt, Candidate]]:
        """Lets the engine work, and returns what came of it, and what was given meanwhile."""
        if not self._engine.idle:
            self._engine.step()
        found, self._at_hand = self._at_hand, []
        for result in self._engine.collect():
            self._engine.release(result.prefix)
            prompt = self._open.pop(str(result.id))
            self._close(prompt)
            found.append((prompt, self._candidate(str(result.id), prompt, result.ids)))
        return found

    def _candidate(self, name: str, prompt: Prompt, ids: tuple[int, ...]) -> Candidate:
        """Returns a candidate that waits for its reward."""
        ended = bool(ids) and ids[-1] in self._codec.end_stop
        return Candidate(
            id=name,
            prompt=prompt.id,
            question=prompt.question,
            type=prompt.type,
            ids=ids,
            text=self._codec.decode(ids[:-1] if ended and self._draw.direct else ids),
            reward=None,
            ended=ended,
            before=prompt.before,
            prefill=prompt.prefill,
        )

    def _close(self, prompt: Prompt) -> None:
        """Gives the prompt's sequence back once nothing continues it any more."""
        if prompt.id not in {asked.id for asked in self._open.values()}:
            self._engine.release(self.roots.pop(prompt.id))


def id_of(prompt: Prompt, number: int) -> str:
    """Returns the id of a prompt's candidate."""
    return f"{prompt.id}/{number}"


def best_against_worst(candidates: Iterable[Candidate]) -> list[tuple[Candidate, Candidate]]:
    """Returns (best, worst) of every prompt whose candidates do not all tie, by prompt id.

    Candidates without a reward take no part. Among equals the first by id is taken.
    """
    pairs = []
    for siblings in _rewarded(candidates):
        best = max(siblings, key=_reward)
        worst = min(siblings, key=_reward)
        if _reward(best) > _reward(worst):
            pairs.append((best, worst))
    return pairs


def _rewarded(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """Returns the candidates with a finite reward, those of a prompt together, by its id."""
    known = [c for c in candidates if c.reward is not None and math.isfinite(c.reward)]
    known.sort(key=lambda c: (c.prompt, c.id))
    return [list(group) for _, group in itertools.groupby(known, key=lambda c: c.prompt)]


def _reward(candidate: Candidate) -> float:
    assert candidate.reward is not None
    return candidate.reward


def as_trees(candidates: Iterable[Candidate]) -> list[Tree]:
    """Returns each prompt's rewarded candidates as a tree of one step, whole responses all.

    So they are compared and valued as the responses of a search are.
    """
    return list(map(_tree, _rewarded(candidates)))


def _tree(siblings: list[Candidate]) -> Tree:
    first, total = siblings[0], sum(map(_reward, siblings))
    root = Node(
        parent=-1,
        ids=(),
        text="",
        depth=0,
        visits=len(siblings),
        value_sum=total,
        reward=None,
        terminal=False,
        p=1.0,
        tag="0",
    )
    leaves = (
        Node(
            parent=0,
            ids=c.ids,
            text=c.text,
            depth=1,
            visits=1,
            value_sum=_reward(c),
            reward=c.reward,
            terminal=True,
            p=1.0,
            tag=f"0.{i}",
        )
        for i, c in enumerate(siblings)
    )
    prompt = Prompt(
        id=first.prompt,
        question=first.question,
        type=first.type,
        before=first.before,
        prefill=first.prefill,
    )
    return Tree(prompt=prompt, nodes=(root, *leaves))
