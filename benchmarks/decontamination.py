"""Decontamination: planted overlaps found and clean rows kept, real overlaps, seconds and memory.

Rows are questions of GSM8K's training set, and prompts of all benchmarks whose files lie below
`--data` are planted in them, GSM8K's own left out: what is removed of the rows is an error. Every
kind of overlap gets prompts of its own, drawn by seed. "words n %" replaces, drops or adds a word
at so many places, at least one, by words of the rows. Then real data is compared, and what was
removed is listed; and rows of shuffled sentences are timed against everything.
"""

import argparse
import random
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import harness
from benchmarks.harness import Claim
from stair_jax import config as config_lib
from stair_jax.data import decontaminate, sources
from stair_jax.evals import statistics
from stair_jax.evals.benchmark import registered
from stair_jax.run import benchmarks

Prompts = Mapping[str, Sequence[str]]  # by benchmark
Edit = Callable[[str, random.Random, Sequence[str]], str]  # of a prompt; the last are words

WIDTH = 300  # characters of a text that is listed


class Sizes(NamedTuple):
    """How much is measured."""

    rows: int = 5_000  # clean ones
    planted: int = 200  # of each kind
    timed: int = 50_000


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the tables and the claims, writes every figure."""
    parser = harness.parser_of(__doc__ or "")
    parser.add_argument(
        "--data",
        required=True,
        metavar="FOLDER",
        help="the benchmarks' files in their authors' layout, as config.data.root, and GSM8K's"
        " training set",
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    for name, value in Sizes()._asdict().items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"(default: {value})")
    harness.run(harness.parse(parser, argv), measure, tables)


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Claim]]:
    """Returns all figures and what is claimed of them."""
    known = prompts_below(options.data)
    rows = [
        (row["question"], row["answer"])
        for _, row in sources.read(f"{options.data}/gsm8k/train.jsonl")
    ]
    if "gsm8k" not in known or len(known) < 2 or len(rows) < options.rows:
        raise ValueError(
            f"--data: {options.data} has {len(rows)} rows and {sorted(known)}, expected at least"
            f" {options.rows} rows, gsm8k and another benchmark"
        )
    draw = random.Random(options.seed)
    questions = [question for question, _ in rows]
    others = {name: prompts for name, prompts in known.items() if name != "gsm8k"}
    speed = timed(rows, known, options.timed, draw)  # first: memory is the peak so far
    harness.say("timed; planted overlaps next")
    planted = plant(draw.sample(questions, options.rows), others, options.planted, draw)
    harness.say("planted overlaps counted; real data next")
    figures = {
        "prompts": {name: len(prompts) for name, prompts in known.items()},
        "planted": planted,
        "real": real(questions, known),
        "timed": speed,
        "machine": harness.machine("datasketch"),
    }
    return figures, claims_of(planted)


def prompts_below(folder: str) -> dict[str, list[str]]:
    """Returns the prompts of every registered benchmark of which there is a file in a folder."""
    found = {}
    for name, benchmark in registered().items():
        if not benchmark.file:
            continue
        config = config_lib.default()
        config.data.root = folder
        config.evaluate.benchmarks = name
        try:
            (one,) = benchmarks.of(config)
        except ValueError as error:
            harness.say(f"left out: {error}")
            continue
        found[name] = [
            "\n".join([*(content for _, content in prompt.before), prompt.question])
            for prompt in one.prompts
        ]
    return found


def plant(
    rows: Sequence[str], known: Prompts, count: int, draw: random.Random
) -> dict[str, dict[str, Any]]:
    """Returns, for each kind of overlap, what was found of the prompts that were planted so.

    Kept rows and the planted texts are compared at once. Prompts of fewer than `LEAST` words are
    planted whole only.
    """
    words = sorted({word for row in rows for word in row.split()})
    every = sorted({prompt for prompts in known.values() for prompt in prompts})
    every = [
        prompt for prompt in every if len(decontaminate.words_of(prompt)) >= decontaminate.LEAST
    ]
    # These differ by the name of a group: too few words of their own for a near copy.
    templates = {x for name in known if name.startswith("decodingtrust") for x in known[name]}
    texts, kinds = {f"row {number}": row for number, row in enumerate(rows)}, {}
    for kind, edit in EDITS.items():
        for number, prompt in enumerate(draw.sample(every, count)):
            key = f"{kind} {number}"
            texts[key], kinds[key] = edit(prompt, draw, words), (kind, prompt)
    removed = decontaminate.remove(texts, known).removed
    found: dict[str, dict[str, Any]] = {}
    for kind in EDITS:
        lengths = {key: _length(prompt) for key, (one, prompt) in kinds.items() if one == kind}
        found[kind] = {"all": _shares(list(lengths), removed)}
        for length in ("short", "long"):
            keys = [key for key, one in lengths.items() if one == length]
            found[kind][length] = _shares(keys, removed)
        found[kind]["not DecodingTrust"] = _shares(
            [key for key in lengths if kinds[key][1] not in templates], removed
        )
    wrong = [hit.how for key, hit in removed.items() if key not in kinds]
    return found | {"clean rows": {"n": len(rows), "removed": len(wrong), "how": wrong}}


def _length(prompt: str) -> str:
    return "short" if len(decontaminate.words_of(prompt)) < 13 else "long"


def _shares(keys: Sequence[str], removed: Mapping[str, decontaminate.Hit]) -> dict[str, Any]:
    hits = [removed[key].how for key in keys if key in removed]
    share: dict[str, Any] = statistics.share([float(key in removed) for key in keys])
    if not keys:
        share["value"] = None  # not a number is no figure in a file
    return {**share, "how": {how: hits.count(how) for how in sorted(set(hits))}}


def _as_it_is(prompt: str, draw: random.Random, words: Sequence[str]) -> str:
    return prompt


def _respelt(prompt: str, draw: random.Random, words: Sequence[str]) -> str:
    """Other cases, marks after some words, marks of the prompt left out, other white space."""
    return "".join(
        f"{draw.choice([str.upper, str.lower, str.title])(word)}{draw.choice(['', ',', '!', ' -'])}"
        f"{draw.choice([' ', '  ', chr(10)])}"
        for word in re.sub(r"[^\w\s'\u2019]", " ", prompt).split()
    )


def _embedded(prompt: str, draw: random.Random, words: Sequence[str]) -> str:
    before, after = (" ".join(draw.sample(words, draw.randint(5, 60))) for _ in range(2))
    return f"{before}. {prompt}\n{after}"


def _edited(share: float) -> Edit:
    def edit(prompt: str, draw: random.Random, words: Sequence[str]) -> str:
        found = [[word] for word in prompt.split()]
        for place in draw.sample(range(len(found)), max(1, round(share * len(found)))):
            new = draw.choice(words)
            found[place] = draw.choice([[new], [], [*found[place], new]])
        return " ".join(word for place in found for word in place)

    return edit


EDITS: dict[str, Edit] = {
    "exact": _as_it_is,
    "case and punctuation": _respelt,
    "embedded": _embedded,
    "words 5 %": _edited(0.05),
    "words 10 %": _edited(0.10),
    "words 20 %": _edited(0.20),
}


def real(questions: Sequence[str], known: Prompts) -> dict[str, Any]:
    """Returns how much is removed of real data that a person would train on; prints the texts."""
    compared: dict[str, tuple[Iterable[str], Prompts]] = {
        "GSM8K train against GSM8K test": (questions, {"gsm8k": known["gsm8k"]}),
        "GSM8K train against all other benchmarks": (questions, _but("gsm8k", known)),
        "AdvBench against JailbreakBench's goals": (
            known.get("advbench", ()),
            {"jailbreakbench": known["jailbreakbench"]} if "jailbreakbench" in known else {},
        ),
        "XSTest against all other benchmarks": (
            [text for name in sorted(known) if name.startswith("xstest") for text in known[name]],
            _but("xstest", known),
        ),
    }
    return {
        name: _listed(name, list(texts), against) for name, (texts, against) in compared.items()
    }


def _but(name: str, known: Prompts) -> Prompts:
    return {one: prompts for one, prompts in known.items() if not one.startswith(name)}


def _listed(name: str, texts: Sequence[str], against: Prompts) -> dict[str, Any]:
    keyed = {str(number): text for number, text in enumerate(texts)}
    found = decontaminate.remove(keyed, against)
    counts: dict[str, int] = {}
    for (_, how), count in found.counts.items():
        counts[how] = counts.get(how, 0) + count
    # Printed only: texts of other people's data have no place in a file of figures.
    for key, hit in found.removed.items():
        print(f"\n{name}: {hit.how}, {hit.benchmark}\n  {keyed[key][:WIDTH]!r}")
        print(f"  {hit.prompt[:WIDTH]!r}")
    return {"texts": len(texts), "removed": len(found.removed), "how": counts}


def timed(
    rows: Sequence[tuple[str, str]], known: Prompts, count: int, draw: random.Random
) -> dict[str, Any]:
    """Returns seconds and memory of so many texts of eight sentences against all prompts."""
    sentences = [part for row in rows for text in row for part in re.split(r"(?<=\.)\s+", text)]
    texts = {str(number): " ".join(draw.choices(sentences, k=8)) for number in range(count)}
    before = _peak_mb()
    with harness.Watch() as indexing:
        index = decontaminate.PromptIndex(known)
    begun = time.process_time()
    with harness.Watch() as comparing:
        hits = [index.hit(text) for text in texts.values()]
    return {
        "texts": count,
        "words": sum(len(text.split()) for text in texts.values()) / max(1, count),
        "prompts": sum(map(len, known.values())),
        "index_seconds": indexing.seconds,
        "seconds": comparing.seconds,
        "cpu_seconds": time.process_time() - begun,  # a neighbour makes the others longer
        "others": comparing.others,
        "more_memory_mb": _peak_mb() - before,
        "removed": sum(hit is not None for hit in hits),
    }


def _peak_mb() -> float:
    unit = 1024 if sys.platform == "darwin" else 1  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit / 1024


def claims_of(planted: Mapping[str, Mapping[str, Any]]) -> dict[str, Claim]:
    """Returns what must hold of planted overlaps."""
    whole = ("exact", "case and punctuation", "embedded")
    clean = planted["clean rows"]["removed"]
    claims = {f"{kind}: found": Claim(planted[kind]["all"]["value"], "==", 1.0) for kind in whole}
    return {**claims, "clean rows removed": Claim(clean, "==", 0)}


def tables(figures: Mapping[str, Any]) -> str:
    """Returns the figures as tables."""
    planted = [
        (kind, length, one["n"], one["value"], one["low"], one["high"], harness.brief(one["how"]))
        for kind, lengths in figures["planted"].items()
        if kind != "clean rows"
        for length, one in lengths.items()
    ]
    compared = [(name, *list(one.values())[:2]) for name, one in figures["real"].items()]
    columns = ("planted", "prompts", "n", "found", "low", "high", "how")
    return "\n".join(
        [
            harness.table("Recall of planted overlaps, 95 % intervals", columns, planted),
            harness.table("Real data", ("what", "texts", "removed"), compared),
            "",
            harness.brief(figures["timed"]),
        ]
    )


if __name__ == "__main__":
    main()
