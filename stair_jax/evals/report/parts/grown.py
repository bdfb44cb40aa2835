"""The trees of a round and the pairs that were made of them, as rows that a page shows."""

import collections
import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stair_jax.evals.report.parts import why
from stair_jax.evals.report.parts.files import Files
from stair_jax.evals.report.parts.shards import Source, Writer

_COLUMNS = ("parent", "text", "depth", "visits", "value_sum", "reward", "terminal", "p", "tag")
_TREE_FACETS, _TREE_NUMBERS = ("type", "pairs"), ("nodes", "best reward", "worst reward")
_PAIR_FACETS, _PAIR_NUMBERS = ("type", "depth"), ("gap", "chosen value", "rejected value")


@dataclasses.dataclass
class Round:
    """What a round's trees and pairs come to.

    Attributes:
      number: of the round.
      trees: whole ones.
      nodes: of all of them.
      rewards: of whole responses that were judged, by type of prompt.
      pairs: that were made.
      with_pairs: trees that gave one.
      alike: trees of several judged responses that all have the same reward.
      gaps: of the values of each pair.
      depths: how many pairs there are of steps of a depth.
      waiting: results that are kept for trees which still grow.
    """

    number: str
    trees: int = 0
    nodes: int = 0
    rewards: dict[str, list[float]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    pairs: int = 0
    with_pairs: int = 0
    alike: int = 0
    gaps: list[float] = dataclasses.field(default_factory=list)
    depths: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    waiting: int = 0


def rounds(
    files: Files, folder: pathlib.Path, lineage: Mapping[str, Any]
) -> Iterator[tuple[Round, list[Source]]]:
    """Yields each round with what can be shown of it, in order.

    Args:
      files: of the workdir.
      folder: that the rows are written to.
      lineage: of the run, for the settings that pairs were made with.
    """
    found = [path for path in files.workdir.glob("round-*") if path.is_dir()]
    for path in sorted(found, key=_order):
        yield _Reading(files, folder, path, lineage).read()


def _order(path: pathlib.Path) -> tuple[int, str]:
    number = path.name.removeprefix("round-")
    return (int(number) if number.isdecimal() else 0), path.name


class _Reading:
    """One round: trees go through once, each with its pairs."""

    def __init__(
        self, files: Files, folder: pathlib.Path, path: pathlib.Path, lineage: Mapping[str, Any]
    ):
        number = path.name.removeprefix("round-")
        key = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in number)
        self._files, self._path = files, path
        self._round = Round(number)
        entry = lineage.get(f"{path.name}/pairs")
        self._settings = entry.get("settings", {}) if isinstance(entry, dict) else {}
        tree = Source(
            id=f"trees-{key}",
            group="trees",
            title=f"Round {number}",
            facets=_TREE_FACETS,
            numbers=_TREE_NUMBERS,
        )
        pair = Source(
            id=f"pairs-{key}",
            group="pairs",
            title=f"Round {number}",
            facets=_PAIR_FACETS,
            numbers=_PAIR_NUMBERS,
        )
        self._trees, self._pairs = Writer(folder, tree), Writer(folder, pair)

    def read(self) -> tuple[Round, list[Source]]:
        """Returns the round and its sources; a source without rows is left out."""
        waiting: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
        for pair in self._files.rows(self._path / "pairs" / "pairs.jsonl", _checked_pair):
            waiting[pair["id"].rsplit("/", 2)[0]].append(pair)
        for tree in self._files.rows(self._path / "trees" / "trees.jsonl", tree_of):
            self._add(tree, waiting.pop(tree["id"], []))
        for rows in waiting.values():  # of trees that are gone, or pairs that were made by hand
            for pair in rows:
                self._add_pair(pair, None)
        log = self._path / "trees" / "in_flight.log"
        self._round.waiting = sum(1 for _ in self._files.rows(log, lambda row: row["tree"]))
        made = [self._trees.close(), self._pairs.close()]
        return self._round, [source for source in made if source.count]

    def _add(self, tree: dict[str, Any], pairs: Sequence[dict[str, Any]]) -> None:
        nodes, found = tree["nodes"], self._round
        rewards = [
            reward
            for reward, terminal in zip(nodes["reward"], nodes["terminal"], strict=True)
            if terminal and isinstance(reward, int | float) and math.isfinite(reward)
        ]
        found.trees += 1
        found.nodes += len(nodes["tag"])
        found.rewards[tree["type"]] += rewards
        found.with_pairs += bool(pairs)
        found.alike += len(rewards) > 1 and len(set(rewards)) == 1
        tree["pairs"] = [self._add_pair(pair, tree) for pair in pairs]
        self._trees.add(
            tree["id"],
            tree["question"],
            [tree["type"], "gave pairs" if pairs else "gave none"],
            [len(nodes["tag"]), max(rewards, default=None), min(rewards, default=None)],
            tree,
        )

    def _add_pair(self, pair: dict[str, Any], tree: dict[str, Any] | None) -> dict[str, Any]:
        """Takes a pair; returns what its tree shows of it."""
        chosen, rejected = pair["id"].rsplit("/", 2)[1:]
        reasons = why.reasons(pair, tree, self._settings)
        gap = pair["chosen_value"] - pair["rejected_value"]
        found = self._round
        found.pairs += 1
        found.gaps.append(gap)
        found.depths[pair["depth"]] += 1
        self._pairs.add(
            pair["id"],
            f"{chosen} over {rejected}: {pair['question']}",
            [pair["type"], f"depth {pair['depth']}"],
            [gap, pair["chosen_value"], pair["rejected_value"]],
            {
                "question": pair["question"],
                "before": pair.get("before", []),
                "prefill": pair.get("prefill", ""),
                **why.texts(pair, tree),
                "tags": [chosen, rejected],
                "values": [pair["chosen_value"], pair["rejected_value"]],
                "why": reasons,
            },
        )
        return {"chosen": chosen, "rejected": rejected, "gap": gap, "why": reasons}


def _checked_pair(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row of pairs.jsonl without its token ids; raises where it is none."""
    if len(row["id"].rsplit("/", 2)) != 3 or not isinstance(row["depth"], int):
        raise ValueError("id")
    for key in ("question", "type", "chosen_text", "rejected_text"):
        if not isinstance(row[key], str):
            raise TypeError(key)
    for key in ("chosen_value", "rejected_value"):
        float(row[key])
    return {key: x for key, x in row.items() if key not in ("prefix", "chosen", "rejected")}


def tree_of(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a line of trees.jsonl as a page shows it; raises where it is no tree.

    Nodes may be columns, or a list of objects as in version 0.1. Token ids stay behind.
    """
    prompt, nodes = row["prompt"], row["nodes"]
    if isinstance(nodes, list):
        nodes = {name: [node[name] for node in nodes] for name in _COLUMNS}
        nodes["tokens"] = [len(node["ids"]) for node in row["nodes"]]
    columns = {name: list(nodes[name]) for name in (*_COLUMNS, "tokens")}
    count = len(columns["tag"])
    if {len(column) for column in columns.values()} != {count}:
        raise ValueError("columns of different lengths")
    for place, parent in enumerate(columns["parent"]):
        if not isinstance(parent, int) or not -1 <= parent < max(place, 1) or parent == place:
            raise ValueError("a parent that is not before its child")
    sums = columns.pop("value_sum")
    columns["value"] = [
        total / visits if visits else None
        for total, visits in zip(sums, columns["visits"], strict=True)
    ]
    for name in ("question", "type", "id"):
        if not isinstance(prompt[name], str):
            raise TypeError(name)
    return {
        "id": prompt["id"],
        "question": prompt["question"],
        "type": prompt["type"],
        "before": prompt.get("before", []),
        "prefill": prompt.get("prefill", ""),
        "truth": prompt.get("ground_truth"),
        "meta": dict(prompt.get("meta") or {}),
        "counters": dict(row.get("counters") or {}),
        "nodes": columns,
    }
