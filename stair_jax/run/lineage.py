"""What made each artefact of a run, and what it is: a guard against mixing results."""

import datetime
import functools
import json
import logging
import pathlib
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from stair_jax import jsonl
from stair_jax.config import ROW_FILES, Config, default
from stair_jax.config.schema import KNOBS
from stair_jax.config.stages import RESULTS, stage_of
from stair_jax.run import hashes
from stair_jax.train.checkpoint import UNFINISHED

log = logging.getLogger(__name__)

Keep = Callable[[str], bool]


def settings_of(config: Config, result: str) -> dict[str, Any]:
    """Returns the settings that a kind of result depends on, by dotted key, as JSON types."""
    found: dict[str, Any] = {}
    for key in sorted(KNOBS):
        if not KNOBS[key].free and _covers(RESULTS[result].settings, key):
            value = functools.reduce(getattr, key.split("."), config)
            found[key] = list(value) if isinstance(value, tuple) else value
    return found


def _covers(keys: tuple[str, ...], key: str) -> bool:
    return any(key == k or key.startswith(k + ".") for k in keys)


# In an artefact's folder: what every start writes anew, and what lies under names of its content.
_REWRITTEN, _KEYED = ("preview.txt", "rubrics.json", "trees.index"), ("reference",)


class Lineage:
    """The artefacts of a workdir, by name ("sft", "round-1/trees", ...), kept in lineage.json.

    An entry holds the settings that the artefact depends on, which of them were flags of a command,
    content hashes of what was read (rows, weights), and the hashes of its parents. It binds once
    something was made with it: until then other settings take its place.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        if path.exists():
            self.entries = _read(path)

    def finished(self, name: str) -> bool:
        """Returns whether the artefact is whole."""
        return bool(self.entries.get(name, {}).get("finished"))

    def binds(self, name: str) -> bool:
        """Returns whether something was made under an entry: other settings would mix with it."""
        if name not in self.entries:
            return False
        return self.finished(name) or any(self._work(name))

    def begin(
        self,
        name: str,
        stage: str,
        settings: Mapping[str, Any],
        parents: tuple[str, ...],
        *,
        flags: Collection[str] = (),
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        """Notes that an artefact is being made, or goes on being made.

        Args:
          name: of the artefact.
          stage: that makes it.
          settings: as `settings_of` gives them.
          parents: artefacts that it is made from.
          flags: dotted keys that the command line set.
          inputs: content hashes of what it reads from outside, by the key that names it.

        Raises:
          ValueError: where something was made with other settings, inputs or parents, by name.
        """
        made_of = {parent: self.entries[parent]["hash"] for parent in parents}
        inputs = dict(inputs or {})
        if self.binds(name):
            self.check(name, settings)
            self.check_inputs(name, inputs)
            if self.entries[name]["parents"] != made_of:
                raise ValueError(
                    f"{self.path}: {name} was begun from {self.entries[name]['parents']}, found"
                    f" {made_of} now; {self.way_out(name)}"
                )
            return
        for left in _REWRITTEN:  # of a start with other settings, which made nothing
            (self.path.parent / name / left).unlink(missing_ok=True)
        self.entries[name] = {
            "stage": stage,
            "finished": False,
            "begun": _now(),
            "settings": dict(settings),
            "flags": sorted(set(flags) & settings.keys()),
            "inputs": inputs,
            "parents": made_of,
        }
        self._write()

    def check(self, name: str, settings: Mapping[str, Any], only: Keep = lambda key: True) -> None:
        """Refuses settings that differ from those an artefact was made with.

        Args:
          name: of the artefact.
          settings: as `settings_of` gives them now.
          only: which keys are compared.

        Raises:
          ValueError: naming the first key, both values, and the way out.
        """
        made = self.entries[name]["settings"]
        if missing := settings.keys() - made.keys():  # keys that came since: as they are by default
            usual = settings_of(default(), self.entries[name]["stage"])
            made = {**{key: usual.get(key) for key in missing}, **made}
        for key in sorted(made.keys() | settings.keys()):
            if only(key) and made.get(key) != settings.get(key):
                found = settings.get(key)
                lost = " (no such file)" if _is_lost(found) else ""
                raise ValueError(
                    f"config.{key}: {found!r}{lost}, but {name} was made with"
                    f" {made.get(key)!r}; keep that value, or {self.way_out(name)}"
                )

    def check_inputs(self, name: str, inputs: Mapping[str, str]) -> None:
        """Refuses rows or weights whose content is another one than an artefact was made from.

        Raises:
          ValueError: naming the setting that says where they lie.
        """
        made = self.entries[name].get("inputs", {})
        for key in sorted(made.keys() & inputs.keys()):
            if made[key] != inputs[key]:
                raise ValueError(
                    f"config.{key}: what it names has changed since {name} was made from it; put it"
                    f" back, or {self.way_out(name)}"
                )

    def note_inputs(self, name: str, inputs: Mapping[str, str]) -> None:
        """Notes that an unfinished artefact goes on with these inputs."""
        self.entries[name]["inputs"] = {**self.entries[name].get("inputs", {}), **inputs}
        self._write()

    def finish(
        self, name: str, digest: str, files: Sequence[pathlib.Path] = (), /, **facts: Any
    ) -> None:
        """Notes that an artefact is whole, with its content hash and facts worth keeping.

        Args:
          name: of the artefact.
          digest: its content hash.
          files: of rows, under the workdir: `verify` will look whether they are still the same.
          facts: JSON values.
        """
        kept = {str(file.relative_to(self.path.parent)): hashes.of_file(file) for file in files}
        self.entries[name] |= {
            "finished": True,
            "ended": _now(),
            "hash": digest,
            "files": kept,
            **facts,
        }
        self._write()

    def verify(self, name: str, accepted: Collection[str] = ()) -> None:
        """Refuses files of an artefact that were changed by hand since it was made.

        Args:
          name: of the artefact.
          accepted: names of artefacts that are taken as they are now; the entry tells so from then
            on, and has another hash.

        Raises:
          ValueError: naming the file and the ways out.
        """
        entry, folder = self.entries[name], self.path.parent
        now = {
            file: hashes.of_file(folder / file) if (folder / file).is_file() else ""
            for file in entry.get("files", {})
        }
        changed = [file for file, digest in now.items() if digest != entry["files"][file]]
        if not changed:
            return
        if name not in accepted or not all(now.values()):
            what = "has changed" if now[changed[0]] else "is gone"
            raise ValueError(
                f"{folder / changed[0]}: {what} since {name} was made; put it back, take it as it"
                f" is with --config.edited={name}, or {self.way_out(name)}"
            )
        log.warning("%s: %s taken as edited", name, ", ".join(changed))
        entry |= {"files": now, "edited": _now(), "hash": hashes.of_text("".join(now.values()))}
        self._write()

    def is_current(self, name: str) -> bool:
        """Returns whether what an artefact was made from is what is there now."""
        made_of = self.entries[name]["parents"]
        return all(self.entries.get(x, {}).get("hash") == digest for x, digest in made_of.items())

    def ancestry(self, names: Collection[str]) -> list[str]:
        """Returns the artefacts that some came from, and these, in the order they were made."""
        found: set[str] = set()
        open_ = list(names)
        while open_:
            name = open_.pop()
            if name in self.entries and name not in found:
                found.add(name)
                open_ += self.entries[name]["parents"]
        return [name for name in self.entries if name in found]

    def way_out(self, name: str) -> str:
        """Returns how to get rid of an artefact, for a message."""
        return f"drop it and what came from it with --config.redo={name}"

    def chosen(self, words: Sequence[str]) -> list[str]:
        """Returns the artefacts that names or stages stand for, and all that came from them.

        Raises:
          ValueError: for a word that stands for nothing here.
        """
        found: set[str] = set()
        for word in words:
            mine = {
                name
                for name in self.entries
                if word in (name, stage_of(self.entries[name]["stage"]))
            }
            if not mine:
                stages = {stage_of(entry["stage"]) for entry in self.entries.values()}
                known = sorted({*self.entries, *stages})
                raise ValueError(f"config.redo: {word!r} is none of {known}")
            found |= mine
        while more := {
            name
            for name, entry in self.entries.items()
            if name not in found
            and (found & entry["parents"].keys() or any(name.startswith(f"{x}/") for x in found))
        }:
            found |= more
        return [name for name in self.entries if name in found]

    def forget(self, names: Sequence[str]) -> None:
        """Takes artefacts out of the entries, in memory alone: `drop` follows."""
        for name in names:
            self.entries.pop(name, None)

    def drop(self, names: Sequence[str]) -> None:
        """Removes artefacts: their entries first, then their folders."""
        self.forget(names)
        self._write()
        for name in names:
            folder = self.path.parent / name
            if folder.exists():
                gone = folder.with_name(f".{folder.name}.dropped")
                shutil.rmtree(gone, ignore_errors=True)
                folder.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)

    def _work(self, name: str) -> Iterator[pathlib.Path]:
        """Yields the files of an artefact that hold work, in no order."""
        root = self.path.parent / name
        others = [
            self.path.parent / other for other in self.entries if other.startswith(f"{name}/")
        ]
        for path in root.rglob("*"):
            parts = path.relative_to(root).parts
            if (
                path.name not in _REWRITTEN
                and not any(part.startswith(".") or UNFINISHED in part for part in parts)
                and parts[0] not in _KEYED
                and not any(path.is_relative_to(other) for other in others)
                and path.is_file()
                and path.stat().st_size
            ):
                yield path

    def _write(self) -> None:
        jsonl.write_json(self.path, self.entries)


def _read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(entries, dict) or not all(isinstance(x, dict) for x in entries.values()):
        raise ValueError(f"{path}: expected an object of objects, one an artefact")
    return entries


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _is_lost(value: object) -> bool:
    """Returns whether a setting names a file of rows that is not there."""
    path = pathlib.PurePath(value) if isinstance(value, str) and "{" not in value else None
    return path is not None and path.suffix in ROW_FILES and not pathlib.Path(path).is_file()
