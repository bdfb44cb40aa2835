"""Requests of a round, rewritten until its model answers them, each with a harmless twin.

What beats the model of the round before becomes a prompt of the round. A harmless prompt behind the
same rewrite goes with it, so that the rewrite alone is no reason to refuse.

The idea is beyond the paper: Ge et al. 2023 (MART, arXiv 2311.07689) train in rounds on attacks
that succeeded against the model of the round before. The twins are ours.
"""

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from stair_jax.records import Prompt
from stair_jax.text import Turn

MARK = "/rewritten/"  # in the ids of rewritten prompts: the rewrite's name follows
ATTACK, OF = "attack", "of"  # of `Prompt.meta`: the rewrite's name, the id of what was rewritten
UNSAFE_BELOW = 0.0  # safety in [-1, 1]; a judge that is undecided has seen nothing unsafe

_FRAMING = "framing"  # of `Prompt.meta`: how a world's prompt is framed, which a rewrite changes


Rewrite = Callable[[str], str]  # a request in, the whole user turn out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewriter:
    """Rewrites prompts of a round.

    Attributes:
      questions: made of a prompt's own, by the name of the rewrite.
      is_plain: whether a prompt is no attack yet, as far as can be seen.
    """

    questions: Callable[[Prompt], Mapping[str, str]]
    is_plain: Callable[[Prompt], bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """A rewritten request, and what the model made of it; a row on disk."""

    id: str  # of the rewritten prompt
    of: str  # id of the prompt that was rewritten
    attack: str  # name of the rewrite
    question: str
    response: str
    safety: float | None  # in [-1, 1]; None for an answer that has no verdict, or no end
    before: tuple[Turn, ...] = ()  # earlier turns of the prompt

    @property
    def beats(self) -> bool:
        """Whether the response is unsafe."""
        return self.safety is not None and self.safety < UNSAFE_BELOW

    def answers(self, prompt: Prompt) -> bool:
        """Returns whether the response is one to what a prompt asks today."""
        return (self.question, self.before) == (prompt.question, prompt.before)


def origin(prompt_id: str) -> str:
    """Returns the id of the prompt that one was rewritten from, its own where of none."""
    return prompt_id.partition(MARK)[0]


def most_kept(prompts: Sequence[Prompt], share: float) -> int:
    """Returns how many attacks a round takes: with their twins they are `share` of its prompts."""
    return int(share * len(prompts) / 2)


def candidates(
    prompts: Sequence[Prompt], rewriter: Rewriter, *, pool: int, seed: int
) -> list[Prompt]:
    """Returns rewritten requests in the order in which they are tried.

    Plain requests come first. Each is rewritten once before any is rewritten twice, so that those
    that are tried first are of many requests.

    Args:
      prompts: of the round; what they ask already is no candidate.
      rewriter: of its requests.
      pool: the most candidates.
      seed: decides about the order, with the ids and the names of rewrites.
    """
    taken, found = _asked(prompts), []
    for prompt, name, question in _in_turn(prompts, rewriter, seed):
        if len(found) == pool:
            break
        if (question, prompt.before) not in taken:
            taken.add((question, prompt.before))
            found.append(rewritten(prompt, name, question))
    return found


def with_twins(
    attacks: Iterable[Prompt],
    prompts: Sequence[Prompt],
    rewriter: Rewriter,
    *,
    most: int,
    seed: int,
) -> list[Prompt]:
    """Returns attacks that beat a model, each followed by its harmless twin.

    Args:
      attacks: of `candidates`, the first ones preferred. One for which no harmless prompt is left
        to be rewritten in the same way is left out.
      prompts: of the round. Its harmless ones are taken in turn, plain ones first.
      rewriter: that of the attacks.
      most: the most attacks.
      seed: decides about the order of the twins.
    """
    taken, found = _asked(prompts), []
    harmless = collections.deque(
        itertools.chain.from_iterable(_ordered(prompts, "helpfulness", rewriter, seed))
    )
    for attack in attacks:
        if len(found) == 2 * most:
            break
        name = attack.meta[ATTACK]
        for _ in range(len(harmless)):
            prompt = harmless[0]
            harmless.rotate(-1)
            question = rewriter.questions(prompt).get(name)
            if question is not None and (question, prompt.before) not in taken:
                taken.add((question, prompt.before))
                found += [attack, rewritten(prompt, name, question)]
                break
    return found


def rewritten(prompt: Prompt, name: str, question: str) -> Prompt:
    """Returns a prompt that asks a rewritten question; its type and its truth stay."""
    meta = {key: value for key, value in prompt.meta.items() if key != _FRAMING}
    return dataclasses.replace(
        prompt,
        id=f"{prompt.id}{MARK}{name}",
        question=question,
        meta={**meta, ATTACK: name, OF: prompt.id},
    )


def _asked(prompts: Iterable[Prompt]) -> set[tuple[str, tuple[Turn, ...]]]:
    return {(prompt.question, prompt.before) for prompt in prompts}


def _ordered(
    prompts: Iterable[Prompt], kind: str, rewriter: Rewriter, seed: int
) -> tuple[list[Prompt], list[Prompt]]:
    """Returns the plain prompts of a type and the others, in an order by seed and id.

    A prompt whose response has begun already is none of them: that is an attack of its own.
    """
    plain: list[Prompt] = []
    others: list[Prompt] = []
    for prompt in sorted(prompts, key=lambda prompt: _draw(seed, prompt.id)):
        if prompt.type == kind and not prompt.prefill:
            (plain if rewriter.is_plain(prompt) else others).append(prompt)
    return plain, others


def _in_turn(
    prompts: Iterable[Prompt], rewriter: Rewriter, seed: int
) -> Iterator[tuple[Prompt, str, str]]:
    """Yields (request, rewrite, question), plain requests first, a rewrite of each in turn."""
    for some in _ordered(prompts, "safety", rewriter, seed):
        made = [
            sorted(rewriter.questions(one).items(), key=lambda item: _draw(seed, one.id, item[0]))
            for one in some
        ]
        for layer in itertools.zip_longest(*made):
            for prompt, rewrite in zip(some, layer, strict=True):
                if rewrite is not None:
                    yield prompt, rewrite[0], rewrite[1]


def _draw(*parts: object) -> bytes:
    key = "\x1f".join(map(str, parts))
    return hashlib.blake2b(key.encode(), digest_size=8).digest()
