"""Trees per hour: the engine against transformers' `generate`, alone and in lock-step.

python -m benchmarks.search_vs_transformers --out FILE.json

Same weights (exported by the product), same prompts, same search code and settings, same judge;
only the engine behind the search differs (`benchmarks.transformers_engine`):
  ours      the product's engine, as stage search uses it; the prompts of a round twice over, so
            that the queue is four times the trees in flight
  single    `generate`, one request at a time: the official code's local mode
  lockstep  64 trees at a time, each phase one padded batch of `generate`
  refilled  as lockstep, but a finished tree is replaced at once: more than was asked of lockstep
"""

import argparse
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers

from benchmarks import growing, harness, miniature
from benchmarks.harness import Claim, Figures, Round
from benchmarks.transformers_engine import Generator, Lockstep, OneByOne
from stair_jax.config.schema import SearchConfig
from stair_jax.records import Prompt
from stair_jax.run import models
from stair_jax.run.known_models import SFT_MODEL
from stair_jax.run.models import Policy
from stair_jax.run.workdir import Run
from stair_jax.search import growth

THREADS = 2  # of torch; JAX takes what there is
TREES = 64  # of a lock-step
SIDES = ("ours", "single", "lockstep", "refilled")


def main(argv: list[str] | None = None) -> None:
    """Measures, prints and writes."""
    harness.run(_options(argv), measure, tables)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.parser_of(__doc__ or "")
    parser.add_argument(
        "--workdir",
        type=pathlib.Path,
        default=pathlib.Path("runs/bench"),
        help="of a run with the miniature's SFT model; trained where it is missing"
        " (default: %(default)s)",
    )
    parser.add_argument("--repetitions", type=_positive, default=3)
    parser.add_argument(
        "--trees",
        type=_positive,
        default=800,
        help="of ours, a repetition; each of the 400 prompts in turn",
    )
    parser.add_argument("--single", type=_positive, default=8, help="trees of single, likewise")
    parser.add_argument(
        "--lockstep",
        type=_positive,
        default=TREES,
        help="trees of lockstep, likewise; in batches of 64",
    )
    parser.add_argument("--refilled", type=int, default=128, help="trees of refilled; 0: left out")
    parser.add_argument(
        "--minutes",
        type=float,
        default=9.0,
        help="no repetition is begun that would end after them",
    )
    return harness.parse(parser, argv)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} found, 1 or more expected")
    return int(text)


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Claim]]:
    """Returns all figures and the claims.

    Raises:
      ValueError: where the workdir cannot be used.
    """
    torch.set_num_threads(THREADS)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    miniature.train(options.workdir)
    run = miniature.open_run(options.workdir)
    policy = models.load(run, SFT_MODEL)
    sides = Sides(run, policy, options)
    harness.say("warming up: every program is compiled, every library is loaded ...")
    sides.warm_up()
    rounds = harness.alternate(sides.measures(), options.repetitions, seconds=60 * options.minutes)
    figures = {
        "benchmark": "search_vs_transformers",
        "machine": harness.machine("torch", "transformers") | {"torch_threads": THREADS},
        "settings": sides.settings(),
        "export_max_abs_diff": sides.difference,
        "compile_s": sides.compile_s,
        "rounds": rounds,
        "medians": {
            side: {name: harness.median(rounds, side, name) for name in rounds[0][side]}
            for side in rounds[0]
        },
        "ratios": ratios(rounds),
        "disturbed": any(
            figures["others"] > harness.DISTURBED for one in rounds for figures in one.values()
        ),
    }
    return figures, claims_of(rounds)


class Sides:
    """What is measured against each other, on one model."""

    def __init__(self, run: Run, policy: Policy, options: argparse.Namespace):
        self.run, self.policy, self.options = run, policy, options
        self.prompts = miniature.questions(run.config)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model"
            self.difference = miniature.export(policy, path)
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32
            )
        self._model = model.eval()
        self._engine, self.compile_s = models.engine_for(run, policy), 0.0
        self.in_flight = miniature.in_flight(run, options.trees)

    def measures(self) -> Mapping[str, Callable[[int], Figures]]:
        """Returns how each side is measured, given the number of the repetition."""
        sides = {
            "ours": self.ours,
            "single": self.single,
            "lockstep": self.lockstep,
            "refilled": self.refilled,
        }
        return {name: sides[name] for name in SIDES if name != "refilled" or self.options.refilled}

    def warm_up(self) -> None:
        """Compiles the engine's programs, and grows a few trees on each side."""
        config = SearchConfig.of(self.run.config.search)
        start = time.perf_counter()
        self._engine.compile([growth.sampling_of(config)], logps=growth.wants_logps(config))
        self.compile_s = time.perf_counter() - start
        some = miniature.spread(self.prompts, 16, 0, 1)
        self._grow(self._engine, some, self.in_flight)
        self._grow(OneByOne(self._generator()), some[:1], 1)
        self._grow(Lockstep(self._generator()), some[:4], TREES)

    def ours(self, turn: int) -> Figures:
        """Grows trees on the product's engine, as stage search does."""
        some = miniature.repeated(sorted(self.prompts, key=by_id), self.options.trees)
        grown = self._grow(self._engine, some, self.in_flight)
        distinct = {prompt.question: self._length(prompt) for prompt in some}
        own = growing.engine_figures(grown, sum(distinct.values()))
        return growing.speeds(grown) | own

    def single(self, turn: int) -> Figures:
        """Grows trees one request at a time."""
        some = self._some(self.options.single, turn)
        torch.manual_seed(turn)
        return growing.speeds(self._grow(OneByOne(self._generator()), some, 1))

    def lockstep(self, turn: int) -> Figures:
        """Grows trees 64 at a time; the next 64 start when the last of the former has ended."""
        some = self._some(self.options.lockstep, turn)
        torch.manual_seed(turn)
        groups = -(-len(some) // TREES)
        parts = [
            self._grow(Lockstep(self._generator()), some[i::groups], TREES) for i in range(groups)
        ]
        return growing.speeds(growing.joined(parts))

    def refilled(self, turn: int) -> Figures:
        """Grows trees 64 at a time; each that ends makes room for the next."""
        some = self._some(self.options.refilled, turn)
        torch.manual_seed(turn)
        return growing.speeds(self._grow(Lockstep(self._generator()), some, TREES))

    def settings(self) -> dict[str, Any]:
        """Returns the settings of the search and of the engine."""
        config = self.run.config
        lengths = [*map(self._length, self.prompts)]
        return {
            "seed": config.seed,
            "search": config.search.to_dict(),
            "engine": config.engine.to_dict(),
            "in_flight": self.in_flight,
            "prompts": len(lengths),
            "prompt_tokens": statistics.mean(lengths),
            "parameters": self.policy.spec.parameters,
            "trees": {
                name: getattr(self.options, "trees" if name == "ours" else name)
                for name in self.measures()
            },
        }

    def _some(self, count: int, turn: int) -> list[Any]:
        some = miniature.spread(self.prompts, count, turn, self.options.repetitions)
        return sorted(some, key=by_id)  # the order of the search, kinds mixed

    def _length(self, prompt: Any) -> int:
        return len(self.policy.codec.prompt_ids(prompt.question))

    def _grow(self, engine: Any, prompts: list[Any], in_flight: int) -> growing.Grown:
        return miniature.grow(prompts, engine, self.policy, self.run, in_flight=in_flight)

    def _generator(self) -> Generator:
        codec = self.policy.codec
        return Generator(
            self._model,
            stops=codec.stops,
            pad_id=codec.pad_id,
            max_context=self.run.config.engine.max_context,
        )


def by_id(prompt: Prompt) -> str:
    """Returns what the prompts of a round are ordered by."""
    return prompt.id


def ratios(rounds: Sequence[Round]) -> dict[str, float]:
    """Returns ours over each other side: per tree, and per token that was delivered."""
    return {
        f"{figure}_vs_{side}": harness.ratio(rounds, figure, "ours", side)
        for side in rounds[0]
        if side != "ours"
        for figure in ("trees_per_hour", "tokens_per_s")
    }


def claims_of(rounds: Sequence[Round]) -> dict[str, Claim]:
    """Returns the claims: medians of the repetitions, and the worst count of compilations."""
    found = ratios(rounds)
    recompiles = max(one["ours"]["recompiles"] for one in rounds)
    return {
        "trees_per_hour_vs_single": Claim(found["trees_per_hour_vs_single"], ">=", 25),
        "trees_per_hour_vs_lockstep": Claim(found["trees_per_hour_vs_lockstep"], ">=", 3),
        "computed_per_unique_token": Claim(
            harness.median(rounds, "ours", "computed_per_unique_token"), "<=", 1.05
        ),
        "busy_slots": Claim(harness.median(rounds, "ours", "busy_slots"), ">=", 0.90),
        "recompiles": Claim(recompiles, "==", 0),
    }


def tables(figures: Mapping[str, Any]) -> str:
    """Returns medians, a column a side, and the ratios."""
    medians = figures["medians"]
    names = list(dict.fromkeys(name for side in medians.values() for name in side))
    shown = [name for name in names if not name.startswith("engine/")]
    rows = [(name, *(medians[side].get(name) for side in medians)) for name in shown]
    title = f"Trees grown per side, medians of {len(figures['rounds'])} alternating repetitions"
    text = harness.table(title, ("figure", *medians), rows)
    text += "\n" + harness.table(
        "Ours over the others, medians of the repetitions' ratios",
        ("figure", "ratio"),
        figures["ratios"].items(),
    )
    if figures["disturbed"]:
        text += "\n\nOther processes worked during the measurement: do not trust these figures."
    return text


if __name__ == "__main__":
    main()
