"""Text that grows: tokens to pieces, the answer apart from the reasoning, and strings that stop.

Whatever is shown of a text that still grows is a beginning of what will be shown of it at its end,
so that the pieces of a stream add up to the whole.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from stair_jax import text
from stair_jax.text import OUTPUT, OUTPUT_END, STEP, STEP_END, TAGS, Codec

_BROKEN = "\ufffd"  # what a decoder shows of a part of a character
_NAME = "final answer"  # a line that may open the Output block; see `text.final_answer`
_OPENING = re.compile(rf"^\s*{_NAME}\s*:", re.IGNORECASE)
Ids = Sequence[int]


class TextPieces:
    """Turns tokens into text, piece by piece; the pieces add up to the text of all tokens.

    Args:
      decode: returns the text of some ids; parts of a character are U+FFFD in it.
    """

    def __init__(self, decode: Callable[[Ids], str]):
        self._decode = decode
        self._ids: list[int] = []
        # A decoder may treat its first token in its own way, so each piece is read behind the one
        # before it: texts of the tokens from `_start` on, of which those up to `_read` were shown.
        self._start = self._read = 0
        self._shown = 0  # characters beyond them that were shown

    def add(self, ids: Ids) -> str:
        """Returns what more tokens add; a part of a character at the end waits for its rest."""
        self._ids += ids
        before = self._decode(self._ids[self._start : self._read])
        after = self._decode(self._ids[self._start :])
        piece = after.rstrip(_BROKEN)[len(before) + self._shown :]
        if after.endswith(_BROKEN):
            self._shown += len(piece)
        else:
            self._start, self._read, self._shown = self._read, len(self._ids), 0
        return piece


def pieces_of(codec: Codec) -> TextPieces:
    """Returns what turns a codec's tokens into text."""
    decode = codec.tokenizer.decode
    return TextPieces(
        lambda ids: decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )


class Parts(NamedTuple):
    """What a reader sees of a response."""

    reasoning: str
    content: str


def raw(said: str, ended: bool) -> Parts:
    """Returns a text as it is, all of it content."""
    del ended
    return Parts("", said)


def direct(said: str, ended: bool) -> Parts:
    """Returns the response of a model that does not reason, without white space about it."""
    del ended  # white space at the end of what still grows may turn out to be the end's
    return Parts("", text.final_answer(said, direct=True) or "")


def reasoned(said: str, ended: bool) -> Parts:
    """Returns the steps of a response without their tags, and the text of its Output block.

    The block of an ended response that closes it is `text.final_answer`'s; of one that was cut the
    beginning is shown. What is written behind the block is not.
    """
    if not ended:
        said = said[: len(said) - _begun(said, TAGS)]
    steps, opened, rest = said.partition(OUTPUT)
    steps = steps.replace(STEP_END, "\n\n").replace(STEP, "").strip()
    if not opened:
        return Parts(steps, "")
    block, closed, _ = rest.partition(OUTPUT_END)
    if not (ended or closed) and _may_open(block):
        return Parts(steps, "")
    return Parts(steps, _OPENING.sub("", block, count=1).strip())


def _may_open(block: str) -> bool:
    """Returns whether a block's text may be the beginning of "Final Answer:"."""
    said = block.lstrip().lower()
    name, rest = said[: len(_NAME)], said[len(_NAME) :]
    return _NAME.startswith(name) and not rest.strip()


def _begun(said: str, words: Sequence[str]) -> int:
    """Returns how many characters at the end of a text may be the beginning of one of the words."""
    longest = max(map(len, words), default=0)
    for size in range(min(longest - 1, len(said)), 0, -1):
        if any(word.startswith(said[-size:]) for word in words if len(word) > size):
            return size
    return 0


class Reply:
    """One response as it grows, as far as a reader sees it.

    `stopped` is True once one of the strings that stop was found in the content; it and what
    follows is not shown.

    Args:
      codec: of the model.
      view: what a reader sees: `raw`, `direct` or `reasoned`.
      stops: strings that stop.
    """

    def __init__(self, codec: Codec, view: Callable[[str, bool], Parts], stops: Sequence[str] = ()):
        self._pieces, self._view, self._stops = pieces_of(codec), view, stops
        self._ends, self._said, self._shown = codec.end_ids, "", Parts("", "")
        self.ids: list[int] = []
        self.stopped = False

    def add(self, ids: Ids, *, ended: bool) -> Parts:
        """Returns what more tokens add to what is seen.

        Args:
          ids: new tokens; the one that ends a turn is not shown.
          ended: whether these are the last.
        """
        self.ids += ids
        if self.stopped:
            return Parts("", "")
        shown = ids[:-1] if ended and ids and ids[-1] in self._ends else ids
        self._said += self._pieces.add(shown)
        now = self._view(self._said, ended)
        content, self.stopped = self._cut(now.content, ended)
        before, self._shown = self._shown, Parts(now.reasoning, content)
        return Parts(
            self._shown.reasoning[len(before.reasoning) :],
            self._shown.content[len(before.content) :],
        )

    @property
    def shown(self) -> Parts:
        """All that is seen so far."""
        return self._shown

    def _cut(self, content: str, ended: bool) -> tuple[str, bool]:
        """Returns content up to the first string that stops, and whether there was one."""
        found = [at for stop in self._stops if (at := content.find(stop)) >= 0]
        if found:
            return content[: min(found)], True
        if ended:
            return content, False
        return content[: len(content) - _begun(content, self._stops)], False
