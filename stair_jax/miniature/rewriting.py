"""Rewrites of the rounds' requests: a question behind the framings that rounds may know."""

from stair_jax.miniature import harm
from stair_jax.miniature.harm import PLAIN
from stair_jax.records import Prompt


def is_plain(prompt: Prompt) -> bool:
    """Returns whether a round's question stands behind no framing."""
    return prompt.meta["framing"] == PLAIN


def for_rounds(prompt: Prompt) -> dict[str, str]:
    """Returns a round's question behind each of `harm.ROUND_FRAMINGS` but its own, by name.

    A framing that it has is taken off first: none stands before another.
    """
    own, bare = prompt.meta["framing"], prompt.question
    if own != PLAIN:
        bare = bare.removeprefix(harm.framed("", own))
    return {name: harm.framed(bare, name) for name in harm.ROUND_FRAMINGS if name != own}
