"""Parts of the pages that are made when they are built, from the source that they describe.

A page has a line that says so and names the part, and mkdocs calls `on_page_markdown`, which puts
the part in its place. Nothing of mkdocs is imported: the tests read the pages as they will
be shown, without it.
"""

import ast
import pathlib
import re
import typing
from collections.abc import Iterator
from typing import Any

from docs import house
from stair_jax.config.knob import Knob, Section, knobs_of
from stair_jax.config.schema import SECTIONS
from stair_jax.evals.benchmark import NO_ANSWER, registered

ROOT = pathlib.Path(__file__).parents[1]
_PLACE = re.compile(
    r"^\*This part is made when the pages are built \(`bash launch/docs\.sh`\): (\w+)\.\*$",
    re.MULTILINE,
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Returns a page's text with all that is made in its place; mkdocs calls it for every page."""
    return _PLACE.sub(lambda found: MADE[found[1]](), markdown)


def keys() -> str:
    """Returns all keys of the configuration: meaning, type, default, range, where they count."""
    return "\n".join(line for section in SECTIONS for line in _section(section))


def _section(section: str) -> Iterator[str]:
    kind = SECTIONS[section]
    yield f"## {section or 'The run'}\n"
    yield f"{_first_sentences(kind)}\n"
    types = typing.get_type_hints(kind)
    for name, knob in knobs_of(kind).items():
        yield f"### {section}.{name}\n".replace("### .", "### ")
        yield f"{_escaped(knob.meaning)}\n{{ .meaning }}\n"
        yield " · ".join(_facts(types[name], knob)) + "\n{ .facts }\n"
        for line in _counts(section, knob):
            yield f"{line}\n{{ .facts }}\n"


def _first_sentences(kind: type[Section]) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def _facts(kind: Any, knob: Knob) -> Iterator[str]:
    default = f'"{knob.default}"' if isinstance(knob.default, str) else str(knob.default)
    if knob.choices:
        yield "one of " + ", ".join(f"`{_shown(word)}`" for word in knob.choices)
    else:
        yield f"`{_type(kind)}`"
    yield f"default `{default}`"
    if knob.among:
        yield str(knob.among).partition(", at most")[0]  # that is what an int32 holds
    if knob.words:
        yield "comma-separated: " + ", ".join(f"`{word}`" for word in knob.words)
    if knob.free:
        yield "may change when a run goes on"


def _counts(section: str, knob: Knob) -> Iterator[str]:
    for under in knob.under:
        what = "" if under.values is None else f"`{'`, `'.join(under.values)}` "
        needs = under.needs.replace("{section}", section)
        yield f"Only under: {what and what + 'needs '}{_escaped(needs)}"


def _type(kind: Any) -> str:
    name = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
    return name.replace("typing.", "")


def _shown(word: str) -> str:
    return word or '""'


def _escaped(text: str) -> str:
    """Returns a text with its Markdown marks escaped, but for code between backticks."""
    pieces = text.split("`")
    pieces[::2] = [re.sub(r"([*\[\]{}])", r"\\\1", x).replace("<", "&lt;") for x in pieces[::2]]
    return "`".join(pieces)


def examples() -> str:
    """Returns the scripts of `examples/`: what each does, its command, and its source.

    Raises:
      ValueError: where one has no docstring.
    """
    return "\n".join(map(_example, sorted((ROOT / "examples").glob("*.py"))))


def _example(path: pathlib.Path) -> str:
    source = path.read_text(encoding="utf-8")
    about = ast.get_docstring(ast.parse(source))
    if not about:
        raise ValueError(f"{path}: found no docstring, expected one that says what it shows")
    title, _, more = about.partition("\n")
    command = f"```bash\npython examples/{path.name}\n```\n"
    code = f"```python\n{source.split(chr(34) * 3, 2)[2].strip()}\n```\n"
    return "\n".join([f"## {title.rstrip('.')}\n", command, more.strip() + "\n", code])


def benchmarks() -> str:
    """Returns a table of the published benchmarks: what is counted, and where rows come from."""
    lines = ["| `evaluate.benchmarks` | figures | hub | below `data.root` |", "|---|---|---|---|"]
    for name, one in registered().items():
        if not one.world:
            hub = f"`{one.hub.name}`" if one.hub else ""
            figures = ", ".join(f"`{metric}`" for metric in one.metrics if metric not in NO_ANSWER)
            lines.append(f"| `{name}` | {figures} | {hub} | `{one.file}` |")
    return "\n".join(lines)


MADE = {
    "keys": keys,
    "rooms": house.listing,
    "examples": examples,
    "benchmarks": benchmarks,
}
