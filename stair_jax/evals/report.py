"""The table at the end of a run, and the picture of its rounds."""

import pathlib
from collections.abc import Mapping
from typing import Any

Results = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]

BASELINE = "baseline-"  # what the names of models begin with that are none of STAIR's
# Column heading -> (benchmark, metrics added up, whether more is better).
COLUMNS = {
    "harmful: refused": ("harmful", ("refusal",), True),
    "jailbreak: complied": ("jailbreak", ("compliance",), False),
    "jailbreak: malformed": ("jailbreak", ("malformed",), False),
    "look-alike: right": ("lookalike", ("accuracy",), True),
    "look-alike: refused": ("lookalike", ("refusal",), False),
    "harmless: right": ("harmless", ("accuracy",), True),
    "harmless: malformed": ("harmless", ("malformed",), False),
}


def table(results: Results) -> str:
    """Returns the results as a Markdown table: a model a row, shares in percent, 95 % intervals."""
    columns = {h: c for h, c in COLUMNS.items() if any(c[0] in r for r in results.values())}
    rows = [["model", *(f"{h} {'↑' if up else '↓'}" for h, (_, _, up) in columns.items())]]
    for model, found in results.items():
        cells = [_cell(found.get(bench, {}), metrics) for bench, metrics, _ in columns.values()]
        rows.append([model, *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: list[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])]) + "\n"


def _cell(found: Mapping[str, Mapping[str, float]], metrics: tuple[str, ...]) -> str:
    if any(m not in found for m in metrics):
        return "-"
    (metric,) = metrics
    f = found[metric]
    return f"{100 * f['value']:.1f} ({100 * f['low']:.0f}-{100 * f['high']:.0f})"


def plot(results: Results, path: pathlib.Path) -> None:
    """Draws each column over the models, with its intervals, into a PNG file.

    Lines join STAIR's models, whose order is that of the rounds; baselines come after them. Models
    under a strategy of test-time search ("dpo-3/beam_2x4") are for `curves`, and are left out.
    """
    import matplotlib  # heavy, and only needed here

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = [m for m in results if "/" not in m]
    rounds = sum(not m.startswith(BASELINE) for m in models)  # joined by lines; baselines are not
    width = 8 + 0.6 * (len(models) - rounds)
    figure, axes = pyplot.subplots(figsize=(width, 4.5), layout="constrained")
    for index, (heading, (bench, (metric,), up)) in enumerate(COLUMNS.items()):
        points = [(i, results[m][bench][metric]) for i, m in enumerate(models)
                  if metric in results[m].get(bench, {})]  # fmt: skip
        if not points:
            continue
        shift = 0.03 * (index - len(COLUMNS) / 2)  # intervals side by side, not on top
        x, found = [i + shift for i, _ in points], [f for _, f in points]
        y = [f["value"] for f in found]
        spread = [[max(0.0, f["value"] - f["low"]) for f in found],
                  [max(0.0, f["high"] - f["value"]) for f in found]]  # fmt: skip
        style: dict[str, Any] = {"marker": "o" if up else "v", "markersize": 4}
        bars = axes.errorbar(x, y, yerr=spread, capsize=2, label=heading, linestyle="", **style)
        joined = sum(i < rounds for i, _ in points)
        axes.plot(x[:joined], y[:joined], "-" if up else "--", color=bars[0].get_color())
    axes.set_xticks(range(len(models)), [m.removeprefix(BASELINE) for m in models])
    if rounds < len(models):
        axes.axvline(rounds - 0.5, color="gray", linewidth=0.8)
        axes.tick_params(axis="x", labelrotation=20)
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("share of held-out prompts")
    title = "Dots: more is better. Triangles: less is better."
    title += " Right of the line: baselines." if rounds < len(models) else ""
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
