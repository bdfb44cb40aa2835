"""The keys of the configuration for people: a list with meanings, and the nearest to a typo."""

import difflib
import textwrap

from stair_jax.config.schema import KNOBS

_WIDTH = 100  # columns
_ALIKE = 0.4  # likeness of a key to a typo, from 0 to 1, from which it is named


def nearest(key: str) -> list[str]:
    """Returns the dotted keys that somebody who wrote `key` may have meant, the likeliest first."""

    def likeness(name: str) -> float:
        return 0.6 * _ratio(key, name) + 0.4 * _ratio(_last(key), _last(name))

    every = sorted(sorted(KNOBS), key=likeness, reverse=True)
    return [name for name in every[:3] if likeness(name) > _ALIKE]


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def listed(word: str = "") -> str:
    """Returns all keys that contain a word, each with its default and its meaning.

    Raises:
      ValueError: where there is none.
    """
    found = [key for key in sorted(KNOBS) if word in key]
    if not found:
        hint = ", ".join(nearest(word))
        raise ValueError(f"keys: no key contains {word!r}" + (f"; near: {hint}" if hint else ""))
    return "\n".join(map(_entry, found))


def _entry(key: str) -> str:
    knob = KNOBS[key]
    lines = textwrap.wrap(knob.meaning, _WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join([f"config.{key} = {knob.default!r}", *lines])
