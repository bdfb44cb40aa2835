"""What a reward model is worth on trees that it was not trained on."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stair_jax.config.schema import PrmConfig
from stair_jax.evals import ranking
from stair_jax.model.reward import Readout
from stair_jax.records import Tree
from stair_jax.search import comparisons

BINS = 10  # of the calibration


class Scored(NamedTuple):
    """A tree with what the model says of its nodes."""

    tree: Tree
    raw: dict[str, float]  # by tag
    tokens: dict[str, int]  # of the trajectories, by tag


def report(trees: Sequence[Scored], config: PrmConfig, readout: Readout) -> dict[str, Any]:
    """Returns the figures of a reward model, as JSON types; one that says nothing is left out.

    Pairs are all those of the trees that pass the rules of the training data, none drawn.

    `accuracy` of them: overall; `/whole` responses; `/depth_N`, of steps; and by type of prompt.
    `auroc/terminal` tells responses above the middle of the rewards' range from the others, over
      all trees. `auroc/within_tree` is a mean over trees, each with the middle of its own rewards;
      trees whose responses are all equal have none.
    `gap_closed` of the way from a tree's mean response to its best one, choosing by score; also by
      type of prompt.
    `ece`, in 10 bins, of the scores in [0, 1] against the values in [0, 1]. Only "bce" and "mse"
      aim at it, which `calibrated` says: scores that were taught by pairs know no zero.
    `score_mean`, `score_std`, of raw scores, and `length_correlation` with the trajectory's tokens.
    `not_finite` scores of nodes, which are left out, where there are any.
    """
    total = sum(len(scored.raw) for scored in trees)
    trees = [scored._replace(raw=_finite(scored.raw)) for scored in trees]
    lost = total - sum(len(scored.raw) for scored in trees)
    nodes = [_of_nodes(scored, config) for scored in trees]
    raw, value, tokens = np.concatenate([np.empty((3, 0)), *nodes], axis=1)
    units = (value - readout.low) / (readout.high - readout.low)
    found = _accuracies(trees, config) | _responses(trees, readout)
    found |= {
        "ece": ranking.calibration_error(np.asarray(readout.unit(raw)), units, BINS),
        "score_mean": float(raw.mean()) if len(raw) else math.nan,
        "score_std": float(raw.std()) if len(raw) else math.nan,
        "length_correlation": ranking.correlation(raw, tokens),
    }
    return {
        "trees": len(trees),
        "nodes": len(raw),
        "calibrated": readout.loss in ("bce", "mse"),
        **({"not_finite": lost} if lost else {}),
        **{name: x for name, x in found.items() if not math.isnan(x)},
    }


def _finite(raw: Mapping[str, float]) -> dict[str, float]:
    return {tag: score for tag, score in raw.items() if math.isfinite(score)}


def _of_nodes(scored: Scored, config: PrmConfig) -> np.ndarray:
    """Raw scores, values and lengths [3, n] of the nodes that count and have a score."""
    kept = comparisons.nodes_of(scored.tree, config)[0]
    nodes = [scored.tree.nodes[i] for i in kept]
    nodes = [node for node in nodes if node.tag in scored.raw]
    found = [(scored.raw[node.tag], node.value, scored.tokens[node.tag]) for node in nodes]
    return np.array(found, float).reshape(-1, 3).T


@dataclasses.dataclass
class _Tally:
    """Pairs of one kind: the scores of the better and the worse one."""

    better: list[float] = dataclasses.field(default_factory=list)
    worse: list[float] = dataclasses.field(default_factory=list)


def _accuracies(trees: Iterable[Scored], config: PrmConfig) -> dict[str, float]:
    tallies: dict[str, _Tally] = {}
    for tree, raw, _ in trees:
        found = comparisons.pairs_of(tree, config)[0]
        for whole, pairs in ((False, found.steps), (True, found.whole)):
            for pair in pairs.tolist():
                better, worse = (tree.nodes[i] for i in pair)
                if better.tag not in raw or worse.tag not in raw:
                    continue
                kind = "/whole" if whole else f"/depth_{better.depth}"
                for name in ("", kind, f"/{tree.prompt.type}", f"{kind}/{tree.prompt.type}"):
                    tally = tallies.setdefault(name, _Tally())
                    tally.better.append(raw[better.tag])
                    tally.worse.append(raw[worse.tag])
    out: dict[str, float] = {}
    for name, tally in sorted(tallies.items()):
        better, worse = np.array(tally.better), np.array(tally.worse)
        out[f"accuracy{name}"] = ranking.pair_accuracy(better, worse)
        out[f"pairs{name}"] = len(better)
    return out


def _responses(trees: Iterable[Scored], readout: Readout) -> dict[str, float]:
    """Figures of the whole responses."""
    scores, rewards, within = [], [], []
    groups: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for tree, raw, _ in trees:
        ended = [
            (raw[n.tag], n.reward)
            for n in tree.nodes
            if n.reward is not None and n.finite and n.tag in raw
        ]
        if not ended:
            continue
        score, reward = np.array(ended).T
        scores.append(score)
        rewards.append(reward)
        within.append(ranking.auroc(score, reward > (reward.min() + reward.max()) / 2))
        for name in ("", f"/{tree.prompt.type}"):
            groups.setdefault(name, []).append((score, reward))
    score, reward = np.concatenate([[], *scores]), np.concatenate([[], *rewards])
    known = [x for x in within if not math.isnan(x)]
    return {
        "auroc/terminal": ranking.auroc(score, reward > (readout.low + readout.high) / 2),
        "auroc/within_tree": float(np.mean(known)) if known else math.nan,
        **{f"gap_closed{name}": ranking.gap_closed(each) for name, each in sorted(groups.items())},
    }
