"""Tokens of DPO batches: pairs padded to buckets against sibling groups packed as trees.

Counts only, nothing is trained: an epoch of the pairs of a miniature run, batched either way with
the settings of configs/tiny.py. `positions` are what is computed, padding included; `tokens` are
those of rows. Without --workdir a small run is made for its pairs, which takes a minute or two.
"""

import argparse
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import numpy as np

from benchmarks import harness
from benchmarks.harness import Claim
from configs import tiny
from stair_jax import jsonl
from stair_jax.config.schema import DpoConfig, TrainConfig
from stair_jax.data import examples, packing
from stair_jax.data.examples import PairExample
from stair_jax.data.pair_batches import DpoData
from stair_jax.miniature import tokenizer
from stair_jax.records import Pair
from stair_jax.text import Codec, template_for

WIDTHS = (96, 128, 192, 256, 384)  # tokens of a packed row, each tried by itself
ROWS = 2  # of a pass, where a step takes several


def main(argv: Sequence[str] | None = None) -> None:
    """Counts, prints the table and the claims, writes every figure."""
    parser = harness.parser_of(__doc__ or "")
    parser.add_argument(
        "--workdir",
        type=pathlib.Path,
        metavar="DIR",
        help="of a run of configs/tiny.py whose pairs are counted",
    )
    options = harness.parse(parser, argv)
    pairs, source = read_pairs(parser, options)
    figures = count(pairs)
    rows = [(name, *side.values()) for name, side in figures["sides"].items()]
    columns = ("side", *next(iter(figures["sides"].values())))
    print(harness.table(f"An epoch of {len(pairs)} pairs of {source}", columns, rows))
    best = min(side["tokens"] for name, side in figures["sides"].items() if name != "pairwise")
    fewest = min(side["positions"] for name, side in figures["sides"].items() if name != "pairwise")
    pairwise = figures["sides"]["pairwise"]
    claims = {
        "tokens of trees / of pairs": Claim(best / pairwise["tokens"], "<=", 1.0),
        "positions of trees / of pairs": Claim(fewest / pairwise["positions"], "<=", 1.0),
    }
    print(harness.claims_table(claims))
    told = {"pairs_of": source, "machine": harness.machine("grain"), **figures}
    harness.write(options.out, told, claims)


def read_pairs(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> tuple[list[PairExample], str]:
    """Returns the pairs of all rounds of a run, and what it is; makes one where none is named."""
    if options.workdir is not None:
        pairs = pairs_of(options.workdir)
        if not pairs:
            parser.error(
                f"--workdir: {options.workdir} has no round-*/pairs/pairs.jsonl with pairs"
            )
        return pairs, "the run named by --workdir"
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "run"
        grow(workdir)
        pairs = pairs_of(workdir)
    if not pairs:
        raise ValueError("the small run gave no pairs, expected some; name a run by --workdir")
    return pairs, "configs/tiny.py:smoke"


def grow(workdir: pathlib.Path) -> None:
    """Runs the miniature in its smallest form up to the pairs of its first round.

    Raises:
      ValueError: where the run fails; its own last words are on stderr.
    """
    harness.say("growing trees for their pairs (a minute or two) ...")
    command = [
        sys.executable,
        "-m",
        "stair_jax.main",
        "--config=configs/tiny.py:smoke",
        "--config.stages=sft,search,pairs",
        "--config.rounds=1",
        f"--config.workdir={workdir}",
    ]
    root = pathlib.Path(__file__).parents[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=root, env=environment, check=False)
    if done.returncode:
        raise ValueError(f"{workdir}: the run ended with status {done.returncode}")


def pairs_of(workdir: pathlib.Path) -> list[PairExample]:
    """Returns the pairs of all rounds of a miniature run, as they are trained."""
    words = tokenizer.build()
    codec = Codec(words, template_for(words, "llama"))
    found: list[PairExample] = []
    for path in sorted(workdir.glob("round-*/pairs/pairs.jsonl")):
        rows = examples.pair_examples(jsonl.read_jsonl(path, Pair), codec)
        found += [dataclasses.replace(row, id=f"{path.parts[-3]}/{row.id}") for row in rows]
    return found


def count(pairs: Sequence[PairExample]) -> dict:
    """Returns the figures of the pairs themselves, and of every way to batch them."""
    config = TrainConfig.of(tiny.get_config().dpo.train, compute_dtype="float32")
    groups = np.bincount(packing.group_keys((x.prompt, x.prefix) for x in pairs))
    whole = {(x.prompt, side) for x in pairs for side in x.sides}
    sides = {"pairwise": side(pairs, config)}
    for width in WIDTHS:
        tree = dataclasses.replace(config, batching="tree", buckets=(width,))
        sides[f"tree, rows of {width}"] = side(pairs, tree)
        # The fullest step sizes all of them; in several passes, the empty ones are passed over.
        tree = dataclasses.replace(tree, micro_tokens=ROWS * width)
        sides[f"tree, rows of {width}, {ROWS} a pass"] = side(pairs, tree)
    return {
        "pairs": len(pairs),
        "groups": len(groups),
        "pairs_per_group": float(groups.mean()),
        "tokens_of_distinct_trajectories": sum(len(prompt) + len(x) for prompt, x in whole),
        "sides": sides,
    }


def side(pairs: Sequence[PairExample], config: TrainConfig) -> dict[str, float]:
    """Returns the counts of one epoch under one way to batch."""
    loss = DpoConfig.of(tiny.get_config().dpo, anchors_per_pair=0.0)
    data = DpoData(pairs, (), config, loss, seed=0, pad_id=0, row_shards=1)
    tokens = positions = 0
    for step in range(data.steps_per_epoch):
        batch = data.batch_at(step)
        tokens += batch.real_tokens()
        positions += round(batch.real_tokens() / (1 - batch.padding_share()))
    left_out = sum(map(len, data.dropped.values()))
    return {
        "tokens": tokens,
        "positions": positions,
        "padding_share": 1 - tokens / positions,
        "tokens_per_pair": tokens / data.pairs,
        "positions_per_pair": positions / data.pairs,
        "left_out": left_out,
    }


if __name__ == "__main__":
    main()
