"""What made each part of a run: artefacts, settings, and what was left out on the way."""

import collections
import datetime
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from stair_jax.config.schema import KNOBS
from stair_jax.config.stages import STAGES, stage_of
from stair_jax.config.words import split_csv
from stair_jax.evals.report.parts.course import said
from stair_jax.evals.report.parts.files import Files

_ABOUT = "stage finished begun ended settings flags inputs parents hash files results"
_DROPPED, _PASSED = "dropped", ("passed_over", "rejected", "missing", "left_open")
_REASONS = "dropped.jsonl", "removed.jsonl"


class Artefact(NamedTuple):
    """An entry of lineage.json.

    Attributes:
      name: of the artefact.
      stage: that makes it.
      state: "done", or "begun, not finished".
      begun: when, and
      took: how long in words; "" where it is not finished.
      parents: names of artefacts that it is made from.
      inputs: settings that name what it read from outside.
      flags: settings that the command line set, with their values.
      counts: (what, number) that its stage noted.
      hash: of its content.
      differs: (key, its value, today's) of settings that the last command has otherwise.
    """

    name: str
    stage: str
    state: str
    begun: str
    took: str
    parents: Sequence[str]
    inputs: Sequence[str]
    flags: Sequence[tuple[str, str]]
    counts: Sequence[tuple[str, str]]
    hash: str
    differs: Sequence[tuple[str, str, str]]


class Dropped(NamedTuple):
    """Rows of one kind that a rule took away."""

    where: str
    reason: str
    rows: int


class Setting(NamedTuple):
    """A key of the configuration."""

    key: str
    value: str
    default: str
    changed: bool
    meaning: str


def artefacts(lineage: Mapping[str, Any], config: Mapping[str, Any]) -> list[Artefact]:
    """Returns the entries of a lineage in the order in which they were begun.

    Args:
      lineage: of the run.
      config: of its last command, by dotted key.
    """
    entries = [(name, entry) for name, entry in lineage.items() if isinstance(entry, dict)]
    entries.sort(key=lambda item: str(item[1].get("begun", "")))
    return [_artefact(name, entry, config) for name, entry in entries]


def _artefact(name: str, entry: Mapping[str, Any], config: Mapping[str, Any]) -> Artefact:
    settings = _mapping(entry, "settings")
    differs = [
        (key, _shown(value), _shown(config[key]))
        for key, value in sorted(settings.items())
        if key in config and _plain(config[key]) != _plain(value)
    ]
    return Artefact(
        name=name,
        stage=str(entry.get("stage", "")),
        state="done" if entry.get("finished") else "begun, not finished",
        begun=_when(entry.get("begun")),
        took=_between(entry.get("begun"), entry.get("ended")) if entry.get("finished") else "",
        parents=sorted(map(str, _mapping(entry, "parents"))),
        inputs=sorted(map(str, _mapping(entry, "inputs"))),
        flags=[(str(key), _shown(settings.get(key))) for key in entry.get("flags") or ()],
        counts=[
            (key.replace("_", " "), said(float(value)))
            for key, value in entry.items()
            if key not in _ABOUT.split()
            and _is_number(value)
            and not key.startswith(f"{_DROPPED}/")
        ],
        hash=str(entry.get("hash", "")),
        differs=differs,
    )


def _mapping(entry: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = entry.get(key)
    return found if isinstance(found, dict) else {}


def _items(found: Any) -> list[tuple[str, Any]]:
    return list(found.items()) if isinstance(found, dict) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _when(text: Any) -> str:
    """Returns a time of the lineage without its zone, which is UTC."""
    return str(text or "")[:19].replace("T", " ")


def _between(begun: Any, ended: Any) -> str:
    """Returns the time between two of the lineage in words; "" where one is missing."""
    try:
        span = datetime.datetime.fromisoformat(ended) - datetime.datetime.fromisoformat(begun)
    except (TypeError, ValueError):
        return ""
    seconds = int(span.total_seconds())
    hours, minutes = divmod(seconds // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


def left(config: Mapping[str, Any], lineage: Mapping[str, Any]) -> list[str]:
    """Returns what the last command asks for and was not begun: artefacts, or stages.

    Args:
      config: of the command, by dotted key.
      lineage: of the run.
    """
    named, rounds = split_csv(str(config.get("stages", ""))), config.get("rounds")
    begun = {stage_of(str(_mapping(lineage, name).get("stage"))) for name in lineage}
    found = []
    for stage in STAGES:
        if stage.name not in named:
            continue
        numbers = range(1, (rounds if type(rounds) is int else 0) + 1)
        if stage.in_rounds:
            found += [stage.artefact(k) for k in numbers if stage.artefact(k) not in lineage]
        elif (stage.artefact() not in lineage) if stage.output else (stage.name not in begun):
            found.append(stage.output or stage.name)
    return found


def dropped(files: Files, lineage: Mapping[str, Any]) -> list[Dropped]:
    """Returns what rules took away: the lineage's counts, and the files that name each row."""
    found = [
        Dropped(name, reason, count)
        for name, entry in lineage.items()
        if isinstance(entry, dict)
        for reason, count in _of_entry(entry)
    ]
    for model, benchmarks in files.object(files.workdir / "evals" / "results.json").items():
        for benchmark, metrics in _items(benchmarks):
            lost = [metric.get("missing") for _, metric in _items(metrics) if _items(metric)]
            if most := max(filter(_is_number, lost), default=0):
                where = f"evals/{model}, {benchmark}"
                found.append(Dropped(where, "answers without a figure, at most", int(most)))
    for path in files.glob("**/*.jsonl"):
        if path.name in _REASONS:
            reasons = collections.Counter(files.rows(path, _reason))
            found += [Dropped(files.name(path), *item) for item in reasons.most_common()]
    return found


def _of_entry(entry: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in entry.items():
        if key.startswith(f"{_DROPPED}/") and _is_number(value):
            yield key.removeprefix(f"{_DROPPED}/"), int(value)
        elif key == _DROPPED or key in _PASSED:
            yield from _counted(key, value)


def _counted(key: str, value: Any) -> Iterator[tuple[str, int]]:
    """Yields the reasons of an entry's number, list or mapping, with their counts."""
    if isinstance(value, dict):
        counts: collections.Counter[str] = collections.Counter()
        for name, count in value.items():
            # A number of rows by reason, or a reason by the id of a row.
            counts[str(name) if _is_number(count) else str(count)] += (
                int(count) if _is_number(count) else 1
            )
        prefix = "" if key == _DROPPED else f"{key}: "
        yield from ((f"{prefix}{name}", count) for name, count in counts.most_common())
    elif _is_number(value) and value:
        yield key, int(value)


def _reason(row: dict[str, Any]) -> str:
    """Returns why a row of dropped.jsonl or removed.jsonl is not there."""
    if "reason" in row:
        return " ".join(filter(None, [f"{row.get('corpus', '')}:".lstrip(":"), str(row["reason"])]))
    return f"overlaps with {row['benchmark']} ({row['how']})"


def flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Returns a configuration by dotted key."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = value
    return found


def settings(config: Mapping[str, Any]) -> list[Setting]:
    """Returns every key of a configuration, with what it means and is by default."""
    return [
        Setting(
            key=key,
            value=_shown(value),
            default=_shown(KNOBS[key].default) if key in KNOBS else "",
            changed=key not in KNOBS or _plain(KNOBS[key].default) != _plain(value),
            meaning=KNOBS[key].meaning if key in KNOBS else "",
        )
        for key, value in sorted(config.items())
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value)) or "none"
    return "(empty)" if value == "" else str(value)
