"""Replies that were paid for, on disk, so that nothing is asked a second time."""

import hashlib
import json
import logging
import pathlib
from collections.abc import Sequence

from stair_jax import jsonl
from stair_jax.config.schema import JudgeConfig
from stair_jax.config.words import split_csv
from stair_jax.text import Turn

log = logging.getLogger(__name__)

FILE = "judgements.jsonl"


class ReplyCache:
    """Replies by the content of their requests: a file that is only ever appended to.

    A line is {"key", "model", "reply"}; a reply of null says that the model was asked and gave
    none, and "why". A torn line costs its own reply only. Several runs may append to one file at a
    time; each knows what was there when it opened it. One thread at a time may use an object.

    Args:
      folder: made where it is missing.
    """

    def __init__(self, folder: pathlib.Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE
        self._replies: dict[str, str | None] = {}
        self._reasons: dict[str, str] = {}  # why there is no reply, by key
        data = self._path.read_bytes() if self._path.exists() else b""
        broken = sum(not self._take(line) for line in data.splitlines())
        if broken:
            log.warning("%s: %d broken lines passed over", self._path, broken)
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
        if data and not data.endswith(b"\n"):  # what was torn must not tear the next line too
            jsonl.append(self._file, b"\n")

    def _take(self, line: bytes) -> bool:
        """Reads a line; returns whether it is one of ours, or empty."""
        try:
            row = json.loads(line) if line.strip() else {}
        except ValueError:
            return False
        if row == {}:
            return True
        if not isinstance(row, dict) or not isinstance(row.get("key"), str):
            return False
        reply = row.get("reply", 0)
        if not isinstance(reply, str | None):
            return False
        self._note(row["key"], reply, str(row.get("why", "")))
        return True

    def _note(self, key: str, reply: str | None, why: str) -> None:
        self._replies[key] = reply
        if why:
            self._reasons[key] = why

    def __contains__(self, key: str) -> bool:
        return key in self._replies

    def __getitem__(self, key: str) -> str | None:
        return self._replies[key]

    def get(self, key: str) -> str | None:
        """Returns a reply; None where there is none, or where it is not known."""
        return self._replies.get(key)

    def settled(self, key: str) -> bool:
        """Returns whether a question need not be asked: there is a reply, or a reason for none.

        Files of before have no reasons; a broken server may have been one.
        """
        return self._replies.get(key) is not None or key in self._reasons

    def add(self, key: str, model: str, reply: str | None, why: str = "") -> None:
        """Keeps a reply, for good once this returns; `why` says why there is none.

        Raises:
          OSError: where the disk does not take it.
        """
        self._note(key, reply, why)
        row = {"key": key, "model": model, "reply": reply} | ({"why": why} if why else {})
        # One write a line, as long as the disk takes it: lines of two processes do not mix.
        jsonl.append(self._file, json.dumps(row).encode() + b"\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def key_of(
    config: JudgeConfig,
    question: str,
    number: int,
    system: str = "",
    *,
    before: Sequence[Turn] = (),
    seed: int | None = None,
) -> str:
    """Returns the name of a request: all that its reply depends on, but not who is asked where.

    Args:
      config: the model and how it draws; what is left out of the request does not count.
      question: the whole text that is sent.
      number: of the sample, from 0.
      system: the system turn before it. Without one the name is that of files of before.
      before: further earlier turns, and
      seed: of the draws; likewise.
    """
    names, left_out = ("temperature", "top_p", "max_tokens"), split_csv(config.leave_out)
    settings = [None if name in left_out else getattr(config, name) for name in names]
    content = [config.model, question, *settings, number, *([system] if system else [])]
    if before or seed is not None:
        content += [[list(turn) for turn in before], seed]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()
