"""A workdir as a run leaves it, made by hand and by the run's own writers, for the report's tests.

Every text of a model, of a data set and of a judge in it is `said` with a word that names its
place: whoever looks at a report can tell what of it is there, and what a hostile text does.
"""

import json
import pathlib
from collections.abc import Callable

from stair_jax import jsonl
from stair_jax.config import default
from stair_jax.records import Answer, Candidate, Node, Pair, Prompt, Rated, Response, Tree

STEP, END = "<|Reasoning_step|>", "<|/Reasoning_step|>"
OUT, OUT_END = "<|Output|>", "<|/Output|>"
MODELS = ("base", "sft", "dpo-1")

Say = Callable[[str], str]


def plain(place: str) -> str:
    """Returns a text that names its place."""
    return f"said-{place}"


def tree(id: str, say: Say = plain) -> Tree:
    """Returns a tree of six nodes: 0.0 (value 1.5) has two whole responses, 0.1 and 0.2 none."""

    def node(tag, parent, value, visits, **more):
        fields = {"reward": None, "terminal": False, "p": 1.0, **more}
        at = len(tag.split(".")) - 1
        step = f"{STEP} {say(f'{id}-node-{tag}')} {END}" if at else ""
        if fields["terminal"]:
            step = f"{OUT} {say(f'{id}-node-{tag}')} {OUT_END}"
        return Node(
            parent=parent,
            ids=(1, 2) if at else (),
            text=step,
            depth=at,
            visits=visits,
            value_sum=value * visits,
            tag=tag,
            **fields,
        )

    prompt = Prompt(
        id=id,
        question=say(f"{id}-question"),
        type="safety",
        ground_truth=say(f"{id}-truth"),
        meta={"kind": say(f"{id}-meta")},
        before=(("system", say(f"{id}-system")),),
        prefill=say(f"{id}-prefill"),
    )
    nodes = (
        node("0", -1, 0.75, 6),
        node("0.0", 0, 1.5, 4),
        node("0.1", 0, -1.0, 1),
        node("0.2", 0, -0.5, 1, p=0.25),
        node("0.0.0", 1, 3.0, 2, terminal=True, reward=3.0),
        node("0.0.1", 1, 0.0, 1, terminal=True, reward=0.0),
    )
    return Tree(prompt=prompt, nodes=nodes, counters={"iterations": 6.0})


def pair(grown: Tree, chosen: int, rejected: int) -> Pair:
    """Returns two nodes of a tree as a pair."""
    better, worse = grown.path(chosen), grown.path(rejected)
    return Pair(
        id=f"{grown.prompt.id}/{better[-1].tag}/{worse[-1].tag}",
        question=grown.prompt.question,
        type=grown.prompt.type,
        prefix=(),
        chosen=(1, 2),
        rejected=(1, 2),
        chosen_value=better[-1].value,
        rejected_value=worse[-1].value,
        chosen_terminal=better[-1].terminal,
        rejected_terminal=worse[-1].terminal,
        chosen_text="".join(step.text for step in better),
        rejected_text="".join(step.text for step in worse),
        depth=better[-1].depth,
        before=grown.prompt.before,
        prefill=grown.prompt.prefill,
    )


def make(workdir: pathlib.Path, say: Say = plain, *, trees: int = 2) -> None:
    """Writes a finished run of one round, with as many trees."""
    _search(workdir, say, trees)
    _evaluation(workdir, say)
    _data(workdir, say)
    _judges(workdir, say)
    _facts(workdir, say)


def _search(workdir: pathlib.Path, say: Say, trees: int) -> None:
    grown = [tree(f"p{k}", say) for k in range(trees)]
    jsonl.write_jsonl(workdir / "round-1/trees/trees.jsonl", grown)
    pairs = [made for one in grown[:2] for made in (pair(one, 1, 2), pair(one, 4, 5))]
    jsonl.write_jsonl(workdir / "round-1/pairs/pairs.jsonl", pairs)
    response = Response(
        id="p0/0.0.0",
        question=say("response-question"),
        type="safety",
        ids=(1, 2),
        text=say("response-text"),
        value=3.0,
        terminal=True,
    )
    jsonl.write_jsonl(workdir / "round-1/pairs/responses.jsonl", [response])
    candidate = Candidate(
        id="c0",
        prompt="c",
        question=say("candidate-question"),
        type="safety",
        ids=(1, 2),
        text=say("candidate-text"),
        reward=0.5,
        ended=True,
    )
    jsonl.write_jsonl(workdir / "prm/responses/candidates.jsonl", [candidate])


def _evaluation(workdir: pathlib.Path, say: Say) -> None:
    for number, model in enumerate(MODELS):
        rows = [
            Answer(
                id=f"q{k}",
                benchmark="harmful",
                question=say(f"q{k}-question"),
                response=say(f"{model}-q{k}-response"),
                outcome=("compliance", "refusal")[(k < number) * 1],
                tokens=10 + k,
                score=0.25,
            )
            for k in range(3)
        ]
        jsonl.write_jsonl(workdir / "evals" / model / "harmful.jsonl", rows)
    share = {"value": 0.25, "n": 3, "low": 0.1, "high": 0.5}
    results = {model: {"harmful": {"refusal": share}} for model in MODELS}
    mine = {say("benchmark-name"): {"answered": {**share, "missing": 7, "protocol": say("judge")}}}
    results["dpo-1"] |= mine
    jsonl.write_json(workdir / "evals/results.json", results)
    text = "| model | harmful: refused |\n|---|---|\n| sft | " + say("table").replace("|", "\\|")
    jsonl.write_text(workdir / "report/table.md", f"{text} |\n\n- A note with `code`.\n")


def _data(workdir: pathlib.Path, say: Say) -> None:
    dropped = [{"id": "x", "corpus": "c", "reason": say("dropped-reason")}] * 3
    lines = "".join(json.dumps(row) + "\n" for row in dropped)
    jsonl.write_text(workdir / "data/dropped.jsonl", lines)
    jsonl.write_text(workdir / "data/card.md", say("card"))
    jsonl.write_text(workdir / "sft/preview.txt", say("preview"))


def _judges(workdir: pathlib.Path, say: Say) -> None:
    agreement = {
        "agreement": [
            {
                "prompt": "xstest",
                "disagreements": [
                    {
                        "benchmark": "harmful",
                        "request": say("disputed-request"),
                        "answer": say("disputed-answer"),
                        "verdicts": {"judge-a": say("verdict-a"), "judge-b": say("verdict-b")},
                    }
                ],
            }
        ]
    }
    jsonl.write_json(workdir / "evals/agreement.json", agreement)
    verdict = {"id": "v", "benchmark": "harmful", "judge": "judge-a", "reply": say("verdict-reply")}
    text = json.dumps(verdict) + "\n"
    jsonl.write_text(workdir / "evals/verdicts/harmful.jsonl", text)
    jsonl.write_text(workdir / "report/judges.md", f"# Judges\n\n- {say('judges-page')}\n")


def rate(workdir: pathlib.Path, ids: dict[str, tuple[float, float]], benchmark: str) -> None:
    """Writes what the run's judge says of answers, by their ids."""
    rows = [
        Rated(id=id, benchmark=benchmark, safety=safety, helpfulness=helpfulness)
        for id, (safety, helpfulness) in ids.items()
    ]
    jsonl.write_jsonl(workdir / "evals/ratings" / f"{benchmark}.jsonl", rows)


def _facts(workdir: pathlib.Path, say: Say) -> None:
    config = default()
    config.update(workdir=say("workdir"), stages="search,pairs,evaluate", rounds=1)
    jsonl.write_text(workdir / "config.json", config.to_json(indent=1))
    settings = {
        "pairs.min_value_gap": 0.5,
        "pairs.good_value_safety": 0.0,
        "pairs.max_per_prompt": 4,
        "pairs.terminal_only": False,
    }
    times = {"begun": "2026-01-01T10:00:00+00:00", "ended": "2026-01-01T11:30:00+00:00"}
    entry = {"finished": True, "settings": {}, "flags": [], "parents": {}, "inputs": {}, **times}
    lineage = {
        "round-1/trees": {**entry, "stage": "search", "hash": "aa11", "trees": 2}
        | {"passed_over": {"p9": say("passed-over")}},
        "round-1/pairs": {**entry, "stage": "pairs", "hash": "bb22", "settings": settings}
        | {"flags": ["pairs.min_value_gap"], "parents": {"round-1/trees": "aa11"}}
        | {"pairs": 4, "dropped/pairs/small_gap": 179},
        "evals/sft": {**entry, "stage": "evaluate", "hash": "cc33"},
    }
    jsonl.write_json(workdir / "lineage.json", lineage)
    rows = [
        {"stage": "sft", "step": step, "loss": 4.0 / step, "peak_memory_gb": 61.5 + step}
        for step in (1, 2, 4)
    ]
    search = {"stage": "round-1/trees", "step": 2, "trees": 2.0, "trees_per_hour": 7374.4}
    rows.append({**search, "engine/busy_share": 0.913, "time": 1767260000.0})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    jsonl.write_text(workdir / "metrics.jsonl", text)
