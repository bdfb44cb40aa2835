"""What is in a training set: counts, lengths, and a page of them for people."""

import collections
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from stair_jax.data.seeds import Seed
from stair_jax.data.teaching.collect import KEPT

TOKENS_OF = 1_000  # rows, the first: their order is drawn; counting all would take minutes
_TEXTS: dict[str, Callable[[Seed], str]] = {
    "prompt": lambda seed: seed.prompt,
    "response": lambda seed: seed.response,
    "chosen": lambda seed: seed.chosen,
    "rejected": lambda seed: seed.rejected,
}
_FIGURES = ("least", "median", "most")
_WORDS = ("sources", "types")


def facts(
    seeds: Sequence[Seed], texts: Sequence[str], tokens: Callable[[Sequence[str]], list[int]]
) -> dict[str, Any]:
    """Returns what a set holds: rows, by source and type, and lengths of its texts.

    Args:
      seeds: of the set, one or more.
      texts: which of prompt, response, chosen and rejected its rows have.
      tokens: counts those of texts.
    """
    lengths: dict[str, Any] = {}
    for name in texts:
        read = _TEXTS[name]
        some = [read(seed) for seed in seeds[:TOKENS_OF]]
        lengths[name] = {
            "characters": _spread(len(read(seed)) for seed in seeds),
            "tokens": _spread(tokens(some)),
            "tokens_of": len(some),
        }
    return {
        "rows": len(seeds),
        "sources": _counts(seed.source for seed in seeds),
        "types": _counts(seed.type for seed in seeds),
        "lengths": lengths,
    }


def _counts(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(collections.Counter(words).items()))


def _spread(lengths: Iterable[int]) -> dict[str, float]:
    found = list(lengths)
    figures = map(float, (min(found), statistics.median(found), max(found)))
    return dict(zip(_FIGURES, figures, strict=True))


def page(manifest: Mapping[str, Any]) -> str:
    """Returns the card of the sets of a manifest, in Markdown."""
    seed, recipe = manifest["seed"], manifest["recipe"]
    lines = [
        f"# Data of the recipe `{recipe}`",
        "",
        f"Made with seed {seed}; settings, files and hashes are in `manifest.json`.",
        "",
        "## Sets",
        "",
        "| set | rows | by source | by type |",
        "|---|---|---|---|",
    ]
    for name, one in manifest["sets"].items():
        told = " | ".join(_told(one[word]) for word in _WORDS)
        lines.append(f"| `{name}` | {one['rows']} | {told} |")
    lines += ["", "## Lengths", "", "Least, median, most.", ""]
    lines += ["| set | text | characters | tokens | tokens counted of |", "|---|---|---|---|---|"]
    for name, one in manifest["sets"].items():
        for text, how in one["lengths"].items():
            spreads = " | ".join(_range(how[unit]) for unit in ("characters", "tokens"))
            lines.append(f"| `{name}` | {text} | {spreads} | {how['tokens_of']} rows |")
    lines += ["", "## Sources", "", "| data set | licence | read from | usable rows |"]
    lines.append("|---|---|---|---|")
    for one in manifest["corpora"].values():
        places = ", ".join(one["from"])
        lines.append(f"| {one['title']} | {one['licence']} | {places} | {one['usable']} |")
    if absent := manifest["corpora_absent"]:
        lines += ["", f"Made without {', '.join(absent)}, which lay nowhere."]
    lines += ["", *_left_out(manifest)]
    lines += ["", *_taught(manifest["taught"]), *_compared(manifest), *_mended(manifest)]
    return "\n".join(lines) + "\n"


def _left_out(manifest: Mapping[str, Any]) -> list[str]:
    """Says how many rows made none of a set, by reason."""
    lines = ["## Left out", "", "| data set | reason | rows |", "|---|---|---|"]
    for one in manifest["corpora"].values():
        for reason, count in one["dropped"].items():
            lines.append(f"| {one['title']} | {_cell(reason)} | {count} |")
    for reason, count in manifest["not_sampled"].items():
        lines.append(f"| responses of the model | {_cell(reason)} | {count} |")
    for reason, count in (manifest["taught"] or {"dropped": {}})["dropped"].items():
        lines.append(f"| replies of the teacher | {_cell(reason)} | {count} |")
    for one in manifest["removed"]:
        reason = f"overlaps with {one['benchmark']} ({one['how']})"
        lines.append(f"| {one['source']} | {reason} | {one['rows']} |")
    return lines


def _taught(taught: Mapping[str, Any] | None) -> list[str]:
    """Says what a teacher answered, and what was kept of it."""
    if not taught:
        return []
    tried = taught["attempts"]
    heads = [f"attempt {number}" for number in range(1, len(tried) + 1)]
    kept = ", ".join(
        f"{taught['kept'].get(kind, 0)} of {count} {kind} prompts"
        for kind, count in taught["prompts"].items()
    )
    lines = [
        "## Answers of the teacher",
        "",
        f"`{taught['teacher']}` answered {kept} with a response that was kept. Its replies:",
        "",
        f"| what became of a reply | {' | '.join(heads)} |",
        f"|---|{'---|' * len(heads)}",
    ]
    reasons = dict.fromkeys(reason for one in tried for reason in one)
    for reason in sorted(reasons, key=lambda reason: reason != KEPT):
        counts = " | ".join(str(one.get(reason, 0)) for one in tried)
        lines.append(f"| {_cell(reason)} | {counts} |")
    steps = ", ".join(f"{count} with {number}" for number, count in taught["steps"].items())
    lines += ["", f"Steps of the responses, the analysis included: {steps}."]
    said = taught["refusals"]
    for words, count in list(said["most"].items())[:1]:
        lines += [
            "",
            f"{said['rows']} responses refuse; wordings: {said['wordings']}, the most frequent"
            f" {count} times: {words.splitlines()[0]}",
        ]
    return [*lines, ""]


def _compared(manifest: Mapping[str, Any]) -> list[str]:
    """Says which benchmarks the seeds were compared with."""
    compared, absent = manifest["benchmarks"], manifest["benchmarks_absent"]
    found = []
    if compared:
        told = ", ".join(f"{name} ({count})" for name, count in compared.items())
        found += [f"Compared with the prompts of {told}.", ""]
    else:
        found += ["**Not compared with any benchmark.**", ""]
    if absent:
        found += [
            "Not compared with these, so that the sets may overlap with them:",
            "",
            *(f"- {name}: {_cell(str(why))}" for name, why in absent.items()),
            "",
        ]
    return found


def _mended(manifest: Mapping[str, Any]) -> list[str]:
    """Says which texts are not as they were."""
    lines = [
        f"- {one['title']}: {reason}, in {count} rows"
        for one in manifest["corpora"].values()
        for reason, count in one["mended"].items()
    ]
    return ["## Texts that were mended", "", *lines] if lines else []


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _range(spread: Mapping[str, float]) -> str:
    return ", ".join(f"{spread[name]:.0f}" for name in _FIGURES)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
