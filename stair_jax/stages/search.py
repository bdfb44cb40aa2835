"""Stage search: prompts in, one search tree each out."""

import logging
import time

from stair_jax import records
from stair_jax.config import RewardConfig, SearchConfig
from stair_jax.miniature import verifier
from stair_jax.records import Tree
from stair_jax.rewards.combine import Reward
from stair_jax.rewards.judges import Judge, RuleJudge, VerifierJudge
from stair_jax.search import driver, official
from stair_jax.stages import policies, prompts
from stair_jax.stages.run import Run, digest_of

log = logging.getLogger(__name__)


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
    if left:
        _grow(run, number, parent, left, path, len(have))
    trees = sorted(records.read_jsonl(path, Tree), key=lambda tree: tree.prompt.id)
    if run.config.search.export_official:
        records.write_json(folder / "official.json", [official.to_official(t) for t in trees])
    content = "\n".join(repr(tree.nodes) for tree in trees)
    run.lineage.finish(name, digest_of(content), trees=len(trees))


def _grow(run: Run, number: int, parent: str, left, path, have: int) -> None:
    policy = policies.load(run, parent)
    config = SearchConfig.of(run.config.search)
    engine, start = policies.engine_for(run, policy), time.perf_counter()
    totals: dict[str, float] = {}
    stage = f"round-{number}/search"

    def on_tree(tree: Tree) -> None:
        records.append_jsonl(path, tree)
        for key, value in tree.counters.items():
            totals[key] = totals.get(key, 0) + value
        totals["trees"] = totals.get("trees", 0) + 1

    passed_over = driver.grow(
        left, engine=engine, judge=judge_of(config), codec=policy.codec, config=config,
        reward=Reward(config.reward, RewardConfig.of(run.config.reward)), seed=run.config.seed,
        on_tree=on_tree,
    )  # fmt: skip
    for prompt_id, reason in passed_over.items():
        log.warning("%s: prompt %s passed over: %s", stage, prompt_id, reason)
    seconds = time.perf_counter() - start
    hour = {"trees_per_hour": 3600 * totals.get("trees", 0) / seconds, "seconds": seconds}
    counters = {f"engine/{key}": value for key, value in engine.counters.items()}
    run.metrics.log(
        stage, have + int(totals.get("trees", 0)),
        totals | counters | hour | {"passed_over": len(passed_over)},
    )  # fmt: skip


def judge_of(config: SearchConfig) -> Judge:
    """Returns the judge that `config.search.judge` names."""
    return VerifierJudge(verifier.verify) if config.judge == "verifier" else RuleJudge()
