"""What attacks came to, as Markdown: each beside the plain requests and the over-refusal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from stair_jax.evals import statistics

Report = Mapping[str, Any]  # as evals/attacks.json has it

_MUCH = 0.5  # of the requests, or of the attacker's replies
_HEADS = ("model", "benchmark", "attack", "figure", "value", "n", "95 % interval", "missing")
_COUNTED = ("malformed", "refused", "sat_out", "no_answer", "unread_verdicts")


class _Row(NamedTuple):
    model: str
    benchmark: str
    attack: str
    figure: str
    metric: Mapping[str, Any]
    calls: int


def markdown(report: Report, harmless: Sequence[str]) -> str:
    """Returns the page.

    Args:
      report: of all models.
      harmless: benchmarks that would show over-refusal, for a warning where none was asked.
    """
    lines = ["# Attacks", ""]
    lines += [f"- **Warning.** {line}" for line in warnings(report, harmless)] or ["No warnings."]
    lines += ["", *_table((*_HEADS, "calls"), [_cells(row) for row in _rows(report)])]
    lines += ["", "## How they went", "", *_table(_HOW, list(_how(report)))]
    return "\n".join(lines) + "\n"


def warnings(report: Report, harmless: Sequence[str]) -> list[str]:
    """Returns what to know before the figures are read."""
    found = []
    if not all(of["over_refusal"] for of in report.values()):
        found.append(
            "refusals of harmless requests were not counted, and a model that refuses all looks"
            f" best under attack; add one of {', '.join(harmless)} to config.evaluate.benchmarks"
        )
    for model, benchmark, attack, of in _attacks(report):
        for variant, reasons in of["missing"].items():
            due, lost = of["requests"], sum(reasons.values())
            if variant in ("best", "last", "worst") and due and lost > _MUCH * due:
                why = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
                found.append(
                    f"{attack} on {model}, {benchmark}: {lost} of {due} requests have no answer to"
                    f" grade ({why})"
                )
        unread, asked = of["counts"].get("unread_verdicts", 0), of["calls"].get("judge", 0)
        if unread > _MUCH * asked:
            found.append(
                f"{attack} on {model}, {benchmark}: {unread} of {asked} ratings cannot be read and"
                " count as 1"
            )
    return found


def lines(report: Report) -> list[str]:
    """Returns a line for the log of each attack: the chief figure beside that of plain requests."""
    found = []
    for model, benchmark, attack, of in _attacks(report):
        entry = report[model]["attacked"][benchmark]
        name = entry["complied"]
        said = [f"plain {_percent(entry['plain'][name])}"]
        said += [f"{key} {_percent(by[name])}" for key, by in of["figures"].items()]
        if "pair_success" in of:
            said.append(f"pair_success {_percent(of['pair_success'])}")
        calls = sum(of["calls"].values())
        found.append(f"{model}: {attack} on {benchmark}, {name}: {', '.join(said)}; {calls} calls")
    return found


def _attacks(report: Report) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    for model, of in report.items():
        for benchmark, entry in of["attacked"].items():
            for attack, found in entry["attacks"].items():
                yield model, benchmark, attack, found


def _rows(report: Report) -> Iterator[_Row]:
    for model, of in report.items():
        for benchmark, entry in of["attacked"].items():
            yield from _of_benchmark(model, benchmark, entry)
        for benchmark, metrics in of["over_refusal"].items():
            for name, metric in metrics.items():
                yield _Row(model, benchmark, "plain", f"over-refused: {name}", metric, 0)


def _of_benchmark(model: str, benchmark: str, entry: Mapping[str, Any]) -> Iterator[_Row]:
    """Yields what was complied with, and what judges say, plain and under each attack."""
    rules, complied = set(entry["rules"]) - {entry["complied"]}, entry["complied"]

    def shown(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        yield complied, metrics[complied]
        yield from ((k, v) for k, v in metrics.items() if k not in rules and k != complied)

    for name, metric in shown(entry["plain"]):
        yield _Row(model, benchmark, "plain", name, metric, 0)
    for attack, of in entry["attacks"].items():
        calls = sum(of["calls"].values())
        if "pair_success" in of:
            yield _Row(model, benchmark, attack, "pair_success", of["pair_success"], calls)
        for variant, metrics in of["figures"].items():
            for name, metric in shown(metrics):
                yield _Row(model, benchmark, f"{attack}: {variant}", name, metric, calls)


def _cells(row: _Row) -> list[Any]:
    metric = row.metric
    value, low, high = (statistics.number(metric, key) for key in ("value", "low", "high"))
    shown = [f"{value:.3f}", metric["n"], f"{low:.3f}-{high:.3f}"] if metric["n"] else ["-", 0, "-"]
    names = [row.model, row.benchmark, row.attack, row.figure]
    return [*names, *shown, metric.get("missing", "-"), row.calls or "-"]


_HOW = (
    "model",
    "benchmark",
    "attack",
    "protocol",
    "attacker",
    "judge",
    "requests",
    "ended",
    *(name.replace("_", " ") for name in _COUNTED),
)


def _how(report: Report) -> Iterator[list[Any]]:
    for model, benchmark, attack, of in _attacks(report):
        players = [of.get(role, "-") for role in ("attacker", "attack_judge")]
        ended = ", ".join(f"{word} {count}" for word, count in of["ended"].items()) or "-"
        counts = [of["counts"].get(name, "-") for name in _COUNTED]
        protocol = ", ".join(of["protocols"]) or "-"
        yield [model, benchmark, attack, protocol, *players, of["requests"], ended, *counts]


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines]


def _percent(metric: Mapping[str, Any]) -> str:
    if not metric["n"]:
        return "- of 0"
    return f"{100 * statistics.number(metric, 'value'):.1f} % of {metric['n']}"
