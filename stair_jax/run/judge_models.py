"""The language models that judge published benchmarks, as `config.evaluate.judges` names them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from stair_jax.config import Config, redaction
from stair_jax.config.words import name_and_address, split_csv
from stair_jax.evals.benchmark import Benchmark
from stair_jax.evals.judge_prompts import PROTOCOLS, JudgePrompt, Wording

_KEY = "config.evaluate.judges"


class JudgeModel(NamedTuple):
    """A model behind an endpoint."""

    name: str  # as the server calls it
    endpoint: str


def of(c: Config) -> list[JudgeModel]:
    """Returns the models that judge, in the order of the setting."""
    found = []
    for word in split_csv(c.evaluate.judges):
        name, address = name_and_address(word)
        found.append(JudgeModel(name, address or c.judge.endpoint))
    return found


def check(c: Config, asked: Iterable[Benchmark]) -> None:
    """Refuses judges that could not be asked or told apart, or that would have nothing to judge.

    Raises:
      ValueError: naming the setting and the judge.
    """
    models, asked = of(c), list(asked)
    if not models:
        return
    for one in models:
        if not one.name:
            raise ValueError(f"{_KEY}: no name before the address, expected NAME@URL")
        if not one.endpoint:
            raise ValueError(
                f"{_KEY}: {one.name!r} has no endpoint; expected NAME@URL, or config.judge.endpoint"
            )
        redaction.check_address("evaluate.judges", one.endpoint)
    names = [one.name for one in models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{_KEY}: {twice} more than once, expected names that differ")
    if all(one.endpoint != c.judge.endpoint for one in models) and _only_for_judges(c):
        raise ValueError("config.judge.endpoint: would be ignored, every judge has its own address")
    if not any(one.judged for one in asked):
        raise ValueError(
            f"{_KEY}: {names} would be ignored, no model judges"
            f" {[one.name for one in asked] or 'prompts of files'}"
        )
    for one in asked:
        _check_figures(one)


def _only_for_judges(c: Config) -> bool:
    """Returns whether nothing else asks an endpoint that is set."""
    return bool(c.judge.endpoint) and "remote" not in (c.judge.safety, c.judge.helpfulness)


def _check_figures(benchmark: Benchmark) -> None:
    if not benchmark.judged:
        return
    if benchmark.judged not in PROTOCOLS:
        raise ValueError(
            f"benchmark {benchmark.name!r}: judged by {benchmark.judged!r}, expected one of"
            f" {list(PROTOCOLS)}"
        )
    judged = {name for one in PROTOCOLS[benchmark.judged] for name in one.summaries}
    if both := sorted(judged & set(benchmark.metrics)):
        raise ValueError(
            f"benchmark {benchmark.name!r}: {both} are figures of its rules and of its judges,"
            " expected other names"
        )


def prompts_of(benchmark: Benchmark) -> Sequence[JudgePrompt]:
    """Returns what judges are asked about a benchmark's answers."""
    return PROTOCOLS[benchmark.judged] if benchmark.judged else ()


def wordings(c: Config, asked: Iterable[Benchmark]) -> Mapping[str, Wording]:
    """Returns the words that judges are asked in, by the name of the prompt; {} without judges.

    Raises:
      ValueError: where one of the authors' files cannot be read or is another one, naming it.
    """
    if not of(c):
        return {}
    needed = {prompt.name: prompt for one in asked for prompt in prompts_of(one)}
    try:
        return {name: prompt.wording(c.evaluate.prompts) for name, prompt in needed.items()}
    except ValueError as error:
        raise ValueError(f"config.evaluate.prompts: {error}") from None
