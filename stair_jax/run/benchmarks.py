"""The benchmarks that a configuration names: registered ones, and prompts of the user's own."""

import dataclasses
import difflib
import pathlib
import string
from collections.abc import Mapping, Sequence

from stair_jax.config import ROW_FILES, Config
from stair_jax.config.sources import prompts_among
from stair_jax.config.strategies import parse_all
from stair_jax.config.words import split_csv
from stair_jax.data import sources
from stair_jax.evals.benchmark import Benchmark, Row, registered
from stair_jax.evals.benchmarks import own_prompts
from stair_jax.judges.rubrics import SIDES
from stair_jax.records import Prompt
from stair_jax.run import attack_models, hashes, judge_models
from stair_jax.run import rows as rows_lib

_KEY = "config.evaluate.benchmarks"


def check(c: Config) -> None:
    """Refuses benchmarks that do not exist, or of which the run's model or judge knows nothing.

    Raises:
      ValueError: naming them.
    """
    known, own = registered(), prompts_among(c.evaluate.benchmarks)
    asked = {word: known.get(_name(word)) for word in split_csv(c.evaluate.benchmarks)}
    if not asked:
        raise ValueError(f"{_KEY}: empty, expected some of {list(known)} or files of prompts")
    if unknown := [word for word, one in asked.items() if not one and word not in own]:
        near = difflib.get_close_matches(_name(unknown[0]), known, 1)
        raise ValueError(
            f"{_KEY}: {unknown}{f', did you mean {near[0]!r}?' if near else ''} Found no such"
            f" benchmark, no file ({', '.join(ROW_FILES)}) and no name on the Hugging Face hub;"
            f" there are {list(known)}"
        )
    rows = {word: one for word, one in asked.items() if one and (one.hub or one.file)}
    if placed := [word for word, one in asked.items() if ":" in word and one and one.world]:
        raise ValueError(f"{_KEY}: {placed}, expected the name alone: it makes its own prompts")
    filed = [word for word, one in rows.items() if one.file]
    if c.data.root and not filed and not c.data.recipe:
        raise ValueError(f"config.data.root: would be ignored, no file of {list(asked)} lies there")
    if lost := [word for word in filed if not (rows[word].hub or ":" in word or c.data.root)]:
        raise ValueError(
            f"{_KEY}: {lost} are on no hub; expected config.data.root, or NAME:PATH as in"
            f" {lost[0]}:{rows[lost[0]].file}"
        )
    judge_models.check(c, [one for one in asked.values() if one])
    attack_models.check(c, [one for one in asked.values() if one])
    if "evaluate" in split_csv(c.stages):
        _check_languages(c, {word: one.world if one else "" for word, one in asked.items()})
        _check_truth(c, [word for word, one in asked.items() if not (one and one.merits)])


def _name(word: str) -> str:
    return word.partition(":")[0]


def _check_languages(c: Config, worlds: Mapping[str, str]) -> None:
    """Refuses benchmarks in a language that the run's model does not speak."""
    checkpoint = c.model.checkpoint
    foreign = [word for word, world in worlds.items() if world not in ("", c.data.prompts)]
    if checkpoint and foreign:
        raise ValueError(
            f"{_KEY}: {foreign} are the {worlds[foreign[0]]}'s, which mean nothing to"
            f" {checkpoint!r} without its prompts (config.data.prompts); name a file of prompts"
        )
    if not checkpoint and (plain := [word for word, world in worlds.items() if not world]):
        raise ValueError(
            f"{_KEY}: {plain} need a model that speaks their language; set config.model.checkpoint"
        )


def _check_truth(c: Config, blind: Sequence[str]) -> None:
    """Refuses searches and judges that need the truth, which is not known of some benchmarks."""
    if blind and any(s.of.truth for s in parse_all(split_csv(c.evaluate.search))):
        raise ValueError(
            "config.evaluate.search: oracle_of_N needs the truth, which is known of"
            f" {[name for name, one in registered().items() if one.merits]} and not of {blind}"
        )
    own = list(prompts_among(c.evaluate.benchmarks))
    if own and c.evaluate.judged and "verifier" in (c.judge.safety, c.judge.helpfulness):
        raise ValueError(
            f"config.evaluate.judged: config.judge names 'verifier', which knows nothing of {own};"
            " set it to False, or name another judge"
        )


def of(config: Config) -> list[Benchmark]:
    """Returns the benchmarks of `config.evaluate.benchmarks` with their prompts, in its order.

    The ids of prompts of the user's own have the benchmark's name before them: two files may ask
    the same.

    Raises:
      ValueError: for prompts that cannot be read, naming file and row, or for a name taken twice.
    """
    found: dict[str, Benchmark] = {}
    own = prompts_among(config.evaluate.benchmarks)
    for word in split_csv(config.evaluate.benchmarks):
        benchmark = _own(config, word) if word in own else _loaded(config, word)
        if benchmark.name in found or (word in own and benchmark.name in registered()):
            raise ValueError(
                f"{_KEY}: {word!r} would be called {benchmark.name!r}, as another benchmark is;"
                " give it another name"
            )
        found[benchmark.name] = _some(benchmark, config.evaluate.rows)
    return list(found.values())


def _some(benchmark: Benchmark, count: int) -> Benchmark:
    """Returns a benchmark with so many of its prompts; 0: all.

    Which ones is decided by a hash of their ids behind the benchmark's name: more rows are the same
    ones and others, and benchmarks of the same rows, as requests under transforms, draw the same.
    """

    def drawn(prompt: Prompt) -> str:
        row = prompt.id.partition("/")[2] or prompt.id
        return hashes.of_text(row.rstrip(string.ascii_uppercase))  # letters tell apart its prompts

    every = benchmark.prompts
    if not count or count >= len(every):
        return benchmark
    kept = {prompt.id for prompt in sorted(every, key=drawn)[:count]}
    some = tuple(prompt for prompt in every if prompt.id in kept)
    told = f"{benchmark.protocol}, {count} of {len(every)}" if benchmark.protocol else ""
    return dataclasses.replace(benchmark, prompts=some, protocol=told)


def _loaded(config: Config, word: str) -> Benchmark:
    """Returns a registered benchmark with its prompts.

    They are read from the place that its word names, else from `data.root`, else from the hub.
    """
    name, _, place = word.partition(":")
    benchmark = registered()[name]
    if not place and config.data.root and benchmark.file:
        place = _file_of(config, benchmark)
    return _filled(benchmark, place, word, config.evaluate.split)


def has_file(config: Config, name: str) -> bool:
    """Returns whether the file of a registered benchmark lies below `data.root`."""
    one, root = registered()[name], config.data.root
    return bool(one.file and root) and pathlib.Path(_file_of(config, one)).exists()


def test_split(config: Config, name: str, *, hub: bool) -> Benchmark:
    """Returns a registered benchmark with the prompts of its test split.

    Args:
      config: of the run.
      name: of the benchmark.
      hub: whether they are read from the hub; else from `data.root`.

    Raises:
      ValueError: for prompts that cannot be read, naming file and row.
    """
    one = registered()[name]
    return _filled(one, "" if hub else _file_of(config, one), name, "test")


def _file_of(config: Config, benchmark: Benchmark) -> str:
    return str(pathlib.PurePath(config.data.root, benchmark.file))


def _filled(benchmark: Benchmark, place: str, word: str, split: str) -> Benchmark:
    """Returns a benchmark with its prompts, from a place or else from the hub."""
    if not (place or benchmark.hub or benchmark.file):
        if not (made := tuple(benchmark.load([], split))):
            raise ValueError(
                f"{_KEY}: {word!r} makes no prompts of its own and names no place of rows (`hub` or"
                f" `file`); expected {word}:FILE"
            )
        return dataclasses.replace(benchmark, prompts=made)
    if place:
        rows, source = _read(benchmark, place), place
    else:
        if not benchmark.hub:
            raise ValueError(
                f"{word} is on no hub, expected its file {benchmark.file} in data.root"
            )
        part = benchmark.hub.splits.get(split)
        if part is None:
            raise ValueError(
                f"config.evaluate.split: {split!r}, and {benchmark.name!r} has only"
                f" {list(benchmark.hub.splits)}"
            )
        rows = sources.read(benchmark.hub.name, part, benchmark.hub.subset)
        source = f"{benchmark.hub.name} {part}"
    prompts = tuple(benchmark.load(rows, split))
    if not prompts:
        raise ValueError(f"{_KEY}: {word!r}: no row of {source} is one of its prompts")
    told = ", ".join(part for part in (source, benchmark.protocol, benchmark.words(rows)) if part)
    return dataclasses.replace(benchmark, prompts=prompts, protocol=told)


def _read(benchmark: Benchmark, place: str) -> Sequence[Row]:
    return benchmark.read(place, sources.read) if benchmark.read else sources.read(place)


def _own(config: Config, source: str) -> Benchmark:
    name, judge = name_of(source), config.judge
    rows = [
        dataclasses.replace(prompt, id=f"{name}/{prompt.id}")
        for prompt in rows_lib.of_source(config, source)
    ]
    rated = [side for side in SIDES if side == "safety" or judge.helpfulness != "none"]
    return own_prompts.benchmark(name, rows, source, sides=rated if config.evaluate.judged else ())


def name_of(source: str) -> str:
    """Returns what a file or a data set of the hub is called in results."""
    path = pathlib.PurePath(source)
    return path.stem if sources.is_file(source) else path.name
