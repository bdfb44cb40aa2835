"""Stage search: prompts in, one search tree each out."""

import collections
import dataclasses
import functools
import logging
import pathlib
import time

from stair_jax import records
from stair_jax.config import Config
from stair_jax.engine import counters
from stair_jax.io import progress, trace
from stair_jax.miniature import verifier
from stair_jax.records import Prompt, Tree
from stair_jax.rewards.combine import Reward
from stair_jax.rewards.judges import Judge, RuleJudge, VerifierJudge
from stair_jax.search import driver, growth, official
from stair_jax.sections import RewardConfig, SearchConfig
from stair_jax.stages import policies, prompts
from stair_jax.stages.run import Run, digest_of

log = logging.getLogger(__name__)

TREES_A_SLOT = 2  # in flight at most: more would only hold keys


def run(run: Run, number: int) -> None:
    """Grows the trees of a round with the round's policy, and appends each as it finishes."""
    name, parent = f"round-{number}/trees", policies.parent_of_round(run, number)
    artefact = policies.artefact_of(parent)
    run.begin(name, "search", (artefact,) if artefact else ())
    folder = run.round_dir(number) / "trees"
    folder.mkdir(exist_ok=True)
    path = folder / "trees.jsonl"
    records.mend_jsonl(path)
    have = {tree.prompt.id for tree in records.read_jsonl(path, Tree)} if path.exists() else set()
    every = prompts.for_round(run.config, number)
    left = [prompt for prompt in every if prompt.id not in have]
    passed_over, session = _grow(run, number, parent, left, path, len(have)) if left else ({}, {})
    trees = sorted(records.read_jsonl(path, Tree), key=lambda tree: tree.prompt.id)
    if run.config.search.export_official:
        records.write_json(folder / "official.json", [official.to_official(t) for t in trees])
    # Sums over all trees, whichever session grew them; only what a clock says is this session's.
    totals = sum((collections.Counter(tree.counters) for tree in trees), collections.Counter())
    run.metrics.rewind(name, -1)
    run.metrics.log(
        name, len(trees), totals | session | {"trees": len(trees), "passed_over": len(passed_over)}
    )
    content = "\n".join(repr(tree.nodes) for tree in trees)
    run.lineage.finish(name, digest_of(content), trees=len(trees), passed_over=passed_over)


def _grow(
    run: Run, number: int, parent: str, left: list[Prompt], path: pathlib.Path, have: int
) -> tuple[dict[str, str], dict[str, float]]:
    """Grows and appends the trees that are missing.

    Returns why prompts were passed over, by id, and what the engine did in this session.
    """
    policy, stage = policies.load(run, parent), f"round-{number}/search"
    config, engine = SearchConfig.of(run.config.search), policies.engine_for(run, policy)
    if not config.trees_in_flight:
        wanted = TREES_A_SLOT * run.config.engine.slots * len(policies.engine_places(run))
        config = dataclasses.replace(config, trees_in_flight=min(wanted, len(left)))
    engine.compile([growth.sampling_of(config)], logps=growth.wants_logps(config))
    start, grown = time.perf_counter(), 0
    with (
        progress.line(stage, have + len(left)) as show,
        trace.some(run.workdir / "profile" if run.config.profile else None) as traced,
    ):

        def on_tree(tree: Tree) -> None:
            nonlocal grown
            records.append_jsonl(path, tree)
            grown += 1
            show(have + grown, f"{engine.counters['delivered']} tokens")
            traced()

        passed_over = driver.grow(
            left, engine=engine, judge=judge_of(run.config), codec=policy.codec, config=config,
            reward=Reward(config.reward, RewardConfig.of(run.config.reward)),
            seed=run.config.seed, on_tree=on_tree,
        )  # fmt: skip
    for prompt_id, reason in passed_over.items():
        log.warning("%s: prompt %s passed over: %s", stage, prompt_id, reason)
    seconds = time.perf_counter() - start
    counted = {**engine.counters, **counters.shares(engine.counters)}
    session = {f"engine/{name}": float(count) for name, count in counted.items()}
    return passed_over, session | {"seconds": seconds, "trees_per_hour": 3600 * grown / seconds}


def judge_of(config: Config, direct: bool = False) -> Judge:
    """Returns the judge that `config.judge` names; of `direct` responses, or of STAIR's."""
    if config.judge.safety == "verifier":
        return VerifierJudge(functools.partial(verifier.verify, direct=direct))
    return RuleJudge(direct)
