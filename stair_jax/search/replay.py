"""An engine and a judge that remember: what they delivered before a restart is not asked for again.

A result follows from its request's key and the sequence that it continues, and so does its name in
the log. A tree that is begun again asks for the same in the same order as far as it had come, gets
it from the log, and goes on from there. Sequences are rebuilt without drawing a token; their keys
are computed when somebody continues them.
"""

import base64
import hashlib
import json
import struct
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from stair_jax.engine.request import EngineLike, Prefix, Request, Result
from stair_jax.judges.base import FunctionJudge, Judge, Score
from stair_jax.records import Prompt
from stair_jax.remote.open import Open
from stair_jax.search.growth import TaskId
from stair_jax.search.result_log import ResultLog


class ReplayEngine:
    """An engine for growing trees, itself `EngineLike`; requests' ids are `TaskId`s.

    While there are results from the log to collect, the engine beneath rests and wants no more
    trees: those that are begun again catch up first. A sequence that fills the context cannot be
    rebuilt; the request that made it is decoded again.
    """

    def __init__(self, engine: EngineLike, log: ResultLog):
        self._engine, self._log = engine, log
        self._digests: dict[Prefix, bytes] = {}  # of every sequence that is held
        self._asked: dict[Hashable, tuple[str, str, bytes]] = {}  # -> tree, name, digest of prefix
        self._found: list[Result] = []  # from the log, uncollected

    @property
    def counters(self) -> Mapping[str, int | float]:
        """What the engine beneath has done so far; results from the log do not count."""
        return self._engine.counters

    @property
    def hungry(self) -> bool:
        """True where more requests would keep more of the engine busy."""
        return not self._found and self._engine.hungry

    @property
    def idle(self) -> bool:
        """True where no request is queued or running, and no result waits to be collected."""
        return not self._found and self._engine.idle

    def root(self, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence; ValueError where it leaves no room for an answer."""
        prefix = self._engine.root(ids)
        self._digests[prefix] = _longer(b"", _packed(ids))
        return prefix

    def extend(self, prefix: Prefix, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence, `prefix` and then `ids`; ValueError as in `root`."""
        longer = self._engine.extend(prefix, ids)
        self._digests[longer] = _longer(self._digests[prefix], _packed(ids))
        return longer

    def submit(self, request: Request) -> None:
        """Queues a request, unless its result is in the log."""
        assert isinstance(request.id, TaskId)
        tree, above = request.id.prompt_id, self._digests[request.prefix]
        name = _name(above, repr(request.key).encode())
        found = self._log.find(tree, name)
        result = None if found is None else self._rebuilt(request, found)
        if result is not None:
            self._found.append(result)
            return
        self._asked[request.id] = tree, name, above
        self._engine.submit(request)

    def _rebuilt(self, request: Request, found: Mapping[str, str]) -> Result | None:
        """Returns a result as the log has it; None where its sequence has no room for a token."""
        ids = np.frombuffer(base64.b64decode(found["ids"]), "<i4").tolist()
        try:
            prefix = self.extend(request.prefix, ids)
        except ValueError:
            return None
        logps = np.frombuffer(base64.b64decode(found.get("logps", "")), "<f8").tolist()
        return Result(
            id=request.id,
            ids=tuple(ids),
            logps=tuple(logps),
            prefix=prefix,
            finish=found["finish"],
        )

    def step(self) -> None:
        """Lets the engine work, unless results from the log are there to be collected."""
        if not self._found:
            self._engine.step()

    def collect(self) -> list[Result]:
        """Returns the requests finished since the last call; all of them are in the log then."""
        found, self._found = self._found, []
        results = self._engine.collect()
        for result in results:
            tree, name, above = self._asked.pop(result.id)
            data = _packed(result.ids)
            self._digests[result.prefix] = _longer(above, data)
            members = f'"ids":"{_text(data)}","finish":"{result.finish}"'
            if result.logps:
                members += f',"logps":"{_text(np.array(result.logps, "<f8").tobytes())}"'
            self._log.add(tree, name, members)
        self._log.flush()
        return found + results

    def release(self, prefix: Prefix) -> None:
        """Gives a sequence back."""
        self._engine.release(prefix)
        del self._digests[prefix]

    def cancel(self, request_id: Hashable) -> None:
        """Forgets a queued, running or uncollected request; it will give no result."""
        if self._asked.pop(request_id, None) is not None:
            self._engine.cancel(request_id)
        for result in [result for result in self._found if result.id == request_id]:
            self._found.remove(result)
            self.release(result.prefix)


class ReplayJudge:
    """A judge of growing trees' answers, itself a `Judge`.

    Scores are kept by question and response. What is missing or open is asked for again: whoever
    judges may have it by then.
    """

    def __init__(self, judge: Judge, log: ResultLog):
        self._judge, self._log = judge, log
        self._asked: dict[Hashable, tuple[str, str]] = {}  # -> tree, name
        self._found: list[tuple[Hashable, Score]] = []  # from the log, uncollected

    def submit(self, id: Hashable, prompt: Prompt, response: str) -> None:
        """Queues a response, unless its score is in the log."""
        name = _name(*(part.encode(errors="replace") for part in (prompt.question, response)))
        found = self._log.find(prompt.id, name)
        if found is not None:
            safety, helpfulness, counts = found["score"]
            score = Score(safety=safety, helpfulness=helpfulness, counts=counts)
            self._found.append((id, score))
            return
        self._asked[id] = prompt.id, name
        self._judge.submit(id, prompt, response)

    def collect(self) -> list[tuple[Hashable, Score | Open | None]]:
        """Returns the verdicts since the last call; scores reach the disk with the next results."""
        found: list[tuple[Hashable, Score | Open | None]] = [*self._found]
        self._found = []
        for id, score in self._judge.collect():
            tree, name = self._asked.pop(id)
            if isinstance(score, Score):
                value = json.dumps([score.safety, score.helpfulness, dict(score.counts)])
                self._log.add(tree, name, f'"score":{value}')
            found.append((id, score))
        return found


def remembering(
    engine: EngineLike, judge: Judge | None, log: ResultLog
) -> tuple[EngineLike, Judge | None]:
    """Returns an engine and a judge that keep what they deliver in a log.

    A judge that is a plain function stays as it is: it answers again at once.
    """
    if judge is not None and not isinstance(judge, FunctionJudge):
        judge = ReplayJudge(judge, log)
    return ReplayEngine(engine, log), judge


def _packed(ids: Sequence[int]) -> bytes:
    """Returns token ids as little-endian int32, 4 bytes each."""
    return struct.pack(f"<{len(ids)}i", *ids)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _longer(above: bytes, data: bytes) -> bytes:
    """Returns the digest of a sequence: of the one that it continues, and of its new tokens."""
    return hashlib.blake2b(above + data, digest_size=16).digest()


def _name(*parts: bytes) -> str:
    """Returns the name of an entry in the log: what it is about, and how it was asked for."""
    return hashlib.blake2b(b"\0".join(parts), digest_size=8).hexdigest()
