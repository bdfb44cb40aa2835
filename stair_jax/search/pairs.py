"""A finished tree as training rows: preference pairs, and responses good enough to imitate.

Source: STAIR appendix B.2.3; thu-ml/STAIR src/generate_data.py. A value counts as good at the
threshold, a gap must exceed its own. A node never visited gives no row, nor does one whose value is
not a finite number. Every row that a rule takes away is counted under the rule's name.
"""

import collections
import itertools
import random
from collections.abc import Sequence

from stair_jax.config.schema import PairsConfig
from stair_jax.records import Node, Pair, Response, Tree

Dropped = collections.Counter[str]


def pairs_of(
    tree: Tree, config: PairsConfig, *, prompt_tokens: int, seed: int
) -> tuple[list[Pair], Dropped]:
    """Returns the tree's preference pairs, and how many each rule dropped.

    Siblings are compared step by step, or whole responses with `terminal_only`; `seed` decides
    which of those meet. `prompt_tokens` counts towards `max_tokens`.
    """
    if config.terminal_only:
        found, dropped = _terminal_pairs(tree, config, seed)
    else:
        found, dropped = _step_pairs(tree, config)
    kept = []
    for number, (chosen, rejected) in enumerate(found):
        pair = _pair(tree, chosen, rejected)
        longest = len(pair.prefix) + max(len(pair.chosen), len(pair.rejected))
        if prompt_tokens + longest > config.max_tokens:
            dropped["too_long"] += 1
            continue
        kept.append((number, pair))
    if config.max_per_prompt and len(kept) > config.max_per_prompt:
        dropped["over_limit"] += len(kept) - config.max_per_prompt
        kept.sort(key=lambda item: item[1].rejected_value - item[1].chosen_value)
        kept = sorted(kept[: config.max_per_prompt], key=lambda item: item[0])
    return [pair for _, pair in kept], dropped


def responses_of(
    tree: Tree, config: PairsConfig, *, prompt_tokens: int
) -> tuple[list[Response], Dropped]:
    """Returns the leaves good enough to imitate, the best `max_responses_per_prompt` of them.

    A root that was never expanded is a leaf with nothing to imitate, and is left out.
    """
    inner, dropped, kept = {node.parent for node in tree.nodes}, Dropped(), []
    for i, node in enumerate(tree.nodes):
        if i in inner or node.parent < 0:
            continue
        response = _response(tree, i) if node.visits else None
        if response is None:
            dropped["unvisited"] += 1
        elif not node.finite:
            dropped["not_finite"] += 1
        elif config.terminal_only and not node.terminal:
            dropped["not_terminal"] += 1
        elif not _judged(node, config):
            dropped["few_visits"] += 1
        elif node.value < good_value(tree, config):
            dropped["not_good"] += 1
        elif prompt_tokens + len(response.ids) > config.max_tokens:
            dropped["too_long"] += 1
        else:
            kept.append((i, response))
    limit = config.max_responses_per_prompt
    if limit and len(kept) > limit:
        dropped["over_limit"] += len(kept) - limit
        kept.sort(key=lambda item: -item[1].value)  # stable: the earlier node where equal
        kept = sorted(kept[:limit], key=lambda item: item[0])
    return [response for _, response in kept], dropped


def good_value(tree: Tree, config: PairsConfig) -> float:
    """Returns the least value of a good node, which depends on the prompt's type."""
    safety = tree.prompt.type == "safety"
    return config.good_value_safety if safety else config.good_value_helpfulness


def good_and_bad(tree: Tree, config: PairsConfig) -> tuple[list[int], list[int]]:
    """Returns the terminal nodes that are good by their reward, and those bad by the gap."""
    good = good_value(tree, config)
    ended = [
        (i, n.reward)
        for i, n in enumerate(tree.nodes)
        if n.terminal and n.reward is not None and n.finite
    ]
    return (
        [i for i, reward in ended if reward >= good],
        [i for i, reward in ended if reward <= good - config.min_value_gap],
    )


def _judged(node: Node, config: PairsConfig) -> bool:
    """Returns whether a visited node's value rests on enough visits; a terminal's one is exact."""
    return node.terminal or node.visits >= config.min_visits


def _step_pairs(tree: Tree, config: PairsConfig) -> tuple[list[tuple[int, int]], Dropped]:
    """Returns all pairs of siblings (better, worse) that pass, and counts those that do not."""
    families = collections.defaultdict(list)
    for i, node in enumerate(tree.nodes):
        families[node.parent].append(i)
    found, dropped, good = [], Dropped(), good_value(tree, config)
    for parent, siblings in families.items():
        if parent < 0:
            continue
        for pair in itertools.combinations(siblings, 2):
            nodes = [tree.nodes[i] for i in pair]
            if not all(node.visits for node in nodes):
                dropped["unvisited"] += 1
                continue
            if not all(node.finite for node in nodes):
                dropped["not_finite"] += 1
                continue
            if not all(_judged(node, config) for node in nodes):
                dropped["few_visits"] += 1
                continue
            worse, better = sorted(pair, key=lambda i: tree.nodes[i].value)
            if not tree.nodes[better].value - tree.nodes[worse].value > config.min_value_gap:
                dropped["small_gap"] += 1
            elif tree.nodes[better].value < good:
                dropped["not_good"] += 1
            else:
                found.append((better, worse))
    return found, dropped


def _terminal_pairs(
    tree: Tree, config: PairsConfig, seed: int
) -> tuple[list[tuple[int, int]], Dropped]:
    """Returns good responses beside bad ones, the fewer of the two sides repeated."""
    good, bad = good_and_bad(tree, config)
    ended = [node for node in tree.nodes if node.terminal]
    lost = sum(not node.finite for node in ended)
    dropped = Dropped(between=len(ended) - lost - len(set(good) | set(bad)))
    if lost:
        dropped["not_finite"] += lost
    if not good or not bad:
        dropped["one_sided"] += len(good) + len(bad)
        return [], dropped
    few, many = (good, bad) if len(good) < len(bad) else (bad, good)
    few *= min(len(many) // len(few) + 1, config.max_good_bad_ratio)
    draw = random.Random(f"{seed}/{tree.prompt.id}")
    draw.shuffle(good)
    draw.shuffle(bad)
    return list(zip(good, bad, strict=False)), dropped


def _pair(tree: Tree, chosen: int, rejected: int) -> Pair:
    better, worse = tree.path(chosen), tree.path(rejected)
    # Nodes are compared by tag: equal steps in different branches are not the same step.
    steps = zip(better, worse, strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda step: step[0].tag == step[1].tag, steps))
    return Pair(
        id=f"{tree.prompt.id}/{better[-1].tag}/{worse[-1].tag}",
        question=tree.prompt.question,
        type=tree.prompt.type,
        prefix=_ids(better[:shared]),
        chosen=_ids(better[shared:]),
        rejected=_ids(worse[shared:]),
        chosen_value=better[-1].value,
        rejected_value=worse[-1].value,
        chosen_terminal=better[-1].terminal,
        rejected_terminal=worse[-1].terminal,
        chosen_text="".join(step.text for step in better),
        rejected_text="".join(step.text for step in worse),
        depth=better[-1].depth,
        before=tree.prompt.before,
        prefill=tree.prompt.prefill,
    )


def _response(tree: Tree, index: int) -> Response:
    path, node = tree.path(index), tree.nodes[index]
    return Response(
        id=f"{tree.prompt.id}/{node.tag}",
        question=tree.prompt.question,
        type=tree.prompt.type,
        ids=_ids(path),
        text="".join(step.text for step in path),
        value=node.value,
        terminal=node.terminal,
        before=tree.prompt.before,
        prefill=tree.prompt.prefill,
    )


def _ids(steps: Sequence[Node]) -> tuple[int, ...]:
    return tuple(itertools.chain.from_iterable(step.ids for step in steps))
