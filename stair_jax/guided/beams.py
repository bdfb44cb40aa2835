"""The strategies that draw: greedy, samples side by side, and beams under the reward model.

Sources: STAIR 3.3 and C.2 (best-of-N; 4 successors, beam width 2); Snell et al. 2024
(arXiv 2408.03314) for beams and look-ahead; Beeching, Tunstall, Rush 2024 ("Scaling test-time
compute with open models") for diverse beams.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence

from stair_jax.config.strategies import Strategy
from stair_jax.engine.request import GREEDY, Prefix, Result
from stair_jax.guided.loop import Continuation, PromptState, Requests
from stair_jax.prm.reader import Reading, aggregate, finite

OPEN, ENDED, CUT = "open", "ended", "cut"  # a beam that goes on, ended itself, or ran out of room
START = "0"  # the tag of what follows the prompt; a beam's tag adds a number a step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A response that was found."""

    ids: tuple[int, ...]
    raw: tuple[float | None, ...] = ()  # of the reward model, one a step, None where it is missing;
    #   empty where nothing was read


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Beam:
    """A response so far. Its sequences are given back once it is not open."""

    tag: str
    group: int  # subtree; beams compete within theirs
    ids: tuple[int, ...]
    raw: tuple[float | None, ...]
    depth: int  # steps
    state: str
    prefix: Prefix
    read: Prefix  # the reward model's sequence


def greedy(state: PromptState, _: Strategy) -> Requests[Found]:
    """Returns the response of the likeliest tokens."""
    continuation = Continuation(state.root, (START, "greedy", 0), "end", state.limit, GREEDY)
    (result,) = yield from state.generate([continuation])
    return Found(ids=result.ids)


def sample(
    state: PromptState,
    ordinals: Sequence[int],
    unread: Sequence[tuple[int, ...]] = (),
    read: bool = True,
) -> Requests[tuple[list[Found], list[Found]]]:
    """Samples whole responses side by side; equal ones are read once.

    Args:
      state: of the prompt.
      ordinals: the samples' numbers, which fix their draws: number i is the same however many
        are drawn.
      unread: responses sampled earlier that are still to be read.
      read: whether the reward model reads anything.

    Returns:
      The samples in the order of their numbers, and the responses of `unread` with scores.
    """
    guide = state.guide
    continuations = [
        Continuation(state.root, (START, "sample", i), "end", state.limit, guide.sampling)
        for i in ordinals
    ]
    results = yield from state.generate(continuations)
    drawn = [result.ids for result in results]
    for result in results:
        state.release(result.prefix)
    if not read:
        return [Found(ids=ids) for ids in drawn], []
    distinct = list(dict.fromkeys([*drawn, *unread]))
    assert state.read_root is not None
    items = [(state.read_root, steps_of(ids, guide.codec.step_stop)) for ids in distinct]
    readings = yield from state.read(items)
    for reading in readings:
        state.release(reading.prefix)
    raw = {ids: tuple(map(finite, r.raw)) for ids, r in zip(distinct, readings, strict=True)}
    found = [Found(ids=ids, raw=raw[ids]) for ids in (*drawn, *unread)]
    return found[: len(drawn)], found[len(drawn) :]


def beam(state: PromptState, strategy: Strategy) -> Requests[Found]:
    """Extends the best responses step by step, and returns the best one that ended.

    The pool of a round holds width x successors candidates: the beams that ended, and the
    successors of those that did not, who share what is left of it (so all of it follows the
    prompt). The best `width` by the score of their last step are kept. "lookahead" scores a
    candidate at the end of the steps that greedy decoding would add; "diverse" keeps the best of
    each of `width` subtrees that never meet. A successor that repeats a sibling is dropped. The
    answer is the best by `aggregation`; one that was cut is taken only if none ended. Raw scores
    are compared, see `aggregate`. A candidate whose score is missing is kept, and answers, only
    where no other of its subtree has one: then the first ones are, counted as `blind`.
    """
    groups, width = (strategy.width, 1) if strategy.kind == "diverse" else (1, strategy.width)
    assert state.read_root is not None
    kept = [
        Beam(
            tag=START,
            group=group,
            ids=(),
            raw=(),
            depth=0,
            state=OPEN,
            prefix=state.root,
            read=state.read_root,
        )
        for group in range(groups)
    ]
    while any(beam.state == OPEN for beam in kept):
        parents = [beam for beam in kept if beam.state == OPEN]
        pool = [beam for beam in kept if beam.state != OPEN]
        pool += yield from _extend(state, parents, _shares(kept, width, strategy.each))
        _release(state, parents)
        looks = state.guide.config.lookahead if strategy.kind == "lookahead" else 0
        scores = yield from _scores(state, pool, looks)
        kept = []
        for group in range(groups):
            own = [(s, b) for s, b in zip(scores, pool, strict=True) if b.group == group]
            kept += _best(state, own, width)
        _release(state, [beam for beam in pool if beam.state == OPEN and beam not in kept])
    readout, how = state.guide.model.readout, state.guide.config.aggregation
    values = [aggregate(beam.raw, readout, how) for beam in kept]
    known = [(v, beam) for v, beam in zip(values, kept, strict=True) if v is not None]
    state.blind += not known
    _, best = max(known or [(0.0, kept[0])], key=lambda item: (item[1].state == ENDED, item[0]))
    return Found(ids=best.ids, raw=best.raw)


def _best(
    state: PromptState, scored: Sequence[tuple[float | None, Beam]], width: int
) -> Sequence[Beam]:
    """Returns the beams of the highest scores; where all are missing, the first ones, counted."""
    known = [(score, beam) for score, beam in scored if score is not None]
    if not known:
        state.blind += 1
        return [beam for _, beam in scored[:width]]
    known.sort(key=lambda item: -item[0])  # stable: the earlier one where equal
    return [beam for _, beam in known[:width]]


def _shares(kept: Sequence[Beam], width: int, each: int) -> dict[int, int]:
    """Returns how many successors every open beam gets, by group; an ended beam takes `each`."""
    shares = {}
    for group in {beam.group for beam in kept}:
        own = [beam.state for beam in kept if beam.group == group]
        if going := own.count(OPEN):
            shares[group] = (width - len(own) + going) * each // going
    return shares


def _extend(
    state: PromptState, parents: Sequence[Beam], shares: dict[int, int]
) -> Requests[list[Beam]]:
    """Returns the successors of open beams, read; those that repeat a sibling left out."""
    guide = state.guide
    continuations: list[tuple[Beam, Continuation]] = []
    for parent in parents:
        count = shares[parent.group]
        first = 0 if parent.depth else parent.group * count  # subtrees differ from the first step
        last = parent.depth + 1 >= guide.max_depth
        for ordinal in range(first, first + count):
            key = (parent.tag, "end" if last else "step", ordinal)
            room = state.limit - len(parent.ids)
            continuations.append(
                (parent, Continuation(parent.prefix, key, key[1], room, guide.sampling))
            )
    results = yield from state.generate([continuation for _, continuation in continuations])
    fresh: dict[tuple[int, str, tuple[int, ...]], tuple[Beam, Continuation, Result]] = {}
    for (parent, continuation), result in zip(continuations, results, strict=True):
        same = parent.group, parent.tag, result.ids
        if same in fresh:
            state.duplicates += 1
            state.release(result.prefix)
        else:
            fresh[same] = parent, continuation, result
    grown = [(parent, result) for parent, _, result in fresh.values() if result.ids]
    items = [(parent.read, steps_of(result.ids, guide.codec.step_stop)) for parent, result in grown]
    readings = iter((yield from state.read(items)))
    return [
        _child(
            state,
            parent,
            continuation.key[-1],
            result,
            next(readings) if result.ids else None,
        )
        for parent, continuation, result in fresh.values()
    ]


def _child(
    state: PromptState,
    parent: Beam,
    ordinal: int | str,
    result: Result,
    reading: Reading | None,
) -> Beam:
    """Returns what a continuation makes of its parent; no reading where there was no room."""
    guide = state.guide
    ids, raw = (
        parent.ids + result.ids,
        parent.raw + (tuple(map(finite, reading.raw)) if reading else ()),
    )
    full = result.finish == "length" or len(ids) >= state.limit
    ends = any(token in guide.codec.end_stop for token in result.ids)
    child = Beam(
        tag=f"{parent.tag}.{ordinal}",
        group=parent.group,
        ids=ids,
        raw=raw,
        depth=len(raw),
        state=ENDED if ends else CUT if full else OPEN,
        prefix=result.prefix,
        read=reading.prefix if reading else parent.read,
    )
    if child.state != OPEN:  # nothing will be asked of it any more
        state.release(result.prefix)
        if reading:
            state.release(reading.prefix)
    return child


def _scores(state: PromptState, pool: Sequence[Beam], looks: int) -> Requests[list[float | None]]:
    """Returns what each candidate is kept by: its last score, or that of its greedy future."""
    scores = [beam.raw[-1] if beam.raw else None for beam in pool]
    if not looks:
        return scores
    futures = yield from _futures(state, [beam for beam in pool if beam.state == OPEN], looks)
    told = [i for i, beam in enumerate(pool) if futures.get(beam.tag)]
    step_stop = state.guide.codec.step_stop
    items = [(pool[i].read, steps_of(futures[pool[i].tag], step_stop)) for i in told]
    for i, reading in zip(told, (yield from state.read(items)), strict=True):
        state.release(reading.prefix)
        scores[i] = finite(reading.raw[-1])
    return scores


def _futures(
    state: PromptState, beams: Sequence[Beam], looks: int
) -> Requests[dict[str, tuple[int, ...]]]:
    """Returns what greedy decoding adds to open beams in the next steps, by tag."""
    guide = state.guide
    found: dict[str, tuple[int, ...]] = {beam.tag: () for beam in beams}
    ends = {beam.tag: beam.prefix for beam in beams}  # of the futures so far, while they go on
    for look in range(looks):
        going = [beam for beam in beams if beam.tag in ends]
        continuations = [
            Continuation(
                ends[beam.tag],
                (beam.tag, "look", look, "step", 0),
                "step",
                state.limit - len(beam.ids) - len(found[beam.tag]),
                GREEDY,
            )
            for beam in going
        ]
        results = yield from state.generate(continuations)
        for beam, result in zip(going, results, strict=True):
            if look:
                state.release(ends[beam.tag])
            found[beam.tag] += result.ids
            ends[beam.tag] = result.prefix
            over = len(beam.ids) + len(found[beam.tag]) >= state.limit
            stops = any(token in guide.codec.end_stop for token in result.ids)
            if look == looks - 1 or over or stops or result.finish == "length":
                state.release(ends.pop(beam.tag))
    return found


def _release(state: PromptState, beams: Sequence[Beam]) -> None:
    """Gives back the sequences of beams; those of one prompt's subtrees start as the same."""
    held = {id(p): p for beam in beams for p in (beam.prefix, beam.read)}
    for prefix in held.values():
        state.release(prefix)


def steps_of(ids: Sequence[int], step_stop: Collection[int]) -> list[tuple[int, ...]]:
    """Returns the steps of a response, each up to its stop token; the last may lack one."""
    steps: list[tuple[int, ...]] = []
    start = 0
    for end, token in enumerate(ids, start=1):
        if token in step_stop or end == len(ids):
            steps.append(tuple(ids[start:end]))
            start = end
    return steps


# By the kind of strategy.
PLANS: dict[str, Callable[[PromptState, Strategy], Requests[Found]]] = {
    "greedy": greedy,
    "beam": beam,
    "diverse": beam,
    "lookahead": beam,
}
