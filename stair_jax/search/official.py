"""Trees to and from the official file format (thu-ml/STAIR: one JSON list of trees a file).

There a tree is an object with `tree_size` and an entry a node, keyed by its tag. It knows neither
the prompt's type nor token ids, so these are given when a file is read.
"""

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from stair_jax import jsonl
from stair_jax.records import Node, Prompt, Tree

NODE_KEYS = ("trajectory", "is_terminal", "depth", "visited_times", "reward", "value_sum", "p")


def to_official(tree: Tree) -> dict[str, Any]:
    """Returns the tree as one object of the official format, level by level."""
    entries: dict[str, Any] = {"tree_size": len(tree.nodes)}
    for i in sorted(range(len(tree.nodes)), key=lambda i: _place(tree.nodes[i].tag)):
        node = tree.nodes[i]
        entries[node.tag] = {
            "prompt": tree.prompt.question,
            "trajectory": [step.text for step in tree.path(i)],
            "is_terminal": node.terminal,
            "is_valid_selected": False,  # a flag of the search under way, which has ended
            "depth": node.depth,
            "visited_times": node.visits,
            "reward": node.reward,
            "value_sum": node.value_sum,
            "true_value": node.value if node.visits else 0.0,
            "p": node.p,
        }
    return entries


def from_official(
    entries: Mapping[str, Any],
    *,
    id: str,
    type: str,
    encode: Callable[[str], Sequence[int]] | None = None,
) -> Tree:
    """Builds a tree from one object of the official format; `encode` gives a step's token ids.

    Raises:
      ValueError: for a tree without a root, a node without its parent, or one that lacks a key.
    """
    nodes: list[Node] = []
    index: dict[str, int] = {}
    tags = sorted((tag for tag in entries if tag != "tree_size"), key=_place)
    if not tags or tags[0] != "0":
        raise ValueError(f"tree {id}: first node {tags[:1]} found, the root '0' expected")
    for tag in tags:
        entry, parent = entries[tag], tag.rpartition(".")[0]
        if missing := [key for key in NODE_KEYS if key not in entry]:
            raise ValueError(f"tree {id}, node {tag}: no {missing[0]!r}, expected {NODE_KEYS}")
        if parent and parent not in index:
            raise ValueError(f"tree {id}, node {tag}: its parent {parent!r} is not in the tree")
        text = entry["trajectory"][-1] if parent else ""
        index[tag] = len(nodes)
        nodes.append(
            Node(
                parent=index.get(parent, -1),
                ids=tuple(encode(text)) if encode and text else (),
                text=text,
                depth=entry["depth"],
                visits=entry["visited_times"],
                value_sum=float(entry["value_sum"]),
                reward=None if entry["reward"] is None else float(entry["reward"]),
                terminal=entry["is_terminal"],
                p=float(entry["p"]),
                tag=tag,
            )
        )
    question = entries["0"].get("prompt", "")
    return Tree(prompt=Prompt(id=id, question=question, type=type), nodes=tuple(nodes))


def write(path: str | os.PathLike, trees: Iterable[Tree]) -> None:
    """Writes trees as one official file, whole or not at all."""
    jsonl.write_json(path, [to_official(tree) for tree in trees])


def read(
    path: str | os.PathLike,
    *,
    type_of: Callable[[str], str],
    encode: Callable[[str], Sequence[int]] | None = None,
) -> list[Tree]:
    """Reads an official file; `type_of` tells a question's type, ids are the trees' positions.

    Raises:
      ValueError: where the file is not a list of trees, naming it.
    """
    data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    if not isinstance(data, list):
        raise ValueError(f"{path}: {type(data).__name__} found, a list of trees expected")
    return [
        from_official(
            entries, id=str(i), type=type_of(entries.get("0", {}).get("prompt", "")), encode=encode
        )
        for i, entries in enumerate(data)
    ]


def _place(tag: str) -> tuple[int, tuple[int, ...]]:
    """Sorts tags by depth, then as numbers."""
    slots = tuple(map(int, tag.split(".")))
    return len(slots), slots
