"""What a chat asks, and where its answer stands in what a model says."""

from collections.abc import Callable, Sequence

from stair_jax import text
from stair_jax.serve import pieces
from stair_jax.serve.errors import ApiError
from stair_jax.serve.pieces import Parts
from stair_jax.serve.protocol import Message
from stair_jax.serve.served import Served
from stair_jax.text import Turn


class Question:
    """The turns of a chat, as plain text. `ids` are those of the prompt; `begun` follows them.

    Args:
      messages: of the client.
      model: that is asked.
      begins: whether the last turn may be the beginning of the answer.

    Raises:
      ApiError: where a system turn is not the first, or the last is not the user's.
    """

    def __init__(self, messages: Sequence[Message], model: Served, *, begins: bool = False):
        # An assistant's earlier turn keeps tags in the codec, and a client must have none.
        codec = model.codec
        turns = [(m.role, text.escape(m.said, codec.specials)) for m in messages]
        self.begun: tuple[int, ...] = ()
        if begins and turns[-1][0] == "assistant":
            *turns, (_, said) = turns
            self.begun = tuple(codec.encode(said))
        roles = [role for role, _ in turns] or ["nobody"]
        if "system" in roles[1:]:
            raise ApiError(
                400, "messages: a system turn that is not the first one", param="messages"
            )
        if roles[-1] == "assistant":
            raise ApiError(
                400,
                "messages: the last turn is the assistant's; the server begins its answers itself,"
                " so that nothing is put into its mouth",
                param="messages",
                code="assistant_prefix",
            )
        if roles[-1] != "user":
            raise ApiError(400, "messages: the last turn is not the user's", param="messages")
        *before, (_, self.last) = turns
        self.before: tuple[Turn, ...] = tuple(before)
        self.ids = (*codec.prompt_ids(self.last, self.before), *self.begun)


def view_of(model: Served) -> Callable[[str, bool], Parts]:
    """Returns what a reader sees of a model's responses."""
    return pieces.direct if model.direct else pieces.reasoned


def answer_of(model: Served, ids: Sequence[int]) -> tuple[int, int]:
    """Returns where a response's answer begins and ends, in its tokens."""
    last = len(ids) - (1 if ids and ids[-1] in model.codec.end_stop else 0)
    if model.direct:
        return 0, last
    opened = ids.index(model.output_id) + 1 if model.output_id in ids else len(ids)
    return min(opened, last), last


def without_end(model: Served, said: str) -> str:
    """Returns a response's text without the token that ends a turn."""
    for end in model.codec.tokenizer.convert_ids_to_tokens(sorted(model.codec.end_ids)):
        if end and said.endswith(end):
            return said.removesuffix(end)
    return said
