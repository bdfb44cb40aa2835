"""Sequences that continue others with tokens nobody drew."""

import numpy as np
import pytest

from stair_jax.engine.engine import Engine
from stair_jax.engine.replicas import Replicas
from stair_jax.engine.request import EngineLike
from stair_jax.engine.sequences import Held
from tests.support.engines import CONFIG, SPEC, STOPS, ask, by_hand, make, params, smallest_pool
from tests.support.places import PLACES

__all__ = ["params"]

TEMPLATE = [1, 2, 3, 9, 10, 11, 12, 13, 14]  # two pages and a token
ANSWERS = [[20], [21, 22, 23], [24, 25, 26, 9, 12], list(range(9, 26)), [20, 9, 9, 9, 9, 9]]


def held(prefix):
    assert isinstance(prefix, Held)
    return prefix


def on(prefix, name, **change):
    """A greedy request on a sequence that is there."""

    class There:
        root = staticmethod(lambda ids: prefix)

    return ask(There, [], name, **change)


def check(weights, sequences, results, atol=1e-5):
    for sequence, result in zip(sequences, results, strict=True):
        tokens, logps = by_hand(weights, sequence.ids, len(result.ids))
        assert list(result.ids) == tokens
        np.testing.assert_allclose(result.logps, logps, atol=atol)


@pytest.mark.parametrize("attention", ["views", "xla"])
def test_what_is_forced_after_a_sequence_is_computed_once_and_the_sequence_before_it_too(
    params, attention
):
    engine = make(params, attention=attention)
    template = held(engine.root(TEMPLATE))
    longer = [engine.extend(template, ids) for ids in ANSWERS]
    assert [s.ids for s in longer] == [(*TEMPLATE, *ids) for ids in ANSWERS]
    assert engine.counters["prefilled"] == 0  # not before it is needed
    engine.release(template)  # by its owner; the others need it still
    check(params, longer, engine.generate([on(s, i, max_tokens=5) for i, s in enumerate(longer)]))
    unique = len(TEMPLATE) - 1 + sum(map(len, ANSWERS))
    assert engine.counters["prefilled"] == unique
    used = sum(len(s.ids) - 1 for s in longer)
    assert engine.counters["reused"] == used + len(ANSWERS) * (len(TEMPLATE) - 1)
    assert not template.pages  # nobody needs it any more
    again = engine.generate([on(s, f"again {i}", max_tokens=5) for i, s in enumerate(longer)])
    check(params, longer, again)
    assert engine.counters["prefilled"] == unique


def test_a_base_may_be_drawn_extended_or_a_single_token(params):
    engine = make(params)
    drawn = engine.generate([ask(engine, [4, 5], max_tokens=6)])[0].prefix
    first = engine.extend(drawn, [9, 10, 11])
    second = engine.extend(first, [12])
    same = engine.extend(second, [])
    one = engine.extend(engine.root([3]), [9, 9])
    before = engine.counters["prefilled"]
    longer = [same, second, one]
    check(params, longer, engine.generate([on(s, i, max_tokens=4) for i, s in enumerate(longer)]))
    # What was drawn has keys up to its last token; `first` is there for `second` to read.
    assert engine.counters["prefilled"] - before == 3 + 1 + 2


def test_rows_of_one_call_start_at_places_of_their_own(params, monkeypatch):
    engine = make(params, prefill_rows=4)
    calls, extend = [], engine._device.extend

    def spy(ids, pages, starts):
        calls.append((list(map(len, ids)), list(starts)))
        extend(ids, pages, starts)

    monkeypatch.setattr(engine._device, "extend", spy)
    bases = [engine.root([1 + i] * length) for i, length in enumerate((2, 5, 9, 12))]
    engine.generate([on(base, i, max_tokens=1) for i, base in enumerate(bases)])
    calls.clear()
    longer = [engine.extend(base, [9] * (i + 1)) for i, base in enumerate(bases)]
    check(params, longer, engine.generate([on(s, i, max_tokens=6) for i, s in enumerate(longer)]))
    assert calls == [([1, 2, 3, 4], [1, 4, 8, 11])]


def test_an_extended_sequence_is_evicted_and_computed_again(params):
    tight, roomy = make(params, pool_bytes=smallest_pool()), make(params)
    found = []
    for engine in (tight, roomy):
        template = held(engine.root(TEMPLATE))
        longer = [engine.extend(template, ids) for ids in ANSWERS]
        asked = [on(s, i, max_tokens=7) for i, s in enumerate(longer)]
        found.append([engine.generate(asked) for _ in range(3)])
        for results in found[-1]:
            check(params, longer, results)
        given = [r.prefix for results in found[-1] for r in results]
        for prefix in [template, *longer, *given]:
            engine.release(prefix)
        assert not any(engine._store.pages.owners)
    assert roomy.counters["evicted"] == 0
    assert tight.counters["evicted"] > 0
    assert tight.counters["prefilled"] > roomy.counters["prefilled"]
    want = [[r.ids for r in results] for results in found[1]]
    assert [[r.ids for r in results] for results in found[0]] == want


def test_what_was_evicted_reads_its_base_where_that_has_keys(params):
    engine = make(params)
    template = held(engine.root(TEMPLATE))
    longer = held(engine.extend(template, ANSWERS[3]))
    engine.generate([on(longer, 0, max_tokens=1)])
    for lost, tokens in (([longer], 17), ([longer, template], 25)):
        before = engine.counters["prefilled"]
        for sequence in lost:
            engine._store._drop(sequence)
            sequence.evicted = True
        check(params, [longer], engine.generate([on(longer, 0, max_tokens=3)]))
        assert engine.counters["prefilled"] - before == tokens
    assert not template.pages  # computed together with what needed it: one call


def test_a_full_context_and_released_sequences_are_refused(params):
    engine = make(params)
    template = held(engine.root(TEMPLATE))
    with pytest.raises(ValueError, match="40 tokens, expected 1 to 39"):
        engine.extend(template, [9] * (CONFIG.max_context - len(TEMPLATE)))
    unused = engine.extend(template, [9])
    engine.release(template)
    with pytest.raises(ValueError, match="released"):
        engine.extend(template, [9])
    engine.release(unused)  # never computed: it lets go of its base
    assert template.users == 0


def test_replicas_keep_an_extended_sequence_at_home(params):
    engine = Replicas(SPEC, params, config=CONFIG, stops=STOPS, vocab=SPEC.V - 2, meshes=PLACES)
    assert isinstance(engine, EngineLike)
    roots = [engine.root([3 + i, *TEMPLATE]) for i in range(4)]
    longer = [engine.extend(root, [9, 10]) for root in roots]
    assert [engine._home[s] for s in longer] == [engine._home[s] for s in roots]
    assert len({id(home) for home in engine._home.values()}) == 2
    check(params, longer, engine.generate([on(s, i, max_tokens=3) for i, s in enumerate(longer)]))
    assert engine.counters["prefilled"] == 4 * (9 + 2)
    for prefix in (*roots, *longer):
        engine.release(prefix)


def test_nothing_is_compiled_for_an_extension_that_was_announced(params):
    engine = Engine(SPEC, params, config=CONFIG, stops=STOPS, vocab=SPEC.V - 2)
    asked = ask(engine, [1])
    engine.compile([asked.sampling], logps=True)
    plain = engine.counters["compiles"]
    engine.compile([asked.sampling], logps=True, extends=True)
    told = engine.counters["compiles"]
    assert told > plain
    longer = [engine.extend(engine.root(TEMPLATE), ids) for ids in ANSWERS]
    engine.generate([on(s, i) for i, s in enumerate(longer)])
    assert engine.counters["compiles"] == told
