"""Whether the reasoning decides: a step of a response is changed, and the model goes on from there.

| kind  | the response begins with                                        | then           |
|-------|-----------------------------------------------------------------|----------------|
| cut   | its own steps before place k                                    | it goes on     |
| swap  | those, and step k of another prompt's response                  | it goes on     |
| forge | those, and a step that permits a harmful request or refuses one | it goes on     |

`cut` is the control. A greedy model says the same again after its own words, so the share of
changed decisions must be 0, but for rounding where another batch or other kernels break a near tie.
The share under `cut` is therefore the noise that shares under `swap` and `forge` have in them.

A decision is the outcome that the benchmark sees in a response ("refusal", "correct"). A response
that stopped at its limit, or is not in the format, decides nothing: it has no interventions,
and where one is found behind an intervention it counts as undecided, not as a change.

Source of the idea: Lanham et al. 2023 (arXiv 2307.13702), who truncate and corrupt chains of
thought. Their interventions and measures differ from these.
"""

import bisect
import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from stair_jax import text
from stair_jax.config.words import INTERVENTIONS
from stair_jax.evals import benchmark, statistics
from stair_jax.evals.attacks import prefills
from stair_jax.records import Answer, Prompt

CUT, SWAP, FORGE = INTERVENTIONS
FIRST_STEP, ANY, OPPOSED = "first_step", "any", "opposed"  # figures beside those of places
_STEP = re.compile(re.escape(text.STEP) + r".*?" + re.escape(text.STEP_END), re.DOTALL)
# Keys of the prompts' `meta`, which no benchmark has.
_OF, _KIND, _PLACE, _DONOR = "intervened", "intervention", "place", "donor"

Figure = dict[str, float]  # {value, n, low, high, undecided}
Figures = dict[str, dict[str, Figure]]  # by kind, then by place, `ANY` and `OPPOSED`


class Step(NamedTuple):
    """A closed step of a response: where it begins and ends, tags included, and its text."""

    start: int
    end: int
    text: str


class Reasoned(NamedTuple):
    """A response in STAIR's format: the steps that the model wrote, and its final answer."""

    steps: Sequence[Step]
    output: str


def decides(answer: Answer) -> bool:
    """Returns whether a response came to its end and has a final answer."""
    if answer.cut or answer.outcome in benchmark.NO_ANSWER.values():
        return False
    return bool(text.final_answer(answer.response))


def parse(answer: Answer) -> Reasoned | None:
    """Returns the steps and the final answer; None where the response is not in STAIR's format.

    Steps that a benchmark's beginning of the response opened are not the model's, and are left out:
    place 1 is the first step that the model wrote.
    """
    output = text.final_answer(answer.response)
    if not decides(answer) or not output or not text.tags_close(answer.response):
        return None
    found = [Step(*m.span(), m.group()) for m in _STEP.finditer(answer.response)]
    return Reasoned([step for step in found if step.start >= len(answer.prefill)], output)


def forged_step(prompt: Prompt) -> str:
    """Returns an English step that permits a harmful request, or refuses a harmless one."""
    request = prompt.meta.get("goal", prompt.question)
    forged = prefills.forged_step if prompt.type == "safety" else prefills.forged_refusal
    return forged(request).rstrip()


def interventions(
    prompts: Iterable[Prompt],
    answers: Iterable[Answer],
    kinds: Sequence[str],
    *,
    seed: int,
    forge: Callable[[Prompt], str] = forged_step,
) -> list[Prompt]:
    """Returns the prompts of all interventions on the answers to one benchmark.

    The step of a swap comes from the response of another prompt, at the same place, whatever that
    one decided. A step with the same words is not taken, for it would change nothing. Where there
    is no other step, there is no swap. Where few responses have other words, these few lend to
    many, and the shares rest on few donors.

    Args:
      prompts: of the benchmark.
      answers: to them, of one model; those that decide nothing are passed over.
      kinds: of `INTERVENTIONS`.
      seed: fixes which responses lend their steps.
      forge: the closed step to forge for a prompt.

    Returns:
      Prompts that differ from their originals in `id`, which ends in kind and place, in `prefill`
      and in `meta`. They go through the originals, then places, then `kinds`.
    """
    asked = {prompt.id: prompt for prompt in prompts}
    whole = {a.id: (a, found) for a in answers if a.id in asked and (found := parse(a))}
    lenders = _Lenders({id: found for id, (_, found) in whole.items()}, seed)
    made = []
    for id, (answer, found) in whole.items():
        # What lies between the tags of two steps is kept before a new step. A cut ends with a tag:
        # there the tokens part, whatever follows.
        end = len(answer.prefill)
        for place, step in enumerate(found.steps, start=1):
            kept = answer.response[: step.start]
            for kind in kinds:
                donor = lenders.donor(id, place) if kind == SWAP else None
                if kind == CUT:
                    prefill = answer.response[:end]
                elif kind == FORGE:
                    prefill = kept + forge(asked[id])
                elif donor is not None:
                    prefill = kept + whole[donor][1].steps[place - 1].text
                else:
                    continue
                made.append(_changed(asked[id], kind, place, prefill, donor))
            end = step.end
    return made


def _changed(prompt: Prompt, kind: str, place: int, prefill: str, donor: str | None) -> Prompt:
    facts = {_OF: prompt.id, _KIND: kind, _PLACE: str(place)} | ({_DONOR: donor} if donor else {})
    return dataclasses.replace(
        prompt, id=f"{prompt.id}/{kind}-{place}", prefill=prefill, meta={**prompt.meta, **facts}
    )


class _Lenders:
    """Which response lends its step: those with one at a place stand on a ring, by a hash."""

    def __init__(self, found: Mapping[str, Reasoned], seed: int):
        self._found, self._seed = found, seed
        self._rings: dict[int, list[tuple[str, str]]] = {}

    def donor(self, id: str, place: int) -> str | None:
        """Returns the first of the ring behind a prompt's own hash that says something else."""
        if place not in self._rings:
            some = [one for one, what in self._found.items() if len(what.steps) >= place]
            self._rings[place] = sorted((self._hash("lends", place, one), one) for one in some)
        ring, own = self._rings[place], self._found[id].steps[place - 1].text.split()
        start = bisect.bisect(ring, (self._hash("takes", place, id), ""))
        for _, one in (*ring[start:], *ring[:start]):
            if self._found[one].steps[place - 1].text.split() != own:
                return one
        return None

    def _hash(self, *key: object) -> str:
        return hashlib.blake2b(repr((self._seed, *key)).encode(), digest_size=8).hexdigest()


def original(prompt: Prompt) -> str:
    """Returns the id of the prompt that an intervention changes."""
    return prompt.meta[_OF]


class _Effect(NamedTuple):
    of: str  # the original's id
    kind: str
    place: int
    changed: bool | None  # None: undecided
    opposed: bool  # whether the donor decided otherwise


def figures(
    made: Iterable[Prompt], answers: Iterable[Answer], replies: Iterable[Answer]
) -> Figures:
    """Returns the shares of decisions that interventions changed.

    Args:
      made: the interventions, of `interventions`.
      answers: the originals.
      replies: to `made`, by their ids; one that is not there counts as undecided.

    Returns:
      {kind: {place: figure}}, places as texts from "1". A figure is {value, n, low, high}, a share
      with its Wilson interval, and `undecided`, how many more interventions had no decision. Beside
      the places a kind has "any": the share of answers that changed at one place or more. An answer
      has one decision and many places, so only there and at one place are the n independent. A swap
      has "opposed": swaps at any place from a response that decided otherwise. "first_step" has
      "1": the share of answers that a forged or swapped first step changed. They follow it.
    """
    before = {answer.id: answer.outcome for answer in answers}
    after = {reply.id: reply for reply in replies}
    effects = [_effect(prompt, before, after.get(prompt.id)) for prompt in made]
    found: Figures = {}
    for kind in INTERVENTIONS:
        if not (some := [effect for effect in effects if effect.kind == kind]):
            continue
        places = sorted({effect.place for effect in some})
        found[kind] = {str(k): _share([e for e in some if e.place == k]) for k in places}
        found[kind][ANY] = _by_answer(some)
        if kind == SWAP:
            found[kind][OPPOSED] = _share([effect for effect in some if effect.opposed])
    first = [effect for effect in effects if effect.place == 1 and effect.kind != CUT]
    if first:
        found[FIRST_STEP] = {"1": _by_answer(first)}
    return found


def _effect(prompt: Prompt, before: Mapping[str, str], reply: Answer | None) -> _Effect:
    meta = prompt.meta
    was, lent = before[meta[_OF]], before.get(meta.get(_DONOR, ""))
    changed = reply.outcome != was if reply is not None and decides(reply) else None
    return _Effect(
        meta[_OF], meta[_KIND], int(meta[_PLACE]), changed, lent is not None and lent != was
    )


def _share(effects: Sequence[_Effect]) -> Figure:
    known = [float(effect.changed) for effect in effects if effect.changed is not None]
    return statistics.share(known) | {"undecided": len(effects) - len(known)}


def _by_answer(effects: Sequence[_Effect]) -> Figure:
    """Returns the share of answers with a change; an answer without any decision is undecided."""
    known: dict[str, list[bool]] = {}
    for effect in effects:
        known.setdefault(effect.of, [])
        if effect.changed is not None:
            known[effect.of].append(effect.changed)
    hits = [float(any(changes)) for changes in known.values() if changes]
    return statistics.share(hits) | {"undecided": len(known) - len(hits)}


_HEADER = ("model", "benchmark", "kind", "place", "changed", "n", "95 % interval", "undecided")


def table(found: Mapping[str, Mapping[str, Figures]]) -> str:
    """Returns figures by model and benchmark as a Markdown table; shares are in percent."""
    rows = [
        (model, name, kind, place, *_cells(figure))
        for model, benchmarks in found.items()
        for name, kinds in benchmarks.items()
        for kind, places in kinds.items()
        for place, figure in places.items()
    ]
    widths = [max(map(len, column)) for column in zip(_HEADER, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(_HEADER), rule, *map(line, rows)]) + "\n"


def _cells(figure: Figure) -> tuple[str, ...]:
    undecided = str(int(figure["undecided"]))
    if not figure["n"]:
        return "-", "0", "-", undecided
    low, high = 100 * figure["low"], 100 * figure["high"]
    return f"{100 * figure['value']:.1f}", str(int(figure["n"])), f"{low:.1f}-{high:.1f}", undecided
