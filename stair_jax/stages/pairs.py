"""Stage pairs: trees in, preference pairs and good responses out."""

import collections
import logging
from typing import Any

from stair_jax import jsonl, text
from stair_jax.config.schema import PairsConfig
from stair_jax.config.stages import PAIRS, SEARCH
from stair_jax.config.words import split_csv
from stair_jax.data import exports
from stair_jax.log import progress
from stair_jax.records import Pair, Response
from stair_jax.run import models
from stair_jax.run.causes import Causes
from stair_jax.run.hashes import digest_of
from stair_jax.run.workdir import Run
from stair_jax.search import pairs as pairs_lib
from stair_jax.search.tree_file import TreeFile

log = logging.getLogger(__name__)

NO_PAIR = "no_pair"  # of the lineage's facts: why there is none


def run(run: Run, number: int) -> None:
    """Writes pairs.jsonl and responses.jsonl of a round, in the order of the prompts' ids.

    Other trainers' forms of the pairs lie in `export/`, where `config.pairs.export` names them.
    """
    name, grown = PAIRS.artefact(number), SEARCH.artefact(number)
    run.lineage.verify(grown, split_csv(run.config.edited))
    run.begin(name, PAIRS.name, (grown,))
    config, codec = PairsConfig.of(run.config.pairs), models.spec_and_codec(run)[1]
    trees = TreeFile(run.round_dir(number) / "trees")
    pairs: list[Pair] = []
    responses: list[Response] = []
    dropped: dict[str, collections.Counter[str]] = {
        "pairs": collections.Counter(),
        "responses": collections.Counter(),
    }
    with_pairs, causes = 0, Causes()
    with progress.over(trees, name, len(trees), "trees") as counted:
        for tree in counted:
            length = len(text.opening_ids(codec, tree.prompt))
            found, left = pairs_lib.pairs_of(
                tree, config, prompt_tokens=length, seed=run.config.seed
            )
            with_pairs += bool(found)
            causes.note(tree)
            pairs += found
            dropped["pairs"] += left
            good, left = pairs_lib.responses_of(tree, config, prompt_tokens=length)
            responses += good
            dropped["responses"] += left
    folder = run.round_dir(number) / "pairs"
    jsonl.write_jsonl(folder / "pairs.jsonl", pairs)
    jsonl.write_jsonl(folder / "responses.jsonl", responses)
    exports.write(split_csv(config.export), pairs, folder / "export", codec.specials)
    counts = {
        "pairs": len(pairs),
        "responses": len(responses),
        "trees": len(trees),
        "trees_with_pairs": with_pairs,
        "share_behind_bad_steps": sum(bool(p.prefill) for p in pairs) / max(1, len(pairs)),
    }
    if config.export:
        # Other trainers end every response, also one that ends amid its reasoning.
        counts["export/unfinished"] = exports.unfinished(pairs)
    for kind, left in dropped.items():
        counts |= {f"dropped/{kind}/{reason}": number for reason, number in left.items()}
    run.metrics.rewind(name, -1)
    run.metrics.log(name, 0, counts)
    files = [folder / "pairs.jsonl", folder / "responses.jsonl"]
    facts: dict[str, Any] = dict(counts)
    if trees and not pairs:
        facts[NO_PAIR] = causes.of_none(config, dropped["pairs"])
        log.warning("%s: no pair in %d trees: %s", name, len(trees), facts[NO_PAIR])
    else:
        said = "%s: %d pairs of %d of %d trees, %d whole responses"
        log.info(said, name, len(pairs), with_pairs, len(trees), len(responses))
    run.lineage.finish(name, digest_of(repr(pairs) + repr(responses)), files, **facts)
