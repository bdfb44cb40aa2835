"""What a reader learns first: how far the run is, and what changed from model to model."""

import datetime
import statistics
from collections.abc import Iterator, Sequence

from stair_jax.evals.report.parts.course import Stage
from stair_jax.evals.report.parts.figures import Dot, Scale
from stair_jax.evals.report.parts.grown import Round
from stair_jax.evals.report.parts.origins import Artefact, Dropped

_FIRST, _ROUND = "sft", "dpo-"  # names of models
_CHANGES = 10  # shares that are told


def state(artefacts: Sequence[Artefact], stages: Sequence[Stage], left: Sequence[str]) -> list[str]:
    """Returns how far a run is, and when it last wrote.

    Args:
      artefacts: that were begun.
      stages: that figures were written of.
      left: what the last command asked for and was not begun.
    """
    open_ = [one.name for one in artefacts if one.state != "done"]
    if not artefacts:
        return ["Nothing was begun here yet."]
    said = [f"{len(artefacts) - len(open_)} of {len(artefacts)} parts that were begun are done."]
    if open_:
        said.append(
            f"Begun and not finished: {', '.join(open_)}. The run is at it, or was stopped;"
            " the same command goes on."
        )
    if left:
        said.append(f"Not begun: {', '.join(left)}.")
    if last := max((stage.ended for stage in stages), default=0.0):
        when = datetime.datetime.fromtimestamp(last, datetime.UTC)
        said.append(f"Its last figures are of {when:%Y-%m-%d %H:%M} UTC.")
    return said


def findings(
    scales: Sequence[Scale],
    rounds: Sequence[Round],
    stages: Sequence[Stage],
    dropped: Sequence[Dropped],
) -> list[str]:
    """Returns sentences with the figures to look at first."""
    return [
        *_changes(scales),
        *_pairs(rounds),
        *_speed(stages),
        *_losses(dropped),
    ]


def _changes(scales: Sequence[Scale]) -> Iterator[str]:
    """Yields how shares changed from the model after SFT to that of the last round, most first."""
    found = []
    for scale in scales:
        values = {dot.model: dot for dot in scale.dots}
        last = [name for name in values if name.startswith(_ROUND) and "/" not in name]
        if _FIRST in values and last:
            a, b = values[_FIRST], values[last[-1]]
            good = f" ({scale.good})" if scale.good else ""
            said = f"{_share(a)} after {_FIRST}, {_share(b)} after {last[-1]}, of {b.n} prompts."
            found.append((abs(float(b.value) - float(a.value)), f"{scale.title}{good}: {said}"))
    found.sort(key=lambda change: -change[0])  # stable: the table's order where equal
    yield from (said for _, said in found[:_CHANGES])
    if rest := found[_CHANGES:]:
        most = rest[0][0]
        yield f"{len(rest)} other shares changed by {most:.1f} % or less; the table has them."


def _share(dot: Dot) -> str:
    return f"{dot.value} %" + (f" ({dot.interval})" if dot.interval else "")


def _pairs(rounds: Sequence[Round]) -> Iterator[str]:
    for one in rounds:
        if not one.trees:
            continue
        text = (
            f"Round {one.number}: {one.trees:,} trees of {one.nodes / one.trees:.1f} nodes,"
            f" {one.with_pairs:,} of them gave {one.pairs:,} pairs"
        )
        if one.gaps:
            text += f" with a median gap of {statistics.median(one.gaps):.2f}"
        yield f"{text}."


def _speed(stages: Sequence[Stage]) -> Iterator[str]:
    for stage in stages:
        facts = dict(stage.chief)
        if "trees an hour" in facts:
            busy = facts.get("slots busy")
            yield (
                f"{stage.name}: {facts['trees an hour']} trees an hour"
                + (f", slots busy {busy}" if busy else "")
                + "."
            )


def _losses(dropped: Sequence[Dropped]) -> Iterator[str]:
    if total := sum(one.rows for one in dropped):
        most = max(dropped, key=lambda one: one.rows)
        yield (
            f"{total:,} candidates and rows were left out, {most.rows:,} of them by one rule:"
            f" {most.reason} ({most.where})."
        )


def round_rows(rounds: Sequence[Round]) -> list[list[str]]:
    """Returns a table of rounds beside each other: what it is, and a value for each round."""
    kinds = sorted({kind for one in rounds for kind in one.rewards})
    depths = sorted({depth for one in rounds for depth in one.depths})
    rows: list[tuple[str, list[str]]] = [
        ("whole trees", [f"{one.trees:,}" for one in rounds]),
        ("nodes", [f"{one.nodes:,}" for one in rounds]),
    ]
    for kind in kinds:
        rewards = [one.rewards.get(kind, []) for one in rounds]
        rows += [
            (f"{kind}: judged responses", [f"{len(some):,}" for some in rewards]),
            (
                f"{kind}: their mean reward",
                [f"{statistics.fmean(some):.2f}" if some else "-" for some in rewards],
            ),
        ]
    rows += [
        ("trees whose judged responses all score the same", [f"{one.alike:,}" for one in rounds]),
        ("trees that gave a pair", [f"{one.with_pairs:,}" for one in rounds]),
        ("pairs", [f"{one.pairs:,}" for one in rounds]),
        *((f"pairs at depth {k}", [f"{one.depths[k]:,}" for one in rounds]) for k in depths),
        (
            "median gap of values",
            [f"{statistics.median(one.gaps):.2f}" if one.gaps else "-" for one in rounds],
        ),
        ("results kept of unfinished trees", [f"{one.waiting:,}" for one in rounds]),
    ]
    return [[what, *values] for what, values in rows]
