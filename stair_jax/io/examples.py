"""What is trained: tokenised rows, from teacher rows, tree responses and preference pairs."""

import dataclasses
import hashlib
from collections.abc import Iterable

import numpy as np

from stair_jax.records import Pair, Response, SftRow
from stair_jax.text import TAGS, Codec

Ids = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftExample:
    """A prompt and what is trained after it; a finished response ends in end-of-sequence."""

    id: str
    prompt: Ids
    response: Ids

    @property
    def length(self) -> int:
        """Tokens of the whole row."""
        return len(self.prompt) + len(self.response)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairExample:
    """Two steps after one context; a step that finishes its trajectory ends in end-of-sequence."""

    id: str
    prompt: Ids
    prefix: Ids  # of the response, shared by both
    chosen: Ids
    rejected: Ids
    depth: int = 0  # steps from the prompt to the compared ones, these included; 0: not of a tree

    @property
    def length(self) -> int:
        """Tokens of the longer side."""
        both = max(len(self.chosen), len(self.rejected))
        return len(self.prompt) + len(self.prefix) + both

    @property
    def sides(self) -> tuple[Ids, Ids]:
        """Both whole responses, the chosen one first."""
        return self.prefix + self.chosen, self.prefix + self.rejected


Example = SftExample | PairExample


def closed(ids: Iterable[int], terminal: bool, codec: Codec) -> Ids:
    """Returns `ids`, with end-of-sequence behind a finished trajectory and only there.

    After an unfinished step it would teach the model to stop there, through the preference and
    the SFT term alike. A trajectory that the model itself has ended stays as it is.
    """
    ids = tuple(ids)
    ended = bool(ids) and ids[-1] in codec.end_ids
    return (*ids, codec.eos_id) if terminal and not ended else ids


def sft_examples(rows: Iterable[SftRow], codec: Codec) -> list[SftExample]:
    """Tokenizes teacher rows.

    A response in steps is finished by its Output block, and has no ending without one; a response
    without any tag is ordinary chat, which is finished where it ends.
    """
    examples = []
    for row in rows:
        ids = codec.response_ids(row.response)
        terminal = bool(ids) and ids[-1] in codec.end_stop
        terminal |= bool(ids) and not any(tag in row.response for tag in TAGS)
        prompt = tuple(codec.prompt_ids(row.question, row.before))
        response = closed(ids, terminal, codec)
        examples.append(SftExample(id=row.id, prompt=prompt, response=response))
    return examples


def response_examples(rows: Iterable[Response], codec: Codec) -> list[SftExample]:
    """Takes good responses of trees over, as the ids that were sampled."""
    return [
        SftExample(
            id=row.id, prompt=tuple(codec.prompt_ids(row.question)),
            response=closed(row.ids, row.terminal, codec),
        )
        for row in rows
    ]  # fmt: skip


def pair_examples(rows: Iterable[Pair], codec: Codec) -> list[PairExample]:
    """Takes preference pairs over, as the ids that were sampled."""
    return [
        PairExample(
            id=row.id, prompt=tuple(codec.prompt_ids(row.question)), prefix=row.prefix,
            chosen=closed(row.chosen, row.chosen_terminal, codec),
            rejected=closed(row.rejected, row.rejected_terminal, codec), depth=row.depth,
        )
        for row in rows
    ]  # fmt: skip


def fault(example: Example, longest: int) -> str:
    """Returns why an example cannot be trained on, or nothing; `longest` is in tokens."""
    if isinstance(example, SftExample):
        if not example.response:
            return "empty response"
    elif not example.chosen or not example.rejected:
        return "empty step"
    elif example.chosen == example.rejected:
        return "equal steps"
    return "too long" if example.length > longest else ""


def digest(examples: Iterable[Example]) -> str:
    """Returns a hash that changes with any id, token or depth of any row, and with their order."""
    out = hashlib.blake2b(digest_size=16)
    for example in examples:
        for name, value in vars(example).items():
            data = np.array(value, np.int32) if isinstance(value, tuple) else str(value).encode()
            out.update(f"{name}:{len(data)};".encode())
            out.update(data.tobytes() if isinstance(data, np.ndarray) else data)
    return out.hexdigest()
