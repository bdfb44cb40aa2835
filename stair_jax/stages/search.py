"""Stage search: prompts in, one search tree each out.

A whole tree is a line of trees.jsonl. What came in for the others lies in a log until they are
whole, so that a stop costs no more than what the engine was decoding.
"""

import collections
import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Sequence

from stair_jax.config import Config
from stair_jax.config.schema import RewardConfig, SearchConfig
from stair_jax.config.stages import SEARCH
from stair_jax.engine import counters
from stair_jax.engine.shared_engine import SharedEngine
from stair_jax.hf import reward_model
from stair_jax.log import progress, trace
from stair_jax.records import Prompt, Tree
from stair_jax.run import (
    inputs,
    judges,
    known_models,
    models,
    prepared,
    reward_models,
    round_attacks,
    rows,
)
from stair_jax.run import trees as trees_of
from stair_jax.run.first_answers import FirstAnswers
from stair_jax.run.known_models import Model
from stair_jax.run.search_sizes import trees_in_flight
from stair_jax.run.workdir import Run, need_room
from stair_jax.search import driver, growth, roots
from stair_jax.search.node_values import FROM_MODEL
from stair_jax.search.result_log import FILE, ResultLog
from stair_jax.search.reward import Reward
from stair_jax.search.tree_file import TreeFile, open_to_append

log = logging.getLogger(__name__)


def look(run: Run, number: int) -> None:
    """Reads the round's prompts, the judge's templates, and the configurations of reward models."""
    c = run.config
    judges.facts(c)
    judges.check_room(run, c.search.max_rollout_tokens)
    for path in _reward_models(c):
        reward_model.look(path)
    if prepared.is_awaited(run, "prompts"):
        return
    source = prepared.source_of(c, "prompts").replace("{round}", str(number))
    read = functools.partial(rows.for_round, c, number)
    inputs.hold(run, SEARCH.artefact(number), "data.prompts", source, read)


def _reward_models(c: Config) -> list[str]:
    """Returns the checkpoints that a search asks for rewards and values."""
    judge = [c.judge.reward_model] if c.judge.helpfulness == "reward_model" else []
    return judge + ([c.search.value_model] if c.search.value in FROM_MODEL else [])


def run(run: Run, number: int) -> None:
    """Grows the trees of a round with the round's policy, and appends each as it finishes."""
    name, parent = SEARCH.artefact(number), known_models.parent_of_round(run, number)
    own = rows.for_round(run.config, number)
    trees_of.refuse_numbered(run, name)
    attacks = round_attacks.of_round(run, number, parent, own)
    every = [*own, *attacks.prompts]
    parents = (*parent.parents, *prepared.parents(run, SEARCH), *attacks.parents)
    run.begin(name, SEARCH.name, parents)
    folder = run.round_dir(number) / "trees"
    folder.mkdir(exist_ok=True)
    rubrics = judges.hold_to(run.config, folder)
    trees = open_to_append(folder)
    follows = trees_of.further(run.config)
    asked = trees_of.asked_of(every, trees, follows)
    trees_of.keep_what_is_asked(name, trees, asked)
    run.lineage.note_inputs(name, {"data.prompts": inputs.of_rows(own)})
    left = [prompt for prompt in asked if prompt.id not in trees.ids]
    leftovers, session = driver.Leftovers({}, ()), {}
    if left:
        count = trees_of.to_come(run.config, left)
        need_room(run, f"{count} trees of {name}", trees_of.bytes_of_one(run, trees) * count)
        leftovers, session = _grow(run, number, parent, left, trees, follows)
    passed_over = leftovers.passed_over
    if run.config.search.roots:
        trees_of.tell_behind(name, trees)
    if run.config.search.export_official:
        trees_of.export_official(name, trees)
    # Sums over all trees, whichever session grew them; only what a clock says is this session's.
    totals = sum(map(collections.Counter, trees.counters()), collections.Counter())
    run.metrics.rewind(name, -1)
    run.metrics.log(
        name, len(trees), totals | session | {"trees": len(trees), "passed_over": len(passed_over)}
    )
    judges.check_open(name, leftovers.left_open)
    (folder / FILE).unlink(missing_ok=True)
    run.lineage.finish(
        name,
        trees.digest(),
        [trees.path],
        trees=len(trees),
        passed_over=passed_over,
        rubrics=rubrics,
    )


def _grow(
    run: Run,
    number: int,
    parent: Model,
    left: Sequence[Prompt],
    trees: TreeFile,
    follows: trees_of.Further | None,
) -> tuple[driver.Leftovers, dict[str, float]]:
    """Grows and appends the trees that are missing.

    Returns the prompts without one, and what engine and judge did in this session.
    """
    policy, name = models.load(run, parent, for_engine=True), SEARCH.artefact(number)
    config, valuer = SearchConfig.of(run.config.search), reward_models.prm_for_search(run, policy)
    engine = models.engine_for(run, policy)
    config = dataclasses.replace(config, trees_in_flight=trees_in_flight(run, len(left)))
    also = judges.samplings(run.config)
    engine.compile(
        [growth.sampling_of(config), *also], logps=growth.wants_logps(config), extends=bool(also)
    )
    board = SharedEngine(engine)
    first = FirstAnswers(run, number, parent, policy.codec, trees)
    in_flight = {id for p in left for id in (p.id, roots.id_behind(p.id))}
    count = trees_of.to_come(run.config, left)
    start, have, folder = time.perf_counter(), len(trees), trees.path.parent
    with (
        contextlib.closing(judges.judge_of(run, board, policy.codec)) as judge,
        contextlib.closing(ResultLog(folder / FILE, in_flight)) as results,
        progress.line(name, have + count, "trees", done=have) as show,
        trace.some(run.workdir / "profile" if run.config.profile else None) as traced,
    ):

        def on_tree(tree: Tree) -> None:
            trees.append(tree)
            show(len(trees), f"{engine.counters['delivered']:,} tokens")
            traced()

        leftovers = driver.grow(
            left,
            engine=board.client(),
            judge=judge,
            codec=policy.codec,
            config=config,
            reward=Reward(config.reward, RewardConfig.of(run.config.reward)),
            seed=rows.noise_seed(run.config, number),
            on_tree=on_tree,
            valuer=valuer,
            results=results,
            on_answer=first,
            further=follows,
        )
    first.close()
    for prompt_id, reason in leftovers.passed_over.items():
        log.warning("%s: prompt %s passed over: %s", name, prompt_id, reason)
    seconds = time.perf_counter() - start
    counted = {**engine.counters, **counters.shares(engine.counters)}
    session = {f"engine/{name}": float(count) for name, count in counted.items()}
    session |= judges.metrics(judge)
    if valuer is not None:
        session |= {f"valuer/{name}": float(count) for name, count in valuer.counters.items()}
    return leftovers, session | {
        "seconds": seconds,
        "trees_per_hour": 3600 * (len(trees) - have) / seconds,
    }
