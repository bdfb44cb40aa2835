"""Dropping what is there, to make it again: `config.redo`."""

import datetime
import json
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

from stair_jax import jsonl
from stair_jax.run.lineage import Lineage

log = logging.getLogger(__name__)

FILE = "redo.json"  # while a run that drops something has not come to its end


class Redo:
    """What a run was asked to drop.

    A run that is started again with the same words, because it was killed, goes on: it does not
    drop once more what it has made since. At the end of a run the note of that goes.

    Args:
      workdir: of the run.
      lineage: forgets at once what shall go, so that the rest can be checked; nothing on the disk
        changes before `carry_out`.
      words: of `config.redo`.

    Raises:
      ValueError: for a word that stands for nothing in the workdir.
    """

    def __init__(self, workdir: pathlib.Path, lineage: Lineage, words: Sequence[str]):
        self._path, self._lineage = workdir / FILE, lineage
        self._note: dict[str, Any] = {}
        if not words:
            return
        if self._path.is_file():
            self._note = json.loads(self._path.read_text(encoding="utf-8"))
        if self._note.get("redo") != list(words):
            self._note = {"redo": list(words), "names": lineage.chosen(words), "gone": False}
        if not self._note["gone"]:
            lineage.forget(self._note["names"])

    def carry_out(self) -> None:
        """Drops, after saying what."""
        if not self._note:
            return
        names = ", ".join(self._note["names"])
        if self._note["gone"]:
            log.info(
                "config.redo: %s went at %s, the run goes on from there", names, self._note["at"]
            )
            return
        log.warning("config.redo: dropping %s", names)
        # First the note: a kill in between must not leave half of it for good.
        jsonl.write_json(self._path, self._note)
        self._lineage.drop(self._note["names"])
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        jsonl.write_json(self._path, self._note | {"gone": True, "at": at})

    def close(self) -> None:
        """Notes that the run came to its end: the next one that asks for it drops anew."""
        self._path.unlink(missing_ok=True)
