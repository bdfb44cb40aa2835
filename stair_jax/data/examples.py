"""What is trained: tokenised rows, from teacher rows, tree responses and preference pairs."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable

import numpy as np

from stair_jax import text
from stair_jax.model.reward import Readout
from stair_jax.records import (
    Candidate,
    Comparison,
    Pair,
    Preference,
    Response,
    SftRow,
    ValuedTrajectory,
)
from stair_jax.text import OUTPUT_END, TAGS, Codec

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonExample:
    """Two trajectories; a reward model's scores are read at the last token of each."""

    id: str
    prompt: Ids
    better: Ids
    worse: Ids
    depth: int  # of both; 0: whole responses

    @property
    def length(self) -> int:
        """Tokens of the longer side."""
        return len(self.prompt) + max(len(self.better), len(self.worse))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValuedExample:
    """A trajectory, and what a reward model shall say at some of its tokens."""

    id: str
    prompt: Ids
    response: Ids
    reads: Ids  # positions in the whole row, the prompt's tokens included
    targets: tuple[float, ...]  # in [0, 1]: the value between the least reward and the greatest
    weights: tuple[float, ...]
    depths: Ids

    @property
    def length(self) -> int:
        """Tokens of the whole row."""
        return len(self.prompt) + len(self.response)


Example = SftExample | PairExample | ComparisonExample | ValuedExample


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

    A response in steps is finished by its Output block, whatever stands behind it, and has no
    ending without one; a response without any tag is ordinary chat, which is finished where it
    ends.
    """
    examples = []
    for row in rows:
        ids = codec.response_ids(row.response)
        last = max(TAGS, key=row.response.rfind)
        terminal = bool(ids) and (last == OUTPUT_END or last not in row.response)
        prompt = tuple(codec.prompt_ids(row.question, row.before))
        response = closed(ids, terminal, codec)
        examples.append(SftExample(id=row.id, prompt=prompt, response=response))
    return examples


def response_examples(rows: Iterable[Response], codec: Codec) -> list[SftExample]:
    """Takes good responses of trees over, as the ids that were sampled."""
    return [
        SftExample(
            id=row.id,
            prompt=tuple(text.opening_ids(codec, row)),
            response=closed(row.ids, row.terminal, codec),
        )
        for row in rows
    ]


def pair_examples(rows: Iterable[Pair], codec: Codec) -> list[PairExample]:
    """Takes preference pairs over, as the ids that were sampled."""
    return [
        PairExample(
            id=row.id,
            prompt=tuple(text.opening_ids(codec, row)),
            prefix=row.prefix,
            chosen=closed(row.chosen, row.chosen_terminal, codec),
            rejected=closed(row.rejected, row.rejected_terminal, codec),
            depth=row.depth,
        )
        for row in rows
    ]


def answer_example(row: SftRow | Preference, response: str, codec: Codec) -> SftExample:
    """Returns a response without reasoning, all of it the answer, as what the trainer imitates."""
    prompt = tuple(codec.prompt_ids(row.question, row.before))
    return SftExample(id=row.id, prompt=prompt, response=_whole(response, codec))


def preference_example(row: Preference | tuple[Candidate, Candidate], codec: Codec) -> PairExample:
    """Returns two whole responses as what the trainer compares."""
    if isinstance(row, Preference):
        name, prompt = row.id, codec.prompt_ids(row.question, row.before)
        better, worse = _whole(row.chosen, codec), _whole(row.rejected, codec)
    else:
        best, worst = row
        name, prompt = best.prompt, text.opening_ids(codec, best)
        better, worse = closed(best.ids, True, codec), closed(worst.ids, True, codec)
    return PairExample(id=name, prompt=tuple(prompt), prefix=(), chosen=better, rejected=worse)


def _whole(response: str, codec: Codec) -> Ids:
    """Returns a response's ids with the end of the turn: there is no tag that would end it."""
    return closed(codec.response_ids(response), True, codec)


def comparison_examples(
    rows: Iterable[Comparison], codec: Codec, position: str
) -> list[ComparisonExample]:
    """Takes comparisons of trajectories over; `position` is where scores are read."""
    return [
        ComparisonExample(
            id=row.id,
            prompt=tuple(text.opening_ids(codec, row)),
            better=read_to(row.better, position, codec),
            worse=read_to(row.worse, position, codec),
            depth=row.depth,
        )
        for row in rows
    ]


def implicit_examples(rows: Iterable[Comparison], codec: Codec, position: str) -> list[PairExample]:
    """Takes comparisons over as preferences, for an implicit reward model.

    The prefix of a pair is what all trajectories of its prompt begin with.
    """
    whole = [
        (
            row,
            tuple(text.opening_ids(codec, row)),
            [read_to(ids, position, codec) for ids in (row.better, row.worse)],
        )
        for row in rows
    ]
    shared = shared_by_prompt((prompt, sides) for _, prompt, sides in whole)
    return [
        PairExample(
            id=row.id,
            prompt=prompt,
            prefix=(prefix := shared[prompt]),
            chosen=better[len(prefix) :],
            rejected=worse[len(prefix) :],
            depth=row.depth,
        )
        for row, prompt, (better, worse) in whole
    ]


def shared_by_prompt(trajectories: Iterable[tuple[Ids, Iterable[Ids]]]) -> dict[Ids, Ids]:
    """Returns what all trajectories of a prompt begin with, from prompts and some of theirs each.

    At least a token of each remains: its score is read there.
    """
    shared: dict[Ids, Ids] = {}
    for prompt, some in trajectories:
        for ids in some:
            shared[prompt] = common(shared.get(prompt, ids), ids[:-1])
    return shared


def common(first: Ids, second: Ids) -> Ids:
    """Returns the tokens that two trajectories begin with."""
    both = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return tuple(token for token, _ in both)


def valued_examples(
    rows: Iterable[ValuedTrajectory], codec: Codec, readout: Readout
) -> list[ValuedExample]:
    """Takes trajectories with values over; the values are scaled to [0, 1] by the read-out's range.

    Raises:
      ValueError: for a value outside of the range of the rewards, or for a row that is read at
        "eos" and has a label elsewhere than at its end.
    """
    return [_valued_example(row, codec, readout) for row in rows]


def _valued_example(row: ValuedTrajectory, codec: Codec, readout: Readout) -> ValuedExample:
    prompt, low, high = tuple(text.opening_ids(codec, row)), readout.low, readout.high
    response = read_to(row.ids, readout.position, codec)
    for label in row.labels:
        if not low - 1e-3 <= label.value <= high + 1e-3:
            raise ValueError(f"tree node {row.id}: value {label.value}, expected {low} to {high}")
        if readout.position == "eos" and label.tokens != len(row.ids):
            raise ValueError(
                f"tree node {row.id}: a label after {label.tokens} of {len(row.ids)} tokens,"
                " expected it at the end, where eos is"
            )
    ends = [len(response) if readout.position == "eos" else x.tokens for x in row.labels]
    return ValuedExample(
        id=row.id,
        prompt=prompt,
        response=response,
        reads=tuple(len(prompt) + end - 1 for end in ends),
        targets=tuple(min(max((x.value - low) / (high - low), 0.0), 1.0) for x in row.labels),
        weights=tuple(x.weight for x in row.labels),
        depths=tuple(x.depth for x in row.labels),
    )


def read_to(ids: Ids, position: str, codec: Codec) -> Ids:
    """Returns a trajectory up to the token at which its score is read.

    That is its own last one at "step_end". At "eos" it is the end of sequence, put behind finished
    and unfinished trajectories alike (only a policy would learn to stop there) unless it is there.
    """
    ids = tuple(ids)
    return (*ids, codec.eos_id) if position == "eos" and ids[-1:] != (codec.eos_id,) else ids


def fault(example: Example, longest: int) -> str:
    """Returns why an example cannot be trained on, or nothing; `longest` is in tokens."""
    if isinstance(example, SftExample | ValuedExample):
        if not example.response:
            return "empty response"
    elif isinstance(example, ComparisonExample):
        if example.better == example.worse:
            return "equal trajectories"
    elif not example.chosen or not example.rejected:
        return "empty step"
    elif example.chosen == example.rejected:
        return "equal steps"
    return "too long" if example.length > longest else ""


def digest(examples: Iterable[Example]) -> str:
    """Returns a hash that changes with any token or number of any row, and with their order."""
    out = hashlib.blake2b(digest_size=16)
    for example in examples:
        for name, value in vars(example).items():
            data = _plain(value) if isinstance(value, tuple) else str(value).encode()
            out.update(f"{name}:{len(data)};".encode())
            out.update(data.tobytes() if isinstance(data, np.ndarray) else data)
    return out.hexdigest()


def _plain(values: tuple) -> np.ndarray:
    return np.array(values, np.float64 if any(isinstance(x, float) for x in values) else np.int32)
