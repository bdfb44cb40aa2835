"""The one thread that owns the engines; the event loop asks it, and gets events back.

In each turn it takes what was asked, lets every engine that has something to do draw a chunk, hands
on what was drawn, and gives every search its turn. What requests ask for is shared work: they meet
in the engine's slots, and texts to be read in one call.
"""

import asyncio
import dataclasses
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from stair_jax.engine.likelihood import Told
from stair_jax.engine.request import Request, Result
from stair_jax.prm.reader import finite
from stair_jax.run.answerer import Reply as Found
from stair_jax.serve import searching
from stair_jax.serve.baton import Baton
from stair_jax.serve.events import Drawn, Event, Failed, Judged, Read, Searched, Ticket
from stair_jax.serve.searching import Search, SearchEngine
from stair_jax.serve.served import Drawing, Served

log = logging.getLogger(__name__)

# Numbers of alternatives that programs are compiled for; a request gets the first ones of them.
TOPS = (0, 1, 5, 20)


@dataclasses.dataclass(eq=False)
class _Draws:
    """A drawing under way: tokens that were handed on, by the number of the continuation."""

    ticket: Ticket
    grows: bool
    have: dict[int, int]  # of those that run


class _Unread(NamedTuple):
    """Texts that wait to be read."""

    ticket: Ticket
    rows: Sequence[Sequence[int]]
    top: int  # alternatives

    @property
    def kind(self) -> tuple[int, int]:
        """What is equal in texts that are read together."""
        return id(self.ticket.model), next(top for top in TOPS if top >= self.top)


@dataclasses.dataclass(eq=False)
class _Searches:
    """A search under way."""

    ticket: Ticket
    engine: SearchEngine
    baton: Baton[Found]


class Worker:
    """Answers requests with some models, in a thread of its own.

    `failure` is what ended it, other than `close`: then nothing will be answered any more.

    Args:
      served: the models.
      loop: in which events are delivered.
      on_failure: is called there when the thread has failed.
    """

    def __init__(
        self,
        served: Sequence[Served],
        loop: asyncio.AbstractEventLoop,
        on_failure: Callable[[], None] = lambda: None,
    ):
        self.failure: Exception | None = None
        self.figures: dict[str, dict[str, int | float]] = {}  # of each model's engine, by name
        self.turn_s = 0.0  # how long the last turn took
        self._served, self._loop, self._on_failure = served, loop, on_failure
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._numbers = 0
        self._closing = False
        self._draws: dict[int, _Draws] = {}
        self._searches: dict[int, _Searches] = {}
        self._unread: list[_Unread] = []
        self._events: list[tuple[Ticket, Event]] = []
        self._note_figures()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # In the event loop

    def draw(self, model: Served, drawing: Drawing) -> Ticket:
        """Asks for continuations, which come as `Drawn`; all prompts must fit the context."""
        ticket = self._ticket(model)
        self._commands.put(functools.partial(self._begin_draw, ticket, drawing))
        return ticket

    def read(self, model: Served, rows: Sequence[Sequence[int]], top: int) -> Ticket:
        """Asks for log-probs of texts, with `top` alternatives; they come as `Read`.

        There are `TOPS[-1]` alternatives at most, and no more than tokens. All rows must have two
        tokens or more, and fit the context.
        """
        ticket = self._ticket(model)
        self._commands.put(lambda: self._unread.append(_Unread(ticket, rows, top)))
        return ticket

    def search(self, model: Served, search: Search) -> Ticket:
        """Asks for a search; it comes as `Searched`, or as `Failed`."""
        ticket = self._ticket(model)
        self._commands.put(functools.partial(self._begin_search, ticket, search))
        return ticket

    def judge(self, model: Served, ids: Sequence[int], begun: Sequence[int]) -> Ticket:
        """Asks the reward model about the beginning of an answer; it comes as `Judged`."""
        ticket = self._ticket(model)
        self._commands.put(functools.partial(self._judge, ticket, ids, begun))
        return ticket

    def cancel(self, ticket: Ticket, index: int | None = None) -> None:
        """Gives up what a ticket asks for, or one of its continuations; no more events of it."""
        self._commands.put(functools.partial(self._cancel, ticket, index))

    def close(self) -> None:
        """Gives up all that is asked, and ends the thread; may be called twice."""
        self._closing = True
        self._commands.put(lambda: None)
        self._thread.join()

    def _ticket(self, model: Served) -> Ticket:
        self._numbers += 1
        return Ticket(self._numbers, model)

    # In the thread

    def _run(self) -> None:
        try:
            while not self._closing:
                self._take_commands()
                began = time.perf_counter()
                self._turn()
                self.turn_s = time.perf_counter() - began
            for number in [*self._draws, *self._searches]:
                self._drop(number)
            self._note_figures()
        except Exception as error:
            log.exception("the engine's thread has ended")
            self.failure = error
            for under_way in (*self._draws.values(), *self._searches.values()):
                self._events.append((under_way.ticket, Failed(error)))
            self._events += [(ticket, Failed(error)) for ticket, *_ in self._unread]
            self._hand_on()
            self._tell_loop(self._on_failure)

    def _take_commands(self) -> None:
        """Does what was asked since the last turn; waits for it where there is nothing to do."""
        waiting = not (self._draws or self._searches or self._unread)
        try:
            self._commands.get(block=waiting)()
            while True:
                self._commands.get_nowait()()
        except queue.Empty:
            pass

    def _turn(self) -> None:
        for model in self._served:
            if not model.engine.idle:
                model.engine.step()
            for result in model.engine.collect():
                self._take(model, result)
        self._hand_on_partials()
        self._read_texts()
        for number in list(self._searches):
            self._advance(number)
        self._note_figures()
        self._hand_on()

    def _note_figures(self) -> None:
        self.figures = {m.name: {**m.engine.counters, **m.engine.occupancy} for m in self._served}

    def _begin_draw(self, ticket: Ticket, drawing: Drawing) -> None:
        count, total = len(drawing.keys), len(drawing.keys) * len(drawing.prompts)
        draws = _Draws(ticket, drawing.grows, dict.fromkeys(range(total), 0))
        for number, ids in enumerate(drawing.prompts):
            self._submit(ticket, drawing, ids, number * count)
        self._draws[ticket.number] = draws

    def _submit(self, ticket: Ticket, drawing: Drawing, ids: Sequence[int], first: int) -> None:
        """Asks an engine for the continuations of one prompt, numbered from `first` on."""
        engine, several = ticket.model.engine, len(drawing.keys) > 1
        prefix = engine.root(ids)
        for index, key in enumerate(drawing.keys, start=first):
            engine.submit(
                Request(
                    id=(ticket.number, index),
                    prefix=prefix,
                    key=key,
                    stop="end",
                    max_tokens=drawing.max_tokens,
                    sampling=drawing.sampling,
                    group=(ticket.number, first) if several else None,
                    shared=len(ids) if several else 0,
                )
            )
        engine.release(prefix)  # the requests keep it

    def _begin_search(self, ticket: Ticket, search: Search) -> None:
        model, number = ticket.model, ticket.number
        found: list[SearchEngine] = []

        def work(pause: Callable[[], None]) -> Found:
            return searching.find(
                search,
                run=model.run,
                policy=model.policy,
                engine=found[0],
                reward_model=model.reward_model,
            )

        baton = Baton(work, name=f"search {number}")
        found.append(SearchEngine(model.engine, number, baton.pause))
        self._searches[number] = _Searches(ticket, found[0], baton)

    def _judge(self, ticket: Ticket, ids: Sequence[int], begun: Sequence[int]) -> None:
        model = ticket.model.reward_model
        assert model is not None, "a beginning was refused without a reward model"
        held = [model.root(ids)]
        try:
            (reading,) = model.read([(held[0], [tuple(begun)])])
            held.append(reading.prefix)
        finally:
            for prefix in held:
                model.release(prefix)
        raw = finite(reading.raw[-1])
        unit = None if raw is None else float(model.readout.unit(raw))
        self._events.append((ticket, Judged(unit)))

    def _cancel(self, ticket: Ticket, index: int | None) -> None:
        self._unread = [some for some in self._unread if some.ticket is not ticket]
        if index is None:
            self._drop(ticket.number)
        elif (draws := self._draws.get(ticket.number)) and index in draws.have:
            ticket.model.engine.cancel((ticket.number, index))
            self._forget(draws, index)

    def _drop(self, number: int) -> None:
        if draws := self._draws.pop(number, None):
            for index in draws.have:
                draws.ticket.model.engine.cancel((number, index))
        elif search := self._searches.get(number):
            search.baton.drop()
            del self._searches[number]

    def _forget(self, draws: _Draws, index: int) -> None:
        del draws.have[index]
        if not draws.have:
            del self._draws[draws.ticket.number]

    def _take(self, model: Served, result: Result) -> None:
        """Hands on the end of a continuation, or to a search what it asked for."""
        number, index = result.id  # pyright: ignore[reportGeneralTypeIssues]
        if search := self._searches.get(number):
            search.engine.deliver(result)
            return
        draws = self._draws[number]
        model.engine.release(result.prefix)
        fresh = result.ids[draws.have[index] :]
        self._events.append((draws.ticket, Drawn(index, fresh, result.finish)))
        self._forget(draws, index)

    def _hand_on_partials(self) -> None:
        growing = [draws for draws in self._draws.values() if draws.grows]
        for model in self._served:
            have = {
                (draws.ticket.number, index): count
                for draws in growing
                if draws.ticket.model is model
                for index, count in draws.have.items()
            }
            if not have:
                continue
            for (number, index), partial in model.engine.partial(have).items():
                draws = self._draws[number]
                draws.have[index] += len(partial.ids)
                self._events.append((draws.ticket, Drawn(index, partial.ids, "")))

    def _read_texts(self) -> None:
        """Reads the texts that wait: those of one model and one number of alternatives together."""
        unread, self._unread = self._unread, []
        for kind in dict.fromkeys(some.kind for some in unread):
            together = [some for some in unread if some.kind == kind]
            model = together[0].ticket.model
            top = min(kind[1], model.policy.spec.V)
            told = iter(model.reader.tell([row for some in together for row in some.rows], top))
            for some in together:
                found = [_first(next(told), some.top) for _ in some.rows]
                self._events.append((some.ticket, Read(found)))

    def _advance(self, number: int) -> None:
        """Gives a search its turn; hands on what it found."""
        search = self._searches[number]
        if not search.baton.advance():
            return
        del self._searches[number]
        try:
            event: Event = Searched(search.baton.result)
        except Exception as error:
            if not isinstance(error, ValueError):
                log.exception("a search has failed")
            event = Failed(error)
        self._events.append((search.ticket, event))

    # Between the two

    def _hand_on(self) -> None:
        if self._events:
            events, self._events = self._events, []
            self._tell_loop(functools.partial(_deliver, events))

    def _tell_loop(self, what: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(what)
        except RuntimeError:  # the loop has ended, and with it whoever waited
            self._closing = True


def _first(told: Told, top: int) -> Told:
    """Returns what is told of the first so many alternatives."""
    return told._replace(top_ids=told.top_ids[:, :top], top_logps=told.top_logps[:, :top])


def _deliver(events: Sequence[tuple[Ticket, Event]]) -> None:
    for ticket, event in events:
        ticket.events.put_nowait(event)
