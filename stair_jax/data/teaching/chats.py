"""Teachers that are asked many questions at once: the interface, and an endpoint behind it."""

import collections
import dataclasses
import functools
import pathlib
import queue
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from stair_jax.config.schema import JudgeConfig
from stair_jax.records import Prompt
from stair_jax.remote.client import COUNTERS, Counts, EndpointClient, Reply
from stair_jax.remote.naming import TEACHER

_LOOK_S = 0.5  # how often is looked whether the endpoint refuses


@dataclasses.dataclass(frozen=True)
class Question:
    """What a teacher is asked.

    Attributes:
      prompt: that is to be answered.
      text: the whole user turn, instruction and question.
      attempt: from 0; another one must give another draw of the same question.
    """

    prompt: Prompt
    text: str
    attempt: int = 0


@runtime_checkable
class Chat(Protocol):
    """A teacher."""

    def __call__(self, questions: Sequence[Question], /) -> Sequence[Reply]:
        """Returns a reply to each question, in their order.

        A reply is None where the teacher has none to give, OPEN where it could not be reached.
        """
        ...


class EndpointChat:
    """A `Chat` with a model behind an OpenAI-compatible endpoint; replies are kept on disk.

    Attempt k is sample k of the question, so it has a place of its own among the kept replies and
    is paid for once. Further attempts only differ where `config.temperature` is above 0.

    Args:
      config: of the endpoint.
      folder: of the replies that were paid for.
      system: a system turn before every question; "": none.
      pause_s: as `EndpointClient`.

    Raises:
      ValueError: where address or model are missing.
    """

    def __init__(
        self, config: JudgeConfig, folder: pathlib.Path, *, system: str = "", pause_s: float = 1.0
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self._client = EndpointClient(
            config, folder, system=system, pause_s=pause_s, naming=TEACHER
        )
        self.counts: Counts = collections.Counter(dict.fromkeys(COUNTERS, 0))

    def __call__(self, questions: Sequence[Question], /) -> list[Reply]:
        """Returns a reply to each question.

        Raises:
          Refused, Unavailable: where it makes no sense to go on; what came is on disk.
        """
        came: queue.SimpleQueue[tuple[int, list[Reply]]] = queue.SimpleQueue()

        def deliver(at: int, replies: list[Reply]) -> None:
            came.put((at, replies))

        for at, one in enumerate(questions):
            self._client.ask(
                one.text, 1, self.counts, functools.partial(deliver, at), first=one.attempt
            )
        found: dict[int, Reply] = {}
        while len(found) < len(questions):
            self._client.check()
            try:
                at, replies = came.get(timeout=_LOOK_S)
            except queue.Empty:
                continue
            (found[at],) = replies
        return [found[at] for at in range(len(questions))]

    def close(self) -> None:
        """Ends all asking, once what is on the wire has come."""
        self._client.close()
