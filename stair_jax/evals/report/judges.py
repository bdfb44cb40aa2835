"""What there is to know of a run's judges, as Markdown: warnings first."""

from collections.abc import Mapping, Sequence
from typing import Any

_LONGEST = 200  # characters of a request or an answer that are shown


def markdown(report: Mapping[str, Any]) -> str:
    """Returns `judge_agreement.report` as a page."""
    lines = ["# Judges", ""]
    lines += [f"- **Warning.** {_cell(line)}" for line in report["warnings"]] or ["No warnings."]
    lines += ["", "## What each judge said", ""]
    heads = ("judge", "prompt", "asked", "read", "parse failures", "no reply", "refusals")
    keys = [head.replace(" ", "_") for head in heads]
    lines += _table(
        [*heads, "verdicts"],
        [[*(row[key] for key in keys), _verdicts(row["verdicts"])] for row in report["judges"]],
    )
    if report["agreement"]:
        lines += ["", "## Agreement", ""]
        lines += _table(
            ("prompt", "judges", "answers", "equal verdicts", "Cohen's kappa"),
            [
                [
                    row["prompt"],
                    " and ".join(row["judges"]),
                    row["n"],
                    _number(row["equal"]),
                    _number(row["kappa"]),
                ]
                for row in report["agreement"]
            ],
        )
    for row in report["agreement"]:
        lines += _disagreements(row)
    return "\n".join(lines) + "\n"


def _disagreements(row: Mapping[str, Any]) -> list[str]:
    shown = row["disagreements"]
    if not shown:
        return []
    heading = f"## {row['prompt']}: {len(shown)} of {row['apart']} disagreements"
    rows = [
        [one["benchmark"], one["request"], one["answer"], *map(one["verdicts"].get, row["judges"])]
        for one in shown
    ]
    return ["", heading, "", *_table(("benchmark", "request", "answer", *row["judges"]), rows)]


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(map(_cell, line))} |" for line in lines]


def _cell(value: Any) -> str:
    """Returns a value on one line that ends no cell and makes no markup of a table."""
    said = " ".join(str(value).split())
    said = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
    return said.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _verdicts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{word}: {count}" for word, count in counts.items()) or "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
