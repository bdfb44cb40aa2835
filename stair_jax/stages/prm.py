"""Stage prm: the trees of all rounds in, a process reward model and its worth out."""

import collections
import dataclasses
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stair_jax import jsonl
from stair_jax.config import Config, reward_forms
from stair_jax.config.schema import PrmConfig, RewardConfig, SearchConfig, TrainConfig
from stair_jax.config.stages import PRM, SEARCH
from stair_jax.config.words import split_csv
from stair_jax.data import examples as examples_lib
from stair_jax.data.pair_batches import DpoData
from stair_jax.data.reward_batches import ComparisonData, ComparisonTrees, ValuedData
from stair_jax.evals import reward_models
from stair_jax.log import progress
from stair_jax.model.reward import Readout
from stair_jax.records import Tree
from stair_jax.run import held_out, known_models, models, objectives, prepared, responses, training
from stair_jax.run import rows as rows_lib
from stair_jax.run.causes import Causes
from stair_jax.run.known_models import REWARD_MODEL, Model
from stair_jax.run.workdir import Run, train_config
from stair_jax.search import candidates, comparisons, growth
from stair_jax.search.reward import Reward
from stair_jax.search.tree_file import TreeFile
from stair_jax.text import Codec

log = logging.getLogger(__name__)

NAME = REWARD_MODEL.artefact


def look(run: Run) -> None:
    """Reads the further prompts where they are needed still."""
    needed = run.config.prm.prompts and not run.lineage.finished(NAME)
    if needed and not prepared.is_awaited(run, "prompts"):
        rows_lib.for_prm(run.config)


def run(run: Run) -> None:
    """Trains the reward model on most trees, and measures it on those set aside.

    What is found there goes to `prm/report.json` and into the metrics as stage "prm/held_out".

    Raises:
      ValueError: where the trees give no row.
    """
    start, rounds = known_models.start_of_prm(run), known_models.searched_rounds(run)
    grown = [SEARCH.artefact(number) for number in rounds]
    for name in grown:
        run.lineage.verify(name, split_csv(run.config.edited))
    run.begin(NAME, PRM.name, (*start.parents, *grown, *prepared.parents(run, PRM)))
    config, readout = PrmConfig.of(run.config.prm), readout_of(run.config)
    sampled = _sampled(run, start, config)
    policy, train = models.load(run, start), train_config(run.config, PRM.name)
    files = [TreeFile(run.round_dir(number) / "trees") for number in rounds]
    every, causes = itertools.chain(*files, sampled), Causes()
    with progress.over(every, NAME, sum(map(len, files)) + len(sampled), "trees") as trees:
        rows, held, counts = _mined(trees, config, causes, seed=run.config.seed)
    counts["sampled"] = len(sampled)
    frame = {"seed": run.config.seed, **training.dataset_arguments(run, policy)}
    data = _data(run.config, rows, policy.codec, readout, train, frame)
    if not data.examples:
        why = causes.of_no_row(config, counts["dropped"])
        raise ValueError(f"{NAME}: {counts['trees']} trees give no row to train on: {why}")

    def measure(score: training.Score, step: int) -> None:
        scored = held_out.scored(held, policy.codec, config, readout, train, frame, score)
        found = reward_models.report(scored, config, readout)
        about = {
            "start": start.name,
            "rounds": list(rounds),
            "step": step,
            "readout": readout.to_json(),
        }
        _tell(run, step, about | counts, found)

    training.prm(
        run,
        NAME,
        policy,
        data,
        train,
        config,
        measure=measure,
        readout=readout.to_json(),
        start=start.name,
        rounds=list(rounds),
        **counts,
    )


def _data(
    config: Config,
    rows: Sequence[Any],
    codec: Codec,
    readout: Readout,
    train: TrainConfig,
    frame: Mapping[str, int],
) -> training.RewardData:
    """Returns the rows as the trainer takes them."""
    if readout.loss in ("bce", "mse"):
        return ValuedData(examples_lib.valued_examples(rows, codec, readout), train, **frame)
    if loss := objectives.implicit_loss(config, PrmConfig.of(config.prm)):
        pairs = examples_lib.implicit_examples(rows, codec, readout.position)
        return DpoData(pairs, (), train, loss, **frame)
    kind = ComparisonTrees if train.batching == "tree" else ComparisonData
    compared = examples_lib.comparison_examples(rows, codec, readout.position)
    return kind(compared, train, **frame)


def readout_of(config: Config) -> Readout:
    """Returns how the scores of the reward model of a run are to be read."""
    reward = Reward(config.search.reward, RewardConfig.of(config.reward))
    low, high = reward_forms.bounds(reward.form, reward.constants)
    return Readout(position=config.prm.readout, loss=config.prm.loss, low=low, high=high)


def _sampled(run: Run, start: Model, config: PrmConfig) -> list[Tree]:
    """Returns further prompts, with whole responses sampled and judged, as trees of one step."""
    if not config.prompts:
        return []
    c = run.config
    draw = candidates.Draw(
        count=config.samples,
        sampling=dataclasses.replace(
            growth.sampling_of(SearchConfig.of(c.search)), temperature=config.temperature
        ),
        max_tokens=c.search.max_rollout_tokens,
        key=(c.seed, NAME),
        direct=False,
    )
    asked, given = rows_lib.for_prm(c)
    found = responses.sample(run, f"{NAME}/responses", start, asked, draw, given)
    return candidates.as_trees(found.rows)


def _mined(
    trees: Iterable[Tree], config: PrmConfig, causes: Causes, *, seed: int
) -> tuple[list[Any], list[Tree], dict[str, Any]]:
    """Returns the training rows, the trees that are set aside, and counts for the lineage.

    `causes` notes each tree that is trained on.
    """
    rows: list[Any] = []
    held: list[Tree] = []
    dropped: collections.Counter[str] = collections.Counter()
    total = 0
    for tree in trees:
        total += 1
        if comparisons.is_held_out(tree.prompt.id, share=config.eval_share, seed=seed):
            held.append(tree)
            continue
        causes.note(tree)
        if config.loss in ("bt", "implicit"):
            found, left = comparisons.comparisons_of(tree, config, seed=seed)
        else:
            found, left = comparisons.values_of(tree, config)
        rows += found
        dropped += left
    counts = {"trees": total, "held_out_trees": len(held), "mined": len(rows)}
    return rows, held, counts | {"dropped": dict(sorted(dropped.items()))}


def _tell(run: Run, step: int, about: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Writes what was found to the report, the metrics and the log."""
    jsonl.write_json(run.workdir / NAME / "report.json", {**about, "held_out": found})
    run.metrics.rewind(f"{NAME}/held_out", -1)
    run.metrics.log(f"{NAME}/held_out", step, found)
    said = ("accuracy", "accuracy/whole", "auroc/within_tree", "gap_closed", "ece")
    log.info(
        "%s: on %d trees set aside: %s",
        NAME,
        found["trees"],
        ", ".join(f"{name} {found[name]:.3f}" for name in said if name in found),
    )
