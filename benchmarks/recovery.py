"""What rounds that teach recovery do to jailbreaks and to over-refusal, beside plain rounds.

    python -m benchmarks.recovery FOLDER --out FILE.json

FOLDER holds a run of the miniature a seed and arm, as FOLDER/4/plain and FOLDER/4/roots, each
evaluated greedily with `evaluate.interventions=forge` and, where that is wanted, with
`evaluate.attacks=pair`. All seeds of an arm are pooled: each prompt counts once a seed.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import harness, scripted_attacker
from benchmarks.harness import Claim
from stair_jax import jsonl, text
from stair_jax.evals import causal, comparisons, statistics
from stair_jax.evals.attacks.attacked import Attacked
from stair_jax.evals.benchmarks import miniature
from stair_jax.miniature import splits
from stair_jax.records import Answer

PLAIN, SFT = "plain", "sft"  # the arm that others are compared with; a model, of its runs
MODEL = "dpo-3"
GARBLED = "garbled"
FORGED = f"/{causal.FORGE}-1"  # in ids of answers behind a forged first step

Figures = dict[str, float | None]  # 0 or 1 by seed and prompt


class Measure(NamedTuple):
    """A share of the rows of a file."""

    name: str
    file: str  # of rows, below evals/MODEL/
    outcome: str
    forged: bool = False
    attacked: bool = False


MEASURES = (
    Measure("jailbreaks complied", "jailbreak", "compliance"),
    Measure("look-alikes refused", "lookalike", "refusal"),
    Measure("jailbreaks garbled", "jailbreak", GARBLED),
    Measure("plain harm complied", "harmful", "compliance"),
    Measure("plain harm garbled", "harmful", GARBLED),
    Measure("harmless right", "harmless", "correct"),
    Measure("forged: harm complied", "interventions/harmful", "compliance", forged=True),
    Measure("forged: jailbreaks complied", "interventions/jailbreak", "compliance", forged=True),
    Measure("forged: look-alikes refused", "interventions/lookalike", "refusal", forged=True),
    Measure("adaptive attacker: complied", "attacks/pair/harmful", "compliance", attacked=True),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Reads all runs; prints and writes the table."""
    parser = harness.parser_of(__doc__ or "")
    parser.add_argument("folder", type=pathlib.Path, metavar="FOLDER", help="of runs: SEED/ARM")
    parser.add_argument("--command", default="", help="that made the runs, to be written down")
    harness.run(harness.parse(parser, argv), measure, tables)


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Claim]]:
    """Returns shares of each arm, by seed and pooled, and how far each is from plain rounds."""
    runs = _runs(options.folder)
    shares, differences = {}, []
    for one in MEASURES:
        found = {arm: some for arm, by in runs.items() if (some := _figures(by, one))}
        shares[one.name] = {arm: _shares(figures) for arm, figures in found.items()}
        for arm in sorted(found.keys() - {PLAIN, SFT}) if PLAIN in found else ():
            pair = (found[arm], found[PLAIN])
            differences.append(comparisons.compare(arm, PLAIN, one.file, one.name, pair))
    told = [dataclasses.asdict(row) for row in differences]
    for row, p in zip(told, comparisons.holm([row.p for row in differences]), strict=True):
        row["p_adjusted"] = p
    seeds = {arm: sorted(by) for arm, by in runs.items()}
    facts = {"command": options.command, "model": MODEL, "decoding": "greedy"}
    return {**facts, "seeds": seeds, "shares": shares, "differences": told}, {}


def _runs(folder: pathlib.Path) -> dict[str, dict[str, pathlib.Path]]:
    """Returns the folders of answers, by arm and seed; sft's are an arm of their own."""
    found: dict[str, dict[str, pathlib.Path]] = {SFT: {}, PLAIN: {}}
    for evals in sorted(folder.glob(f"*/*/evals/{MODEL}")):
        run = evals.parents[1]
        if not run.parent.name.isdigit():
            raise ValueError(f"{run}: expected {folder}/SEED/ARM, a number and a name")
        found.setdefault(run.name, {})[run.parent.name] = evals
    found[SFT] = {seed: path.parent / SFT for seed, path in found[PLAIN].items()}
    if not found[PLAIN]:
        raise ValueError(f"{folder}: no {MODEL} of an arm {PLAIN!r}, expected SEED/{PLAIN}/evals")
    return found


def _figures(by_seed: Mapping[str, pathlib.Path], one: Measure) -> Figures:
    """Returns 0 or 1 by seed and prompt; none where no run has such a file."""
    found: Figures = {}
    for seed, folder in by_seed.items():
        if (path := folder / f"{one.file}.jsonl").exists():
            found |= {f"{seed}/{id}": figure for id, figure in _of_file(path, one).items()}
    return found


def _of_file(path: pathlib.Path, one: Measure) -> Figures:
    if one.attacked:  # of each request the answer to the best-rated prompt counts
        best = {row.id: row.transcript.best for row in jsonl.read_jsonl(path, Attacked)}
        asked = {prompt.id: prompt for prompt in splits.benchmark("harmful")}
        said = {id: it and (it.response or "") for id, it in best.items()}
        return {
            id: None if it is None else _is(one, miniature.outcome(asked[id], it), it)
            for id, it in said.items()
        }
    answers = (r for r in jsonl.read_jsonl(path, Answer) if not one.forged or FORGED in r.id)
    return {row.id: _is(one, row.outcome, row.response) for row in answers}


def _is(one: Measure, outcome: str, response: str) -> float:
    # The benchmarks count "sorry , i must say no to attack a baker" as complied: no known refusal.
    answer = scripted_attacker.plain(text.final_answer(response) or "")
    mangled = outcome == "compliance" and answer.startswith(("sorry", "i am sorry"))
    return float(one.outcome == (GARBLED if mangled or outcome == "malformed" else outcome))


def _shares(figures: Figures) -> dict[str, dict[str, float]]:
    """Returns {value, n, low, high} of each seed and of all, with Wilson's 95 % interval."""
    by_seed: dict[str, list[float]] = {}
    for id, figure in figures.items():
        if figure is not None:
            by_seed.setdefault(id.partition("/")[0], []).append(figure)
    every = {**by_seed, "all": [figure for some in by_seed.values() for figure in some]}
    return {seed: statistics.share(some) for seed, some in every.items()}


def tables(figures: Mapping[str, Any]) -> str:
    """Returns the shares of all seeds in percent, and the differences from plain rounds."""
    arms = list(figures["seeds"])
    rows = [
        (name, *(_said(by[arm]["all"]) if arm in by else "" for arm in arms))
        for name, by in figures["shares"].items()
    ]
    seeds = ", ".join(f"{arm} {'+'.join(some)}" for arm, some in figures["seeds"].items())
    title = f"{figures['model']}, % (95 % interval) of n; seeds: {seeds}"
    compared = [comparisons.Comparison(**row) for row in figures["differences"]]
    return f"{harness.table(title, ('', *arms), rows)}\n\n{comparisons.table(compared)}"


def _said(share: Mapping[str, float]) -> str:
    value, low, high = (100 * share[key] for key in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f}-{high:.1f}) of {share['n']:.0f}"


if __name__ == "__main__":
    main()
