"""Trees that begin behind a bad step, so that their step pairs teach a model to turn back.

A tree's siblings part after steps that the policy itself took, and a policy that analyses well is
hardly ever behind a bad analysis: whoever writes its first step for it then owns the answer. A
further tree of the same prompt begins behind such a step. The step is part of the prompt from then
on (`Prompt.prefill`), without weight in any loss. Judges see the whole response, as they always do.

A model that never turns back gives no pair, however many steps it is asked for: all are bad. So one
of the steps behind a bad one may be given: the one that the best response of the prompt's own tree
took in its place (`roots_turn_back`). What follows it is the model's own, and so is its value.

The idea is beyond the paper; Qi et al. 2024 (arXiv 2406.05946) train on recoveries in this way,
with beginnings of harmful answers.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

from stair_jax.config.schema import SearchConfig
from stair_jax.config.words import REJECTED, split_csv
from stair_jax.records import Node, Prompt, Tree
from stair_jax.search import rewrites
from stair_jax.text import STEP_END

SUFFIX = "/behind"  # of the ids of these trees' prompts
KIND = "behind"  # of `Prompt.meta`: where the step is from
TURN_BACK = "turn_back"  # of `Prompt.meta`: the step that is given

Forge = Callable[[Prompt], str]


def id_behind(prompt_id: str) -> str:
    """Returns the id of the further tree of a prompt."""
    return prompt_id + SUFFIX


def origin(prompt_id: str) -> str:
    """Returns the id of the prompt that a tree's prompt was made of, its own where of none."""
    return rewrites.origin(prompt_id.removesuffix(SUFFIX))


def behind_bad_steps(
    tree: Tree, config: SearchConfig, *, forge: Forge, seed: int
) -> Sequence[Prompt]:
    """Returns the prompt of a further tree, one at most, of a tree that is whole.

    Args:
      tree: a tree of the round. One that is behind a beginning itself has no further one.
      config: `roots` (where bad steps come from, in this order), `roots_share`, `roots_gap`.
      forge: writes a closed bad first step: one that permits a harmful request, or refuses a
        harmless one.
      seed: decides, with the prompt's id alone, whose turn it is.
    """
    prompt = tree.prompt
    if not is_due(prompt, config, seed=seed):
        return ()
    for kind in split_csv(config.roots):
        if begun := rejected(tree, config.roots_gap) if kind == REJECTED else forge(prompt):
            meta = {**prompt.meta, KIND: kind}
            if config.roots_turn_back and (step := way_back(tree)):
                meta[TURN_BACK] = step
            id = id_behind(prompt.id)
            return (dataclasses.replace(prompt, id=id, prefill=begun, meta=meta),)
    return ()


def is_due(prompt: Prompt, config: SearchConfig, *, seed: int) -> bool:
    """Returns whether a further tree of a prompt is wanted; it may turn out that there is no step.

    The seed and the prompt's id decide, `roots_share` of all that have no beginning of their own.
    """
    if not config.roots or prompt.prefill:
        return False
    key = f"{seed}/{id_behind(prompt.id)}"
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < config.roots_share * 2**64


def rejected(tree: Tree, gap: float) -> str:
    """Returns the text of the worst first step, or nothing.

    It must be closed and end nothing, and the best of its siblings be worth more, by more than
    `gap`.
    """
    first = [node for node in tree.nodes if node.depth == 1 and node.visits and node.finite]
    open_ended = [node for node in first if _is_step(node)]
    if not open_ended:
        return ""
    worst, best = min(open_ended, key=_value), max(first, key=_value)
    return worst.text.rstrip() if best.value - worst.value > gap else ""


def way_back(tree: Tree) -> str:
    """Returns the second step of the tree's best response; nothing where it has none."""
    ended = [i for i, node in enumerate(tree.nodes) if node.reward is not None and node.finite]
    longer = [i for i in ended if tree.nodes[i].depth > 1]
    if not longer:
        return ""
    return tree.path(max(longer, key=lambda i: tree.nodes[i].value))[1].text


def _is_step(node: Node) -> bool:
    return not node.terminal and node.text.rstrip().endswith(STEP_END)


def _value(node: Node) -> float:
    return node.value
