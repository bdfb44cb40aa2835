"""Why two trajectories of a tree became a preference pair, and where they part."""

import itertools
from collections.abc import Mapping
from typing import Any

from stair_jax.text import OUTPUT_END, STEP_END

Setting = Mapping[str, Any]


def reasons(
    pair: Mapping[str, Any], tree: Mapping[str, Any] | None, settings: Setting
) -> list[str]:
    """Returns the rules that a pair passed, a sentence each, with its numbers and the settings'.

    The rules are those of `search.pairs`.

    Args:
      pair: a row of pairs.jsonl.
      tree: that it is from, as `grown.tree_of` gives it; None where it is not there.
      settings: that the pairs were made with, by dotted key; {} where they are not known.
    """
    chosen, rejected = pair["id"].rsplit("/", 2)[1:]
    better, worse = pair["chosen_value"], pair["rejected_value"]
    whole = settings.get("pairs.terminal_only")
    said = [
        f"{chosen} has the value {better:.2f}{_visits(tree, chosen, pair['chosen_terminal'])},"
        f" {rejected} has {worse:.2f}{_visits(tree, rejected, pair['rejected_terminal'])}."
    ]
    kind = pair["type"] if pair["type"] == "safety" else "helpfulness"
    good, gap = settings.get(f"pairs.good_value_{kind}"), settings.get("pairs.min_value_gap")
    if gap is not None and whole and good is not None:
        said.append(
            f"Whole responses: {better:.2f} is good, for it is at least {good:g}"
            f" (pairs.good_value_{kind}), and {worse:.2f} is bad, for it is at most {good - gap:g}"
            " (that less pairs.min_value_gap)."
        )
    elif gap is not None:
        said.append(
            f"The gap of {better - worse:.2f} is more than {gap:g} (pairs.min_value_gap)"
            + (
                f", and {better:.2f} is at least {good:g} (pairs.good_value_{kind})."
                if good is not None
                else "."
            )
        )
    if most := settings.get("pairs.max_per_prompt"):
        said.append(
            f"A prompt keeps at most {most} pairs, those with the widest gaps"
            " (pairs.max_per_prompt)."
        )
    return said


def _visits(tree: Mapping[str, Any] | None, tag: str, terminal: bool) -> str:
    """Returns how well a value is known, in words behind it."""
    if terminal:
        return " (a whole response, its reward)"
    if tree is None or tag not in tree["nodes"]["tag"]:
        return ""
    count = tree["nodes"]["visits"][tree["nodes"]["tag"].index(tag)]
    return f" (the mean of {count} visit{'' if count == 1 else 's'})"


def texts(pair: Mapping[str, Any], tree: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns {shared, chosen, rejected, step}: what both begin with, and how each goes on.

    `step` has the letters of the first step in which they part, of the chosen and the rejected one.
    Nodes are compared by their tags, as `search.pairs` does. Without the tree the texts are
    compared: then what they share ends behind a whole step.
    """
    better, worse = pair["chosen_text"], pair["rejected_text"]
    if tree is not None:
        paths = [_path(tree, tag) for tag in pair["id"].rsplit("/", 2)[1:]]
        if [_said(tree, path) for path in paths] == [better, worse]:
            parted = next(
                (k for k, (a, b) in enumerate(zip(*paths, strict=False)) if a != b),
                min(map(len, paths)),
            )
            shared = len(_said(tree, paths[0][:parted]))
            step = [len(_said(tree, path[parted : parted + 1])) for path in paths]
            return _parts(better, worse, shared, step)
    same = (a == b for a, b in zip(better, worse, strict=False))
    shared = better[: sum(itertools.takewhile(bool, same))]
    ends = [shared.rfind(tag) + len(tag) for tag in (STEP_END, OUTPUT_END) if tag in shared]
    cut = max(ends, default=0)
    return _parts(better, worse, cut, [_step(better[cut:]), _step(worse[cut:])])


def _parts(better: str, worse: str, shared: int, step: list[int]) -> dict[str, Any]:
    parts = {"shared": better[:shared], "chosen": better[shared:], "rejected": worse[shared:]}
    return {**parts, "step": step}


def _path(tree: Mapping[str, Any], tag: str) -> list[int]:
    """Returns the nodes from the first step to the one of a tag; [] where there is none."""
    nodes = tree["nodes"]
    if tag not in nodes["tag"]:
        return []
    path, at = [], nodes["tag"].index(tag)
    while nodes["parent"][at] >= 0:
        path.append(at)
        at = nodes["parent"][at]
    return path[::-1]


def _said(tree: Mapping[str, Any], path: list[int]) -> str:
    return "".join(tree["nodes"]["text"][at] for at in path)


def _step(said: str) -> int:
    """Returns the letters of the first step of a text."""
    ends = [said.find(tag) + len(tag) for tag in (STEP_END, OUTPUT_END) if tag in said]
    return min(ends, default=len(said))
