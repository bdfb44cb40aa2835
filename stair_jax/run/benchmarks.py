"""The benchmarks that a configuration names: the miniature's, and prompts of the user's own."""

import dataclasses
import pathlib

from stair_jax.config import BENCHMARKS, Config
from stair_jax.config.schema import words
from stair_jax.data import sources
from stair_jax.evals.benchmark import Benchmark
from stair_jax.evals.benchmarks import miniature, own_prompts
from stair_jax.run import rows as rows_lib


def of(config: Config) -> list[Benchmark]:
    """Returns the benchmarks of `config.evaluate.benchmarks`, in its order.

    The ids of prompts of the user's own have the benchmark's name before them: two files may ask
    the same.

    Raises:
      ValueError: for prompts that cannot be read, naming file and row, or for a name taken twice.
    """
    found: dict[str, Benchmark] = {}
    for source in words(config.evaluate.benchmarks):
        own = source not in BENCHMARKS
        benchmark = (
            _own(config, source) if own else miniature.benchmark(source, config.evaluate.split)
        )
        if benchmark.name in found or (own and benchmark.name in BENCHMARKS):
            raise ValueError(
                f"config.evaluate.benchmarks: {source!r} would be called {benchmark.name!r}, as"
                " another benchmark is; give it another name"
            )
        found[benchmark.name] = benchmark
    return list(found.values())


def _own(config: Config, source: str) -> Benchmark:
    name = name_of(source)
    rows = [
        dataclasses.replace(prompt, id=f"{name}/{prompt.id}")
        for prompt in rows_lib.of_source(config, source)
    ]
    return own_prompts.benchmark(name, rows, source, judged=config.evaluate.judged)


def name_of(source: str) -> str:
    """Returns what a file or a data set of the hub is called in results."""
    path = pathlib.PurePath(source)
    return path.stem if sources.is_file(source) else path.name
