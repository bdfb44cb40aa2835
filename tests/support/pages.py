"""The pages that people read, as they are shown, and what is in them."""

import dataclasses
import pathlib
import re
import shlex

from docs import hooks

ROOT = hooks.ROOT
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

_INCLUDED = re.compile(r'^--8<-- "([^":]+)(?::(\w+))?"$', re.MULTILINE)
_BLOCK = re.compile(r"^```(\w*) *([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NEEDS = re.compile(r'title="Needs (a GPU|GPUs|the network)\b[^"]*"')


def name_of(page: pathlib.Path) -> str:
    """Returns a page's path from the root, for messages."""
    return str(page.relative_to(ROOT))


def shown(page: pathlib.Path) -> str:
    """Returns a page's text with all that the site includes and makes."""
    text = _INCLUDED.sub(_included, page.read_text(encoding="utf-8"))
    return hooks.on_page_markdown(text)


def _included(found: re.Match[str]) -> str:
    text = (ROOT / found[1]).read_text(encoding="utf-8")
    if not found[2]:
        return text
    start, end = (f"<!-- --8<-- [{word}:{found[2]}] -->" for word in ("start", "end"))
    return text.partition(start)[2].partition(end)[0]


def without_blocks(text: str) -> str:
    """Returns a text without its fenced blocks."""
    return _BLOCK.sub("", text)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of a page: its words, without comments and without assignments before them."""

    page: str
    words: tuple[str, ...]
    environment: tuple[str, ...]  # names that are set before it
    needs: str  # what a machine needs to run it; empty: nothing

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def commands_of(page: str, text: str) -> list[Command]:
    """Returns the commands of a text's `bash` blocks."""
    found = []
    for language, attributes, body in _BLOCK.findall(text):
        needs = _NEEDS.search(attributes)
        if language == "bash":
            for line in body.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                set_before = [word.partition("=")[0] for word in words if _is_assignment(word)]
                rest = words[len(set_before) :]
                if rest:
                    said = needs[1] if needs else ""
                    found.append(Command(page, tuple(rest), tuple(set_before), said))
    return found


def _is_assignment(word: str) -> bool:
    return re.fullmatch(r"[A-Z_]+=.*", word) is not None


def commands() -> list[Command]:
    """Returns the commands of all pages."""
    return [one for page in PAGES for one in commands_of(name_of(page), shown(page))]
