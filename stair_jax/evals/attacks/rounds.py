"""Many attacks at once: what all of them ask is gathered, so that models answer in batches.

An attack speaks to its models in plain calls that wait, one request at a time. Here each runs in a
thread of its own, and the calling thread serves them in rounds: it waits until every attack under
way has asked something or ended, puts what they ask of one model together, asks once, and hands
the replies back. No two threads work at a time, and a round's batches go by the order of the
attacks, so that a run with the same replies goes the same way.
"""

import collections
import dataclasses
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar, runtime_checkable

from stair_jax.evals.attacks.transcript import Chat, Conversation, Sampling
from stair_jax.remote.open import Open

Found = TypeVar("Found")
Job = Callable[[Mapping[str, Chat]], Found]  # an attack, given its models by their roles


@runtime_checkable
class Model(Protocol):
    """A model that answers batches; unlike of a `Chat`, a reply may be lacking for the time."""

    def ask(
        self, conversations: Sequence[Conversation], *, seeds: Sequence[int], sampling: Sampling
    ) -> Sequence[str | Open]:
        """Returns a reply to each conversation, in their order; OPEN where nobody could say."""
        ...


class Unreached(Exception):
    """A model could not be reached, so that an attack has no result today."""


class _Stopped(Exception):
    """The calling thread serves no more."""


@dataclasses.dataclass(frozen=True)
class _Ask:
    """What an attack waits for."""

    role: str
    conversations: Sequence[Conversation]
    seeds: Sequence[int]
    sampling: Sampling


def play(
    jobs: Iterable[tuple[str, Job[Found]]],
    models: Mapping[str, Model],
    *,
    at_once: int,
    on_done: Callable[[str, Found], None],
) -> list[str]:
    """Runs attacks side by side, and hands each result on as it comes.

    Args:
      jobs: ids and attacks.
      models: by role, as the attacks know them.
      at_once: attacks under way at most; an attack that ends makes room for the next.
      on_done: takes id and result, in the calling thread.

    Returns:
      The ids of the attacks that ended because a model could not be reached.

    Raises:
      ValueError: where a model does not give a reply for each conversation. Whatever a model or an
        attack raises is raised here, once all other attacks were stopped.
    """
    rounds: _Rounds[Found] = _Rounds(jobs, models, at_once, on_done)
    try:
        rounds.play()
    finally:
        rounds.close()
    return rounds.unreached


class _Worker(Generic[Found]):
    """An attack in its thread."""

    def __init__(self, number: int, id: str, job: Job[Found], inbox: "queue.SimpleQueue"):
        self.number, self.id, self.asks = number, id, None
        self._job, self._inbox = job, inbox
        self.replies: queue.SimpleQueue[Sequence[str | Open] | _Stopped] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name=f"attack {id}", daemon=True)

    def begin(self, roles: Iterable[str]) -> None:
        """Starts the attack."""
        self._chats = {role: _RoleChat(self, role) for role in roles}
        self.thread.start()

    def _run(self) -> None:
        try:
            self._inbox.put((self, "done", self._job(self._chats)))
        except BaseException as error:
            self._inbox.put((self, "failed", error))

    def wait_for(self, ask: _Ask) -> list[str]:
        """Asks from within the attack's thread."""
        self._inbox.put((self, "asks", ask))
        replies = self.replies.get()
        if isinstance(replies, _Stopped):
            raise replies
        whole = [reply for reply in replies if not isinstance(reply, Open)]
        if len(whole) < len(replies):
            raise Unreached
        return whole


class _RoleChat:
    """The `Chat` that an attack sees."""

    def __init__(self, worker: _Worker, role: str):
        self._worker, self._role = worker, role

    def ask(
        self, conversations: Sequence[Conversation], *, seeds: Sequence[int], sampling: Sampling
    ) -> list[str]:
        """Returns the replies of the round in which all others have asked, too."""
        return self._worker.wait_for(_Ask(self._role, conversations, seeds, sampling))


class _Rounds(Generic[Found]):
    def __init__(
        self,
        jobs: Iterable[tuple[str, Job[Found]]],
        models: Mapping[str, Model],
        at_once: int,
        on_done: Callable[[str, Found], None],
    ):
        self._jobs, self._models, self._on_done = collections.deque(jobs), models, on_done
        self._at_once, self._count = at_once, 0
        self._inbox: queue.SimpleQueue = queue.SimpleQueue()
        self._alive: set[_Worker[Found]] = set()
        self._asking: dict[_Worker[Found], _Ask] = {}
        self.unreached: list[str] = []

    def play(self) -> None:
        """Runs all attacks to their ends."""
        while self._jobs or self._asking:
            # Room for further attacks is filled before a model is asked.
            while self._jobs and len(self._asking) < self._at_once:
                self._begin(*self._jobs.popleft())
            self._serve()

    def _begin(self, id: str, job: Job[Found]) -> None:
        worker = _Worker(self._count, id, job, self._inbox)
        self._count += 1
        self._alive.add(worker)
        worker.begin(self._models)
        # One thread works at a time: what attacks share need not be safe between threads.
        self._take(*self._inbox.get())

    def _take(self, worker: "_Worker[Found]", what: str, found: object) -> None:
        if isinstance(found, _Ask):
            self._asking[worker] = found
            return
        self._alive.remove(worker)
        if isinstance(found, Unreached):
            self.unreached.append(worker.id)
        elif what == "failed" and isinstance(found, BaseException):
            raise found
        else:
            self._on_done(worker.id, found)  # pyright: ignore[reportArgumentType]  # of the job

    def _serve(self) -> None:
        """Asks every model what all attacks ask of it, then lets these go on one by one."""
        asking = sorted(self._asking.items(), key=lambda item: item[0].number)
        groups: dict[tuple[str, Sampling], list[tuple[_Worker[Found], _Ask]]] = {}
        for worker, ask in asking:
            groups.setdefault((ask.role, ask.sampling), []).append((worker, ask))
        answered: dict[_Worker[Found], Sequence[str | Open]] = {}
        for (role, sampling), some in groups.items():
            conversations = [one for _, ask in some for one in ask.conversations]
            seeds = [seed for _, ask in some for seed in ask.seeds]
            replies = list(self._models[role].ask(conversations, seeds=seeds, sampling=sampling))
            if len(replies) != len(conversations):
                raise ValueError(
                    f"{role}: found {len(replies)} replies, expected {len(conversations)}"
                )
            for worker, ask in some:
                answered[worker] = replies[: len(ask.conversations)]
                del replies[: len(ask.conversations)]
        for worker, _ in asking:
            del self._asking[worker]
            worker.replies.put(answered[worker])
            self._take(*self._inbox.get())

    def close(self) -> None:
        """Stops the attacks that are still under way, and waits for their threads."""
        for worker in self._alive:
            worker.replies.put(_Stopped())
        for worker in self._alive:
            worker.thread.join()
