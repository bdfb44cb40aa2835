"""SI-MCTS at test time: a reward model values every step and every answer, nothing is rolled out.

The search is that of the trees (`driver`); its answer is the ended response with the best score.
Source: STAIR 3.3 names the search; this form, guided by the reward model alone, is ours.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from stair_jax.config.schema import SearchConfig
from stair_jax.engine.request import Prefix
from stair_jax.guided.beams import Found
from stair_jax.guided.loop import Guide
from stair_jax.prm.reader import Item, Reading, RewardModelLike, aggregate
from stair_jax.records import Prompt, Tree
from stair_jax.search import driver
from stair_jax.search.mcts import TIE
from stair_jax.search.tree import ROOT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picked(Found):
    """The best response of a tree, and what the tree cost. It has no scores of its steps."""

    ended: bool  # False where none did within the limit, and this is the best beginning
    blind: bool  # True where no response had a score, and this is the first one
    missing: int  # steps whose score was not finite
    score: float | None  # raw, of the reward model; None where it is missing
    tokens: int  # generated
    scored: int  # that the reward model read


def config_of(search: SearchConfig, guide: Guide, iterations: int) -> SearchConfig:
    """Returns how the trees grow.

    Tokens are drawn as in every test-time search. A node that is never visited costs a reading
    only, and may be an answer, so all are visited.
    """
    c = guide.config
    return dataclasses.replace(
        search,
        iterations=iterations,
        value="prm",
        visit_all_nodes=True,
        max_depth=guide.max_depth,
        max_step_tokens=min(search.max_step_tokens, c.max_tokens),
        temperature=c.temperature,
        top_p=c.top_p,
        top_k=c.top_k,
        min_p=0.0,
    )


def find(
    prompts: Sequence[Prompt],
    config: SearchConfig,
    *,
    guide: Guide,
    on_found: Callable[[Prompt, Picked], None],
) -> dict[str, str]:
    """Searches the answers to prompts; returns why prompts were passed over, by prompt id.

    What is found depends on the seed and the prompt alone, not on what else is under way.

    Args:
      prompts: with ids that differ, for they fix the random draws.
      config: of `config_of`, with trees in flight.
      guide: what all prompts share.
      on_found: takes each answer as its tree ends, in no certain order.

    Raises:
      ValueError: as `driver.grow`.
    """
    leftovers = driver.grow(
        prompts,
        engine=guide.engine,
        judge=None,
        codec=guide.codec,
        config=config,
        reward=None,
        seed=guide.seed,
        valuer=Aggregated(guide.model, guide.config.aggregation),
        on_tree=lambda tree: on_found(tree.prompt, pick(tree, guide.limit_of(tree.prompt))),
    )
    return leftovers.passed_over


def pick(tree: Tree, max_tokens: int) -> Picked:
    """Returns the response of the terminal node with the highest score; the first among equals.

    Raw scores are compared: the rewards that the search goes by round where a score is far out.
    Where no response ended within `max_tokens`, the best leaf stands in, cut to them, or where no
    leaf has a score the first node.

    Args:
      tree: with a score of all of its nodes that has one, and more than its root.
      max_tokens: of a response.
    """
    parents = {node.parent for node in tree.nodes}
    ids = [tuple(t for step in tree.path(i) for t in step.ids) for i in range(len(tree.nodes))]
    known = {i: score for i, score in enumerate(tree.scores) if score is not None}
    ended = {
        i: score
        for i, score in known.items()
        if tree.nodes[i].terminal and len(ids[i]) <= max_tokens
    }
    scores = ended or {i: score for i, score in known.items() if i not in parents}
    top = max(scores.values(), default=0.0)
    near = top - TIE * max(1.0, abs(top))
    best = next((i for i, score in scores.items() if score >= near), ROOT + 1)
    return Picked(
        ids=ids[best][:max_tokens],
        ended=bool(ended),
        blind=not scores,
        score=scores.get(best),
        missing=int(tree.counters["not_finite"]),
        tokens=int(tree.counters["tokens"]),
        scored=sum(len(node.ids) for node in tree.nodes),  # each was read once
    )


class Aggregated:
    """A reward model whose score of a step is the aggregation of the scores so far.

    So the search looks for just what the answer is chosen by.
    """

    def __init__(self, model: RewardModelLike, how: str):
        self.readout = model.readout
        self._model, self._how = model, how
        self._raw: dict[int, tuple[float, ...]] = {}  # of the steps so far, by sequence held

    def root(self, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence; ValueError where it leaves no room."""
        prefix = self._model.root(ids)
        self._raw[id(prefix)] = ()
        return prefix

    def read(self, items: Sequence[Item]) -> list[Reading]:
        """Returns the aggregated scores of the steps that follow each sequence."""
        starts, readings = [start for start, _ in items], self._model.read(items)
        return [self._read(*pair) for pair in zip(starts, readings, strict=True)]

    def _read(self, start: Prefix, reading: Reading) -> Reading:
        before = self._raw[id(start)]
        raw = before + reading.raw
        self._raw[id(reading.prefix)] = raw
        ends = range(len(before) + 1, len(raw) + 1)
        scores = (aggregate(raw[:end], self.readout, self._how) for end in ends)
        return Reading(
            reading.prefix, tuple(math.nan if score is None else score for score in scores)
        )

    def release(self, prefix: Prefix) -> None:
        """Gives a sequence back."""
        del self._raw[id(prefix)]
        self._model.release(prefix)
