"""Two engines that answer the search's requests with transformers' `generate`.

Both stand behind the interface of `stair_jax.engine.request.EngineLike`, so that the same search
code grows the trees and only the engine differs. Neither keeps anything between two calls: every
request computes its whole prefix again, as code on `generate` does.

`OneByOne` answers a single request per call: the way of the official code's local mode
(thu-ml/STAIR, `generate_mode: local`). `Lockstep` answers all waiting requests of one kind in one
padded batch: rows that have finished idle until the last one has.
"""

import collections
import time
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import torch
import transformers

from stair_jax.engine.request import Prefix, Request, Result, Sampling

BATCH = 256  # rows of one call at most
COUNTERS = (
    "delivered",  # tokens of finished requests
    "decoded",  # tokens drawn, those of rows that had ended already included
    "prefilled",  # tokens of the prefixes, padding left out
    "calls",  # of `generate`
    "generate_s",  # seconds in them
)


class Generator:
    """A causal model of transformers with the settings that all calls share.

    Args:
      model: in evaluation mode.
      stops: named stop sets of token ids.
      pad_id: fills up short rows, and rows that have ended; no stop token.
      max_context: tokens of prompt and response together.
    """

    def __init__(
        self, model: Any, *, stops: Mapping[str, Collection[int]], pad_id: int, max_context: int
    ):
        self.max_context, self._model, self._stops, self._pad = max_context, model, stops, pad_id
        self._settings: dict[tuple[str, int, Sampling], transformers.GenerationConfig] = {}
        self.counters: dict[str, float] = dict.fromkeys(COUNTERS, 0)

    def room(self, request: Request) -> int:
        """Returns how many tokens the answer may have; 0 or less where the context is full."""
        return min(request.max_tokens, self.max_context - len(request.prefix.ids))

    def answer(self, requests: Sequence[Request]) -> list[Result]:
        """Answers requests of one stop set and one sampling, all in one call of `generate`."""
        live = [request for request in requests if self.room(request) > 0]
        made = dict(zip(map(id, live), self._generate(live), strict=True)) if live else {}
        results = []
        for request in requests:
            ids = tuple(self._cut(request, made.get(id(request), [])))
            self.counters["delivered"] += len(ids)
            stopped = bool(ids) and ids[-1] in self._stops[request.stop]
            results.append(
                Result(
                    id=request.id,
                    ids=ids,
                    logps=(),
                    prefix=Prefix(request.prefix.ids + ids),
                    finish="stop" if stopped else "length",
                )
            )
        return results

    def _generate(self, requests: Sequence[Request]) -> list[list[int]]:
        """Returns the new tokens of each row, with whatever padding follows them."""
        width = max(len(request.prefix.ids) for request in requests)
        rows = [[self._pad] * (width - len(r.prefix.ids)) + [*r.prefix.ids] for r in requests]
        real = [[0] * (width - len(r.prefix.ids)) + [1] * len(r.prefix.ids) for r in requests]
        start = time.perf_counter()
        with torch.inference_mode():
            out = self._model.generate(
                torch.tensor(rows),
                attention_mask=torch.tensor(real),
                generation_config=self._config(requests),
            )
        self.counters["generate_s"] += time.perf_counter() - start
        self.counters["calls"] += 1
        self.counters["prefilled"] += sum(map(sum, real))
        self.counters["decoded"] += out[:, width:].numel()
        return out[:, width:].tolist()

    def _config(self, requests: Sequence[Request]) -> transformers.GenerationConfig:
        """Returns the settings of a call that leaves the longest answer its room."""
        stop, how = requests[0].stop, requests[0].sampling
        key = stop, max(map(self.room, requests)), how
        if key not in self._settings:
            drawing: dict[str, Any] = {"do_sample": False}
            if how.temperature > 0:
                drawing = {
                    "do_sample": True,
                    "temperature": how.temperature,
                    "top_k": how.top_k,
                    "top_p": how.top_p,
                    "min_p": how.min_p or None,
                }
            self._settings[key] = transformers.GenerationConfig(
                eos_token_id=sorted(self._stops[stop]),
                pad_token_id=self._pad,
                max_new_tokens=key[1],
                **drawing,
            )
        return self._settings[key]

    def _cut(self, request: Request, ids: list[int]) -> list[int]:
        """Returns the tokens up to the first stop token, or as many as the request has room for."""
        ids = ids[: max(0, self.room(request))]
        stops = self._stops[request.stop]
        return ids[: next((i + 1 for i, token in enumerate(ids) if token in stops), len(ids))]


class OneByOne:
    """Answers the oldest request at each step."""

    hungry = True  # more requests would never be in the way

    def __init__(self, generator: Generator):
        self._generator = generator
        self._queue: collections.deque[Request] = collections.deque()
        self._done: list[Result] = []

    @property
    def counters(self) -> Mapping[str, float]:
        """What has been done so far; the names are explained at `COUNTERS`."""
        return self._generator.counters

    def root(self, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence; ValueError where it leaves no room for an answer."""
        if not 0 < len(ids) < self._generator.max_context:
            raise ValueError(
                f"prompt of {len(ids)} tokens, expected 1 to {self._generator.max_context - 1}"
            )
        return Prefix(ids)

    def extend(self, prefix: Prefix, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence, `prefix` and then `ids`; ValueError as in `root`."""
        return self.root((*prefix.ids, *ids))

    def submit(self, request: Request) -> None:
        """Queues a request."""
        self._queue.append(request)

    def step(self) -> None:
        """Answers as many requests as one step takes."""
        for batch in self._batches():
            self._done += self._generator.answer(batch)

    def _batches(self) -> list[list[Request]]:
        """Takes what this step answers off the queue."""
        return [[self._queue.popleft()]] if self._queue else []

    def collect(self) -> list[Result]:
        """Returns the requests finished since the last call."""
        done, self._done = self._done, []
        return done

    def release(self, prefix: Prefix) -> None:
        """Does nothing: nothing is kept of a sequence."""

    def cancel(self, request_id: Hashable) -> None:
        """Forgets a queued request."""
        self._queue = collections.deque(r for r in self._queue if r.id != request_id)

    @property
    def idle(self) -> bool:
        """True where no request is queued."""
        return not self._queue


class Lockstep(OneByOne):
    """Answers all waiting requests at each step: those of one kind in one padded batch.

    The search hands over what all trees ask for, first rollouts of new children among it, before
    it lets the engine work. So the batches hold at least what a phase of the official order would
    bring together, and the baseline is no weaker for it.
    """

    def _batches(self) -> list[list[Request]]:
        kinds: dict[tuple[str, Sampling], list[Request]] = {}
        for request in self._queue:
            kinds.setdefault((request.stop, request.sampling), []).append(request)
        self._queue.clear()
        # Neighbours in length share a batch: less padding where there are several.
        for group in kinds.values():
            group.sort(key=lambda request: len(request.prefix.ids))
        return [g[i : i + BATCH] for g in kinds.values() for i in range(0, len(g), BATCH)]
