"""What clients may send, in OpenAI's words and a few of vLLM's; whatever else they send is refused.

An option that is here reaches the answer. One whose only accepted value is the one that changes
nothing (a penalty of 0) is here since many clients always send it.
"""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

Text = Annotated[str, Field(max_length=1_000_000)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Zero = Annotated[float, Field(ge=0, le=0)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Strict(pydantic.BaseModel):
    """Refuses keys that it does not know, and takes no value for another kind of value."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    """What a stream holds beside the answer."""

    include_usage: bool = Field(False, description="a last event with the counts of tokens")


class Asked(Strict):
    """What all requests for text have in common."""

    model: str = Field(description="a name of /v1/models", max_length=500)
    temperature: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="0: the likeliest token; by default 0, in a search the run's",
    )
    top_p: float | None = Field(None, ge=0, le=1, description="1: off")
    top_k: int | None = Field(None, ge=0, lt=2**31, description="0: off")
    min_p: float | None = Field(
        None, ge=0, le=1, description="least probability of a token, of the likeliest one's; 0: off"
    )
    seed: Seed | None = Field(None, description="fixes the draws; by default they differ")
    n: int | None = Field(None, ge=1, le=128, description="answers; more than 1 want a temperature")
    stop: Text | Annotated[list[Text], Field(max_length=64)] | None = Field(
        None, description="strings that end an answer and are not part of it"
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Zero | None = Field(None, description="0 only")
    presence_penalty: Zero | None = Field(None, description="0 only")
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = Field(
        None, description="empty only"
    )

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end an answer."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in given if stop)


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class Message(Strict):
    """A turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=1000)]

    @property
    def said(self) -> str:
        """The text of all parts."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class PlainFormat(Strict):
    """The only form of an answer: text."""

    type: Literal["text"]


class ChatRequest(Asked):
    """A question with the turns before it."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)] = Field(
        description="a system turn at most, at the front; the last turn is the user's"
    )
    max_tokens: int | None = Field(None, ge=1, lt=2**31, description="of an answer with its steps")
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31, description="the newer name")
    logprobs: bool | None = Field(None, description="those of the answer's tokens")
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: PlainFormat | None = None
    search: str | None = Field(
        None,
        max_length=100,
        description="how the answer is found: greedy, best_of_N, vote_of_N, random_of_N, beam_WxM,"
        " diverse_WxM, lookahead_WxM, mcts_N; best_of_n and beam stand for the paper's sizes",
    )


class CompletionRequest(Asked):
    """Text or tokens that go on, without a chat template."""

    prompt: (
        Text
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Text], Field(min_length=1, max_length=128)]
        | Annotated[
            list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=128)
        ]
    ) = Field(description="one or more texts, or one or more lists of token ids")
    max_tokens: int | None = Field(None, ge=0, lt=2**31, description="16 by default, as OpenAI's")
    echo: bool | None = Field(None, description="whether the prompt stands before what is drawn")
    logprobs: int | None = Field(None, ge=0, le=20, description="alternatives of each token")
    best_of: int | None = Field(None, ge=1, le=128, description="as n only")
    suffix: Annotated[str, Field(max_length=0)] | None = Field(None, description="empty only")


class TokenizeRequest(Strict):
    """Text to be made tokens of: one text, or the turns of a chat."""

    model: str | None = Field(None, max_length=500, description="by default the first one")
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)] | None = None
    add_special_tokens: bool | None = Field(
        None, description="of a text: whether what a tokenizer puts before it is wanted"
    )


class DetokenizeRequest(Strict):
    """Tokens to be made text of."""

    model: str | None = Field(None, max_length=500, description="by default the first one")
    tokens: list[TokenId]


class ErrorBody(pydantic.BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(pydantic.BaseModel):
    """What every error's answer holds."""

    error: ErrorBody
