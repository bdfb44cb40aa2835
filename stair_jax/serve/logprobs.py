"""Log-probs as OpenAI's two protocols show them.

They are the model's own: of temperature 1, before any filter, whatever the tokens were drawn with.
"""

from collections.abc import Sequence
from typing import Any

from stair_jax.engine.likelihood import Told
from stair_jax.serve.pieces import pieces_of
from stair_jax.text import Codec


def text_of(codec: Codec, ids: Sequence[int]) -> str:
    """Returns the text of some tokens by themselves; parts of a character are U+FFFD."""
    return codec.tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def of_completion(
    codec: Codec, ids: Sequence[int], told: Told | None, first: int
) -> dict[str, Any]:
    """Returns the lists of a completion.

    Args:
      codec: of the model.
      ids: all tokens of prompt and answer.
      told: of each but the first; None where there is only one.
      first: which of them are shown, from this one on. The first of all has no log-prob.
    """
    pieces, offsets, length = pieces_of(codec), [], 0
    for id in ids:
        offsets.append(length)
        length += len(pieces.add([id]))
    logps: list[float | None] = [None]
    tops: list[dict[str, float] | None] = [None]
    if told is not None:
        logps += told.logps.tolist()
        tops += [_top(codec, *row) for row in zip(told.top_ids, told.top_logps, strict=True)]
    base = offsets[first] if first < len(offsets) else length
    return {
        "tokens": [text_of(codec, [id]) for id in ids[first:]],
        "token_logprobs": logps[first:],
        "top_logprobs": tops[first:],
        "text_offset": [offset - base for offset in offsets[first:]],
    }


def _top(codec: Codec, ids: Any, logps: Any) -> dict[str, float]:
    """Returns log-probs by text; of tokens that look the same, the likeliest one's."""
    found: dict[str, float] = {}
    for id, logp in zip(ids.tolist(), logps.tolist(), strict=True):
        found.setdefault(text_of(codec, [id]), logp)
    return found


def of_chat(codec: Codec, ids: Sequence[int], told: Told) -> dict[str, Any]:
    """Returns the list of a chat's answer: its tokens, each with its alternatives.

    Args:
      codec: of the model.
      ids: of the answer's tokens.
      told: of these.
    """
    rows = zip(ids, told.logps, told.top_ids, told.top_logps, strict=True)
    return {
        "content": [
            {
                **_entry(codec, id, float(logp)),
                "top_logprobs": [
                    _entry(codec, *pair)
                    for pair in zip(top_ids.tolist(), top_logps.tolist(), strict=True)
                ],
            }
            for id, logp, top_ids, top_logps in rows
        ]
    }


def _entry(codec: Codec, id: int, logp: float) -> dict[str, Any]:
    token = text_of(codec, [id])
    return {"token": token, "logprob": logp, "bytes": list(token.encode())}
