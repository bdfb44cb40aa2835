"""Recorded preferences of AlpacaEval's annotators, and the win rates of the answers they are of.

Source: tatsu-lab/alpaca_eval (Apache-2.0), the layout of its `annotations.json`: `instruction`,
`output_1` of the baseline `generator_1`, `output_2` of the model, `annotator`, and `preference`
from 1 (the baseline's) to 2 (the model's), 0 for a draw, null or NaN where it could not be read.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from stair_jax import jsonl
from stair_jax.evals import length_control, statistics
from stair_jax.evals.graders import alpaca
from stair_jax.evals.length_control import Gamed

Asked = tuple[str, str]  # an instruction and a model's answer to it, both without blanks around


class Preference(NamedTuple):
    """What one annotator says of one answer; a missing value is None."""

    annotator: str
    baseline: str
    instruction: str
    answer: str
    value: float | None
    lengths: tuple[int, int] | None = None  # characters of the baseline's answer and the model's


def of_row(where: str, row: Any) -> Preference:
    """Returns a row of annotations.

    Raises:
      ValueError: where it has no instruction or answer, or a preference off its scale.
    """
    row = jsonl.object_of(where, row)
    if not isinstance(row.get("output_2"), str):
        raise ValueError(f"{where}: output_2: found {row.get('output_2')!r}, expected a text")
    return Preference(
        annotator=str(row.get("annotator") or ""),
        baseline=str(row.get("generator_1") or "an unnamed baseline"),
        instruction=jsonl.text_of(where, row, "instruction").strip(),
        answer=row["output_2"].strip(),
        value=_value(where, row),
        lengths=_lengths(row.get("output_1"), row["output_2"]),
    )


def _lengths(baseline: object, model: str) -> tuple[int, int] | None:
    return (len(baseline), len(model)) if isinstance(baseline, str) else None


def _value(where: str, row: Mapping[str, Any]) -> float | None:
    if "preference" not in row:
        raise ValueError(f"{where}: preference: not there, expected a number from 1 to 2, or null")
    found = row["preference"]
    if found is None or (isinstance(found, float) and math.isnan(found)):
        return None
    if found == 0 and not isinstance(found, bool):
        return alpaca.DRAW  # as the official code reads it
    if isinstance(found, bool) or not isinstance(found, int | float) or not 1 <= found <= 2:
        raise ValueError(f"{where}: preference: found {found!r}, expected a number from 1 to 2")
    return float(found)


def metrics(
    answers: Sequence[Asked],
    recorded: Iterable[Preference],
    source: str,
    gamed: Gamed | None = None,
    numbers: Sequence[int] = (),
) -> dict[str, dict[str, Any]]:
    """Returns {metric@annotator: {value, n, low, high, missing, protocol}} of a model's answers.

    The metrics are `win_rate` and `discrete_win_rate`, from 0 to 1, and with answers of gamed
    baselines `length_controlled_win_rate`. A preference counts where its instruction and its answer
    are the model's own; an answer without one is missing.

    Args:
      answers: of the model, one for each instruction.
      recorded: of any models.
      source: where they come from.
      gamed: for the control of length; None: there is none.
      numbers: of the answers' instructions in AlpacaEval's order, from 0, for it.
    """
    by: dict[tuple[str, str], dict[Asked, Preference]] = {}
    for one in recorded:
        by.setdefault((one.annotator, one.baseline), {})[one.instruction, one.answer] = one
    found = {}
    for (annotator, baseline), of in by.items():
        rows = [of.get((instruction.strip(), text.strip())) for instruction, text in answers]
        values = [None if row is None else row.value for row in rows]
        protocol = f"against {baseline}, as recorded in {source}"
        for name, rate in (
            ("win_rate", alpaca.win_rate),
            ("discrete_win_rate", alpaca.discrete_win_rate),
        ):
            figure = {**_interval([rate([value]) for value in values]), "value": rate(values)}
            figure |= {"missing": values.count(None), "protocol": protocol}
            found[f"{name}@{annotator}" if annotator else name] = figure
        if gamed is not None:
            figure = _controlled(rows, gamed, numbers)
            figure["protocol"] = (
                f"{protocol}, lengths controlled by {gamed.source}; the interval is of the"
                " predictions alone, as the official standard error"
            )
            name = "length_controlled_win_rate"
            found[f"{name}@{annotator}" if annotator else name] = figure
    return found


def _controlled(
    rows: Sequence[Preference | None], gamed: Gamed, numbers: Sequence[int]
) -> dict[str, Any]:
    """Returns the length-controlled rate; none where it would be of a part of the instructions.

    The official one standardises lengths over all of them. A preference that the judge did not give
    is predicted; an answer that no judge was shown is missing.
    """
    shown = [row for row in rows if row is not None and row.lengths is not None]
    lengths = [row.lengths for row in shown if row.lengths is not None]
    missing = len(gamed.difficulty) - len(shown)
    if len(shown) != len(rows) or set(numbers) != set(gamed.difficulty):
        return {"value": math.nan, "n": 0, "low": 0.0, "high": 1.0, "missing": max(missing, 1)}
    wins = [None if row.value is None else row.value - 1 for row in shown]
    return {**length_control.win_rate(wins, lengths, numbers, gamed), "missing": 0}


def _interval(rates: Sequence[float | None]) -> dict[str, Any]:
    """Returns n and the normal 95 % interval of a mean of rates, within [0, 1]."""
    found = statistics.mean_of([rate for rate in rates if rate is not None])
    low, high = max(0.0, found["low"]), min(1.0, found["high"])
    return {"n": found["n"], "low": low, "high": high}
