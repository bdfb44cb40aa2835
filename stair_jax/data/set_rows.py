"""Seeds as the rows of training sets on disk, in forms that `data.formats` and `run.rows` read."""

from collections.abc import Sequence
from typing import Any

from stair_jax.data.recipe import Sets
from stair_jax.data.seeds import Seed

Rows = list[dict[str, Any]]


def of_sets(sets: Sets, files: tuple[str, str, str]) -> dict[str, Rows]:
    """Returns the rows of every set that has some, by the name of its file.

    Args:
      sets: of a recipe, with no response left to be sampled.
      files: names for demonstrations, preferences and prompts; the last has {round} in it.
    """
    found = {
        files[0]: demonstrations(sets.demonstrations),
        files[1]: [preference(seed) for seed in sets.preferences],
    }
    for part, seeds in sets.prompts.items():
        found[files[2].replace("{round}", part)] = [prompt(seed) for seed in seeds]
    return {name: rows for name, rows in found.items() if rows}


def demonstrations(seeds: Sequence[Seed]) -> Rows:
    """Returns rows for stage 1; one conversation makes all of them lists of messages."""
    if not any(seed.before for seed in seeds):
        return [
            _row(seed, id=seed.id, prompt=seed.question, answer=seed.response) for seed in seeds
        ]
    return [
        _row(seed, id=seed.id, messages=[*_messages(seed), _message("assistant", seed.response)])
        for seed in seeds
    ]


def preference(seed: Seed) -> dict[str, Any]:
    """Returns a row for the baselines."""
    asked: Any = _messages(seed) if seed.before else seed.question
    return _row(seed, id=seed.id, prompt=asked, chosen=seed.chosen, rejected=seed.rejected)


def prompt(seed: Seed) -> dict[str, Any]:
    """Returns a row for the search."""
    asked = {"messages": _messages(seed)} if seed.before else {"question": seed.question}
    truth = {} if seed.ground_truth is None else {"ground_truth": seed.ground_truth}
    return _row(seed, id=seed.id, **asked, **truth)


def _row(seed: Seed, **more: Any) -> dict[str, Any]:
    return more | {"type": seed.type, "source": seed.source}


def _messages(seed: Seed) -> Rows:
    return [_message(*turn) for turn in (*seed.before, ("user", seed.question))]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
