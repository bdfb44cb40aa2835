"""Questions to an OpenAI-compatible endpoint: retries, limits, and what happens when all fail.

The search's thread submits and collects; one thread with an event loop asks. A question that is
being asked is not asked again, and neither is one whose reply is on disk: a reply that was paid for
is kept, also one that cannot be parsed (it will not be parsed at the next start either, so its
rating stays missing), and the lack of one where that is about the question.

Three things can go wrong, and none of them becomes a rating:
- No whole reply (`Trouble`: errors, silence, cut answers). Asked again `config.retries` times after
  growing random pauses, then left OPEN, to be asked at the next start.
- An answer without a reply (`Declined`: cut at the limit, filtered, a question that is too long).
  Asked once more, then missing, with the reason in the log and on disk. Where the endpoint may be
  at fault (a reply without text, an error in unknown words before the first reply), that holds
  for this session only: the next start asks again.
- An endpoint that refuses whatever it is asked (`Refused`: key, model, quota), or that has failed
  `breaker` questions in a row: `collect` raises, so that a run stops before it has lost hours.
"""

import asyncio
import collections
import logging
import pathlib
import random
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

from stair_jax.config.schema import JudgeConfig
from stair_jax.remote.complaints import Declined, Refused, Trouble
from stair_jax.remote.naming import JUDGE, Naming
from stair_jax.remote.open import OPEN, Open
from stair_jax.remote.reply_cache import ReplyCache, key_of
from stair_jax.text import Turn

log = logging.getLogger(__name__)

PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # before the first retry at most; the limit grows to this
TRIES_DECLINED = 2  # of a question that the endpoint answers without a reply
BREAKER = 8  # questions that failed in a row, or as many as are asked at once if that is more

COUNTERS = (
    "parsed",
    "unparsed",
    "declined",
    "open",
    "cached",
    "repeated",
    "requests",
    "failed_requests",
    "declined_requests",
)

Reply = str | None | Open  # None: the endpoint has none to give
Counts = collections.Counter[str]


class _Question(NamedTuple):
    """What one request says; the arguments of `Endpoint.ask`."""

    text: str
    before: tuple[Turn, ...]
    seed: int | None


class Unavailable(OSError):
    """The endpoint does not answer, and further questions would only cost time."""


class EndpointClient:
    """The client of an endpoint that raters share: one limit, one cache, one breaker.

    Args:
      config: of the endpoint.
      folder: of the replies that were paid for.
      pause_s: of which a random share is waited for before the first retry; doubled for each
        further one ("full jitter"). What the server asks for comes on top.
      system: a system turn before every question; "": none.
      naming: of the settings, for messages.

    Raises:
      ValueError: where address or model are missing.
    """

    def __init__(
        self,
        config: JudgeConfig,
        folder: pathlib.Path,
        *,
        pause_s: float = PAUSE_S,
        system: str = "",
        naming: Naming = JUDGE,
    ):
        self.config, self._pause_s, self._system = config, pause_s, system
        self._naming = naming
        self._trouble = ""  # what happened last to a question without a reply
        self._breaker = max(BREAKER, config.concurrency)
        self._failure: BaseException | None = None
        self._failed_in_a_row = self._declined_in_a_row = 0
        self._without_reply: set[str] = set()  # keys that this session asks for no more
        self._closing, self._quiet_until = False, 0.0
        self._asked: dict[str, asyncio.Task[Reply]] = {}  # under way, by key
        self._on_wire: set[asyncio.Task[Any]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        # Here, since the library behind it takes a fifth of a run's start, and few runs ask one.
        from stair_jax.remote.endpoint import Endpoint

        self._endpoint = Endpoint(config, system, naming)
        self._judgements = ReplyCache(folder)
        self._slots = asyncio.Semaphore(config.concurrency)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()

    def ask(
        self,
        question: str,
        samples: int,
        counts: Counts,
        deliver: Callable[[list[Reply]], None],
        *,
        before: Sequence[Turn] = (),
        seed: int | None = None,
        first: int = 0,
    ) -> None:
        """Asks a question `samples` times; `deliver` gets the replies, in the loop's thread.

        Args:
          question: the user turn.
          samples: how often it is asked.
          counts: of `COUNTERS`, to which this adds.
          deliver: takes the replies.
          before: earlier turns.
          seed: is sent with the question, and tells it from the same one with another seed.
          first: number of the first sample; one of another number is another reply.
        """
        turns = tuple((role, _sendable(content)) for role, content in before)
        whole = _Question(_sendable(question), turns, seed)
        self._loop.call_soon_threadsafe(
            self._start, self._answer(whole, range(first, first + samples), counts, deliver)
        )

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error  # a mistake of ours must not hang the search

    def check(self) -> None:
        """Raises what ends all asking.

        Raises:
          Refused: where the endpoint will never answer.
          Unavailable: where it has not for long.
        """
        if self._failure is not None:
            raise self._failure

    async def _answer(
        self,
        question: _Question,
        numbers: range,
        counts: Counts,
        deliver: Callable[[list[Reply]], None],
    ) -> None:
        found = [self._sample(question, number, counts) for number in numbers]
        deliver(list(await asyncio.gather(*found)))

    async def _sample(self, question: _Question, number: int, counts: Counts) -> Reply:
        key = key_of(
            self.config,
            question.text,
            number,
            self._system,
            before=question.before,
            seed=question.seed,
        )
        if self._judgements.settled(key) or key in self._without_reply:
            counts["cached"] += 1
            return self._judgements.get(key)
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = self._loop.create_task(self._fetch(key, question, counts))
            task.add_done_callback(lambda _: self._asked.pop(key))
        else:
            counts["repeated"] += 1
        return await asyncio.shield(task)  # others may wait for it too

    async def _fetch(self, key: str, question: _Question, counts: Counts) -> Reply:
        """Asks until there is a reply, or no hope of one; keeps the place in the line meanwhile.

        A place that was given up between tries would be taken by the next question: then all of
        them would begin, and none would end, while a server is down.
        """
        async with self._slots:
            declined = 0
            for attempt in range(self.config.retries + 1):
                if not await self._cleared(attempt):
                    break
                try:
                    return await self._once(key, question, counts)
                except Refused as error:
                    self._failure = error
                    break
                except Trouble as error:
                    counts["failed_requests"] += 1
                    self._hold_off(error.wait)
                    self._trouble = str(error)
                except Declined as error:
                    counts["declined_requests"] += 1
                    self._trouble, declined = str(error), declined + 1
                    # Also without a try left: to be asked at every start would end every run.
                    if declined == TRIES_DECLINED or attempt == self.config.retries:
                        return self._give_up(key, error)
            self._failed(left_open=True)
            return OPEN

    async def _once(self, key: str, question: _Question, counts: Counts) -> str:
        """Asks once; a reply is on disk before anybody sees it."""
        counts["requests"] += 1
        task = asyncio.current_task()
        assert task is not None
        self._on_wire.add(task)
        try:
            reply, wait = await self._endpoint.ask(*question)
            self._judgements.add(key, self.config.model, reply)
        finally:
            self._on_wire.discard(task)
        self._failed_in_a_row = self._declined_in_a_row = 0
        self._hold_off(wait)
        return reply

    def _give_up(self, key: str, error: Declined) -> None:
        """Notes that the endpoint has no reply to a question.

        Only what is about the question is kept. An endpoint that has never replied is set up
        wrongly, and one whose replies have no text is broken: the breaker counts those.
        """
        c, why = self.config, str(error)
        self._without_reply.add(key)
        if error.lasting:
            self._judgements.add(key, c.model, None, why)
        log.warning("%s %s: a question is missing: %s", self._naming.endpoint, c.endpoint, why)
        self._declined_in_a_row += 1
        if self._declined_in_a_row % self._breaker == 0:
            many = f"{self._declined_in_a_row} questions in a row are missing"
            setting = self._naming.endpoint
            log.warning("%s %s: %s; the last one: %s", setting, c.endpoint, many, why)
        if not (self._endpoint.answered and error.lasting):
            self._failed(left_open=False)

    def _failed(self, *, left_open: bool) -> None:
        """Counts a question without a reply, and trips the breaker."""
        if self._stopped:
            return
        c, self._failed_in_a_row = self.config, self._failed_in_a_row + 1
        if left_open:
            setting = self._naming.endpoint
            log.warning("%s %s: a question is left open: %s", setting, c.endpoint, self._trouble)
        if self._failed_in_a_row >= self._breaker:
            self._failure = Unavailable(
                f"config.{self._naming.endpoint}: {c.endpoint} gave"
                f" {self._naming.failed.format(self._failed_in_a_row)} (model {c.model!r},"
                f" {c.retries} retries each); the last time: {self._trouble}"
            )

    def _hold_off(self, wait: float) -> None:
        """Keeps everybody off the endpoint for a while: its limits are those of the account."""
        self._quiet_until = max(self._quiet_until, self._loop.time() + wait)

    async def _cleared(self, attempt: int) -> bool:
        """Waits until a question may be asked; returns whether it still should be."""
        if attempt and not self._stopped:
            longest = min(self._pause_s * 2 ** (attempt - 1), LONGEST_PAUSE_S)
            await asyncio.sleep(random.uniform(0, longest))
        while not self._stopped and (left := self._quiet_until - self._loop.time()) > 0:
            # Not all at the same moment.
            await asyncio.sleep(left + random.uniform(0, self._pause_s))
        return not self._stopped

    @property
    def _stopped(self) -> bool:
        return self._closing or self._failure is not None

    def close(self) -> None:
        """Ends all asking; may be called twice.

        What is on the wire may be paid for, so it is waited for, a request's time at most.
        """
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._judgements.close()

    async def _finish(self) -> None:
        self._closing = True
        fetching = set(self._asked.values())
        waiting = [*self._tasks, *(fetching - self._on_wire)]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, *fetching, return_exceptions=True)
        await self._endpoint.close()


def _sendable(text: str) -> str:
    """Returns a text without halves of surrogate pairs, which cannot be sent."""
    return text.encode(errors="replace").decode()
