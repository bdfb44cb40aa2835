"""Self-reward: the policy that answers also judges, in the same engine.

What a rating is depends on the prompt, the answer, the rubric and the seed alone: those fix the
draws, so neither company nor order changes it. Content that was rated a moment ago is not asked
about again.
Source: STAIR appendix B.2.2; thu-ml/STAIR src/final_orm.py (sampling, one verdict an answer).
"""

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Hashable, Mapping, Sequence

from stair_jax.config.schema import JudgeConfig
from stair_jax.engine.request import EngineLike, Prefix, Request, Result, Sampling
from stair_jax.judges.base import Rating
from stair_jax.judges.rubrics import Rubric, asked_of
from stair_jax.records import Prompt
from stair_jax.text import PromptCodec

REMEMBERED = 65_536  # ratings kept; one that was forgotten is drawn again, and is the same
# What may stand first in a field: a tokenizer can join it to the template's last characters.
_PROBES = ("a", "7", " a", "\n\na", "(", "é")


@dataclasses.dataclass
class _Question:
    """What is rated: who waits for it, and the verdicts so far."""

    prefix: Prefix
    root: int | None  # index of the root it continues
    waiting: list[Hashable]
    verdicts: list[float | None]


class SelfRater:
    """A `Rater` that asks a model in an engine. Whoever lets the engine work lets it answer.

    The rubric's common tokens are computed once: a sequence for each replica is held until `close`,
    and every request continues one of them. A rating is the mean of those of `config.samples`
    verdicts that can be read; none: missing. So is one whose prompt the context cannot hold.

    Args:
      rubric: the question.
      engine: to ask; a line of a `SharedEngine` where others use it too.
      codec: of the engine's model.
      config: how verdicts are drawn.
      seed: of the draws.
      replicas: of the engine; made while it has nothing to do, each gets a root.
    """

    def __init__(
        self,
        rubric: Rubric,
        *,
        engine: EngineLike,
        codec: PromptCodec,
        config: JudgeConfig,
        seed: int,
        replicas: int = 1,
    ):
        self._rubric, self._engine, self._codec = rubric, engine, codec
        self._config, self._seed = config, seed
        common = _common([self._ids(probe, "a") for probe in _PROBES])
        self._roots = [engine.root(common) for _ in range(replicas)]
        self._busy = [0] * replicas  # requests under way, by root
        self._asked: dict[bytes, _Question] = {}  # by content
        self._known: collections.OrderedDict[bytes, float | None] = collections.OrderedDict()
        self._done: list[tuple[Hashable, Rating]] = []
        self._counts: collections.Counter[str] = collections.Counter()

    def _ids(self, question: str, answer: str) -> list[int]:
        return self._codec.prompt_ids(self._rubric.fill(question, answer))

    @property
    def counters(self) -> Mapping[str, int]:
        """Verdicts `parsed`, `unparsed` and `cut` (by max_tokens or the context); prompts
        `too_long`; answers `repeated`; prompts `unshared`, whose tokens do not begin as the others.
        """
        return self._counts

    def submit(self, id: Hashable, prompt: Prompt, answer: str) -> None:
        """Queues a final answer."""
        asked = asked_of(prompt)
        content = _digest(asked, answer)
        if content in self._asked:
            self._counts["repeated"] += 1
            self._asked[content].waiting.append(id)
        elif content in self._known:
            self._counts["repeated"] += 1
            self._done.append((id, self._known[content]))
        else:
            self._ask(content, id, self._ids(asked, answer))

    def _ask(self, content: bytes, id: Hashable, ids: Sequence[int]) -> None:
        try:
            prefix, root = self._begin(ids)
        except ValueError:  # no room for it
            self._counts["too_long"] += 1
            self._done.append((id, None))
            return
        self._asked[content] = _Question(prefix=prefix, root=root, waiting=[id], verdicts=[])
        c = self._config
        for number in range(c.samples):
            self._engine.submit(
                Request(
                    id=(content, number),
                    prefix=prefix,
                    stop="end",
                    max_tokens=c.max_tokens,
                    key=(self._seed, "judge", self._rubric.side, content.hex(), number),
                    sampling=sampling_of(c),
                    group=root,
                    shared=0 if root is None else len(self._roots[root].ids),
                )
            )

    def _begin(self, ids: Sequence[int]) -> tuple[Prefix, int | None]:
        """Returns a sequence of `ids`, on the root that has least to do where they begin like it.

        Raises:
          ValueError: where the context has no room.
        """
        common = self._roots[0].ids
        if tuple(ids[: len(common)]) != common:
            self._counts["unshared"] += 1
            return self._engine.root(ids), None
        root = self._busy.index(min(self._busy))
        prefix = self._engine.extend(self._roots[root], ids[len(common) :])
        self._busy[root] += 1
        return prefix, root

    def collect(self) -> list[tuple[Hashable, Rating]]:
        """Returns the ratings whose verdicts are all in since the last call."""
        for result in self._engine.collect():
            self._engine.release(result.prefix)
            content, _ = result.id  # pyright: ignore[reportGeneralTypeIssues]
            self._asked[content].verdicts.append(self._verdict(result))
            if len(self._asked[content].verdicts) == self._config.samples:
                self._rate(content)
        done, self._done = self._done, []
        return done

    def _verdict(self, result: Result) -> float | None:
        """Returns what a reply says; one that was cut says nothing, more might have followed."""
        if result.finish != "stop":
            self._counts["cut"] += 1
            return None
        verdict = self._rubric.read(self._codec.decode(result.ids))
        self._counts["unparsed" if verdict is None else "parsed"] += 1
        return verdict

    def _rate(self, content: bytes) -> None:
        """Tells all who wait for it what an answer's verdicts come to."""
        asked = self._asked.pop(content)
        self._finish(asked)
        # Sorted, for the order of arrival must not decide the last bit of the sum.
        said = sorted(verdict for verdict in asked.verdicts if verdict is not None)
        rating = sum(said) / len(said) if said else None
        self._known[content] = rating
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        self._done += [(id, rating) for id in asked.waiting]

    def _finish(self, asked: _Question) -> None:
        self._engine.release(asked.prefix)
        if asked.root is not None:
            self._busy[asked.root] -= 1

    def close(self) -> None:
        """Cancels what is under way and gives all sequences back."""
        for content, asked in self._asked.items():
            for number in range(self._config.samples):
                self._engine.cancel((content, number))
            self._finish(asked)
        for root in self._roots:
            self._engine.release(root)
        self._asked, self._roots = {}, []


def sampling_of(config: JudgeConfig) -> Sampling:
    """Returns how the tokens of a verdict are drawn."""
    return Sampling(temperature=config.temperature, top_p=config.top_p)


def _common(sequences: Sequence[Sequence[int]]) -> list[int]:
    """Returns the longest sequence that all of them begin with."""
    alike = itertools.takewhile(lambda ids: len(set(ids)) == 1, zip(*sequences, strict=False))
    return [ids[0] for ids in alike]


def _digest(question: str, answer: str) -> bytes:
    """Returns a hash of what is rated; where the question ends counts."""
    digest = hashlib.blake2b(question.encode(errors="surrogatepass"), digest_size=16)
    digest.update(hashlib.blake2b(answer.encode(errors="surrogatepass")).digest())
    return digest.digest()
