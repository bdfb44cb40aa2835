"""Seeds that overlap with a benchmark's prompts, which no training set may hold."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from stair_jax.config import Config
from stair_jax.config.words import split_csv
from stair_jax.data import decontaminate
from stair_jax.data.seeds import Seed
from stair_jax.data.teaching.forms import TURNED
from stair_jax.evals.benchmark import Benchmark, registered
from stair_jax.records import Prompt
from stair_jax.run import benchmarks

log = logging.getLogger(__name__)

ALL, NONE = "all", "none"  # words for benchmarks in `config.data.decontaminate`
_KEY = "config.data.decontaminate"
_OTHER = ("goal", TURNED)  # in `meta`: the request within an attack, and it in other words
# Of errors of the hub that further names would meet as well.
_OFFLINE = ("ConnectionError", "ConnectTimeout", "ConnectError", "OfflineMode", "LocalEntryNot")


class Against(NamedTuple):
    """Prompts that no seed may overlap with.

    Attributes:
      prompts: by the benchmark's name.
      absent: benchmarks that are not compared with, and why.
    """

    prompts: dict[str, list[str]]
    absent: dict[str, str]


class Removed(NamedTuple):
    """A seed that overlaps with a benchmark; also a row of removed.jsonl, by these names."""

    id: str
    source: str
    question: str
    benchmark: str
    prompt: str
    how: str


def check(config: Config) -> None:
    """Refuses names in `config.data.decontaminate` that no benchmark has.

    Raises:
      ValueError: naming them.
    """
    words = split_csv(config.data.decontaminate)
    if words in ((ALL,), (NONE,)):
        return
    known = _comparable()
    unknown = [word for word in words if word not in known]
    if unknown or not words:
        raise ValueError(
            f"{_KEY}: {unknown or 'empty'}, expected {ALL}, {NONE}, or some of {list(known)}"
        )


def _comparable() -> dict[str, Benchmark]:
    """Returns the registered benchmarks that are in a natural language and have rows."""
    return {
        name: one for name, one in registered().items() if not one.world and (one.hub or one.file)
    }


def prompts_of(config: Config, trained_on: Collection[str] = ()) -> Against:
    """Returns the prompts of the benchmarks that `config.data.decontaminate` names.

    Args:
      config: of the run.
      trained_on: benchmarks that ask what the recipe's corpora hold; `all` leaves them out.

    Raises:
      ValueError: where one that is named cannot be read. Of `all` those that cannot are left out.
    """
    words = split_csv(config.data.decontaminate)
    if words == (NONE,):
        return Against({}, {})
    found = Against({}, {})
    offline = ""
    for name in _comparable() if words == (ALL,) else words:
        if words == (ALL,) and name in trained_on:
            found.absent[name] = "a corpus of the recipe holds these very prompts"
            continue
        one, here = registered()[name], benchmarks.has_file(config, name)
        if words == (ALL,) and not here and (offline or not one.hub):
            found.absent[name] = offline or "no such file below config.data.root"
            continue
        try:
            loaded = benchmarks.test_split(config, name, hub=not here)
        except ValueError as error:
            if words != (ALL,):
                raise ValueError(f"{_KEY}: {name}: {error}") from None
            found.absent[name] = str(error)
            if any(word in str(error) for word in _OFFLINE):
                offline = f"not asked for: the hub could not be reached for {name}"
            continue
        found.prompts[name] = list(dict.fromkeys(map(_text, loaded.prompts)))
    if found.absent:
        log.warning(
            "%s: %d benchmarks are not compared with, and seeds may overlap with them: %s",
            _KEY,
            len(found.absent),
            ", ".join(found.absent),
        )
    return found


def _text(prompt: Prompt) -> str:
    return "\n".join([*(content for _, content in prompt.before), prompt.question])


def removed(
    corpora: Mapping[str, Sequence[Seed]], against: Mapping[str, Sequence[str]]
) -> list[Removed]:
    """Returns the seeds that overlap with a prompt, or whose request within an attack does.

    So does a seed whose question overlaps in the other form that a recipe may ask it in.
    """
    if not against:
        return []
    texts: dict[str, str] = {}
    of: dict[str, Seed] = {}
    for seed in (seed for some in corpora.values() for seed in some):
        for part, text in _texts(seed).items():
            key = f"{seed.id}#{part}"
            texts[key], of[key] = text, seed
    found: dict[str, Removed] = {}
    for key, hit in decontaminate.remove(texts, against).removed.items():
        seed = of[key]
        found.setdefault(
            seed.id,
            Removed(seed.id, seed.source, seed.question, hit.benchmark, hit.prompt, hit.how),
        )
    return list(found.values())


def _texts(seed: Seed) -> dict[str, str]:
    others = {key: seed.meta[key] for key in _OTHER if seed.meta.get(key)}
    return {"prompt": seed.prompt, **others}
