"""The keys of the configuration for people: a list with meanings, and the nearest to a typo.

What a key means is said once, in the comments of `defaults`; they are read from its source.
"""

import ast
import difflib
import functools
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator

from stair_jax.config import defaults
from stair_jax.config.defaults import Config

_WIDTH = 100  # columns
_ALIKE = 0.4  # likeness of a key to a typo, from 0 to 1, from which it is named


def keys(c: Config, prefix: str = "") -> Iterator[str]:
    """Yields the dotted keys of a configuration, without those of sections."""
    for name, value in c.items():
        if hasattr(value, "items"):
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def nearest(key: str) -> list[str]:
    """Returns the dotted keys that somebody who wrote `key` may have meant, the likeliest first."""

    def likeness(name: str) -> float:
        return 0.6 * _ratio(key, name) + 0.4 * _ratio(_last(key), _last(name))

    every = sorted(keys(defaults.default()), key=likeness, reverse=True)
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
    c = defaults.default()
    found = [key for key in keys(c) if word in key]
    if not found:
        hint = ", ".join(nearest(word))
        raise ValueError(f"keys: no key contains {word!r}" + (f"; near: {hint}" if hint else ""))
    return "\n".join(_entry(key, functools.reduce(getattr, key.split("."), c)) for key in found)


def _entry(key: str, value: object) -> str:
    meaning = meanings().get(key, "")
    lines = textwrap.wrap(meaning, _WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join([f"config.{key} = {value!r}", *lines])


@functools.cache
def meanings() -> dict[str, str]:
    """Returns what each key means, by its dotted name: the comment where it gets its default."""
    source = inspect.getsource(defaults)
    comments = _comments(source)
    found: dict[str, str] = {}
    for function in ast.parse(source).body:
        if isinstance(function, ast.FunctionDef):
            for path, line in _assigned(function):
                found[path] = comments.get(line, "")
    return {key: found.get(key) or found.get(_shared(key), "") for key in keys(defaults.default())}


def _shared(key: str) -> str:
    """Returns what the source calls a key of a trainer: the stages share them."""
    return key[key.index("train.") :] if ".train." in key else key


def _assigned(function: ast.FunctionDef) -> Iterator[tuple[str, int]]:
    """Yields the dotted keys that a function of `defaults` sets, each with its line."""
    sections = {"c": ""}  # by the name of a variable
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign):
            continue
        *short, target = node.targets  # as in s = c.search = ConfigDict()
        path = _path(target, sections)
        if path is None:
            continue
        sections |= {name.id: f"{path}." for name in short if isinstance(name, ast.Name)}
        yield path, node.end_lineno or node.lineno


def _path(target: ast.expr, sections: dict[str, str]) -> str | None:
    """Returns the dotted key of a target such as `s.top_p`; None where it is none."""
    names: list[str] = []
    while isinstance(target, ast.Attribute):
        names.insert(0, target.attr)
        target = target.value
    if not names or not isinstance(target, ast.Name) or target.id not in sections:
        return None
    return sections[target.id] + ".".join(names)


def _comments(source: str) -> dict[int, str]:
    """Returns the comment behind each line, with those that go on below it, on lines of their own.

    Such a line begins with more blanks than one behind its mark.
    """
    found: dict[int, str] = {}
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, text = token.start[0], token.string.removeprefix("#")
        goes_on = not token.line[: token.start[1]].strip() and text.startswith("   ")
        if goes_on and last:
            found[last] += f" {text.strip()}"
        else:
            found[line], last = text.strip(), line
    return found
