"""A run as a page to look at: `workdir/report/index.html`, from the files of a workdir alone.

The page is static and loads nothing from elsewhere. What is large (trees, pairs, answers) lies in
small files beside it, in `report/data/`, which it loads when somebody looks: it works from a disk,
and the folder can be copied. All that models wrote is data for it, never markup or code: what is in
the page is escaped, what it loads is base64, and what it shows is set as text. Its Content Security
Policy lets its own script run, by its hash, and what that one loads, and nothing else.
"""

import base64
import dataclasses
import datetime
import functools
import hashlib
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2

from stair_jax import jsonl
from stair_jax.evals.report.parts import (
    answers,
    course,
    figures,
    glance,
    grown,
    markdown,
    origins,
    rows,
    shards,
)
from stair_jax.evals.report.parts.files import Files
from stair_jax.evals.report.parts.shards import Source

PAGE, DATA = "index.html", "data"
_TEMPLATES = pathlib.Path(__file__).parent / "parts" / "templates"
_GROUPS = ("trees", "pairs", "answers", "judges", "rows")
_TABLES = (  # pages that stage evaluate writes, by section
    ("results", "table.md"),
    ("results", "comparisons.md"),
    ("results", "attacks.md"),
    ("results", "causal.md"),
    ("judges", "judges.md"),
)
_PICTURES = (
    ("plane.png", "Attacks that got an answer against harmless prompts that got none, by model"),
    ("rounds.png", "Each share over the models, with its interval"),
    ("search.png", "Score against generated tokens, by way of searching at test time"),
)
_TEXTS = ("data/card.md", "**/preview.txt", "export/*/README.md")


def write(workdir: pathlib.Path) -> pathlib.Path:
    """Writes a run's report and returns the path of its page.

    The run may be unfinished, running or killed: what is there is shown, and what cannot be read is
    counted on the page. Nothing outside `report/` is touched. A page that was there stays until the
    new one is whole.

    Args:
      workdir: of the run.

    Raises:
      ValueError: where it is no workdir of a run.
      OSError: where the report cannot be written.
    """
    if not any((workdir / name).is_file() for name in ("config.json", "lineage.json")):
        raise ValueError(f"{workdir}: no config.json, expected the workdir of a run")
    folder = workdir / "report" / DATA
    folder.mkdir(parents=True, exist_ok=True)
    files = Files(workdir)
    facts, sources = _facts(files, folder)
    path = workdir / "report" / PAGE
    jsonl.write_text(path, _page(facts, sources).encode(errors="replace").decode())
    kept = {f"{name}.js" for source in sources for name in (*source.index, *source.parts)}
    for old in folder.glob("*.js"):
        if old.name not in kept:  # of a page that was there before
            old.unlink()
    return path


def _facts(files: Files, folder: pathlib.Path) -> tuple[dict[str, Any], list[Source]]:
    """Returns what the page says, and writes what it loads."""
    workdir = files.workdir
    lineage = files.object(workdir / "lineage.json")
    config = origins.flat(files.object(workdir / "config.json"))
    results = files.object(workdir / "evals" / "results.json")
    found = list(grown.rounds(files, folder, lineage))
    sources = list(itertools.chain.from_iterable(some for _, some in found))
    sources += answers.sources(files, folder, answers.ratings_of(files), list(results))
    sources += rows.disagreements(files, folder)
    sources += rows.sources(files, folder)
    rounds, stages = [one for one, _ in found], course.stages(files)
    artefacts, dropped = origins.artefacts(lineage, config), origins.dropped(files, lineage)
    scales = figures.scales(results)
    return {
        "name": workdir.resolve().name,
        "made": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "state": glance.state(artefacts, stages, origins.left(config, lineage)),
        "findings": glance.findings(scales, rounds, stages, dropped),
        "scales": scales,
        "figures": list(figures.every(results)),
        "pages": list(_pages(files)),
        "pictures": list(_pictures(files)),
        "rounds": rounds,
        "round_head": ["figure", *(f"round {one.number}" for one in rounds)],
        "round_rows": glance.round_rows(rounds),
        "dropped": dropped,
        "stages": stages,
        "tables": course.tables(stages),
        "artefacts": artefacts,
        "settings": origins.settings(config),
        "changed": [(*one[:3], one.meaning) for one in origins.settings(config) if one.changed],
        "every_setting": [(*one[:3], one.meaning) for one in origins.settings(config)],
        "texts": list(_texts(files)),
        "reward_model": _held_out(files.object(workdir / "prm" / "report.json")),
        "exports": list(_exports(files)),
        "problems": files.problems,
    }, sources


def _pages(files: Files) -> Iterator[tuple[str, str, list[markdown.Part]]]:
    """Yields (section, file, parts) of each page of Markdown that stage evaluate wrote."""
    for section, name in _TABLES:
        if text := files.text(files.workdir / "report" / name):
            yield section, name, list(markdown.parts(text))


def _pictures(files: Files) -> Iterator[tuple[str, str]]:
    """Yields (address, what it shows) of each picture; the address holds the picture itself."""
    for name, shows in _PICTURES:
        path = files.workdir / "report" / name
        if path.is_file():
            yield f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}", shows


def _texts(files: Files) -> Iterator[tuple[str, str]]:
    for pattern in _TEXTS:
        for path in files.glob(pattern):
            yield files.name(path), files.text(path)


def _held_out(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what the reward model comes to on trees that it was not trained on."""
    found = report.get("held_out")
    if not isinstance(found, dict):
        return []
    return [
        (key, course.said(float(x)) if type(x) in (int, float) else str(x))
        for key, x in found.items()
    ]


def _exports(files: Files) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    for path in files.glob("export/**/export_report.json"):
        facts = files.object(path)
        yield files.name(path.parent), [(key, str(value)) for key, value in facts.items()]


def _page(facts: Mapping[str, Any], sources: Sequence[Source]) -> str:
    frame = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, style = _text("report.js"), _text("report.css")
    groups = {name: [one for one in sources if one.group == name] for name in _GROUPS}
    return frame.get_template("index.html.jinja").render(
        facts,
        policy=_policy(script, style),
        script=script,
        style=style,
        groups=groups,
        manifest=_in_page([dataclasses.asdict(source) for source in sources]),
    )


@functools.cache
def _text(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _policy(script: str, style: str) -> str:
    """Returns the page's Content Security Policy.

    The script may load files ("strict-dynamic"), for "self" means little to a page on a disk, and
    may set no markup ("trusted types") but the addresses of those files.
    """
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_source(script)} 'strict-dynamic'",
            f"style-src {_source(style)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types shards",
        )
    )


def _source(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _in_page(data: Any) -> str:
    """Returns JSON that can end no element of the page that holds it."""
    text = shards.to_json(data)
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text
