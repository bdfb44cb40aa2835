"""/tokenize, /detokenize, /tokenizer_info: the model's tokenizer, as vLLM's server offers it."""

from typing import Any

from fastapi import Request

from stair_jax.serve import logprobs
from stair_jax.serve.desk import Desk
from stair_jax.serve.errors import ApiError
from stair_jax.serve.protocol import DetokenizeRequest, TokenizeRequest
from stair_jax.serve.questions import Question


class TokenHandler:
    """Answers questions about tokens.

    Args:
      desk: the server's state.
    """

    def __init__(self, desk: Desk):
        self._desk = desk

    async def tokenize(self, body: TokenizeRequest) -> dict[str, Any]:
        """Returns the ids of a text, special tokens and all, or those of a chat as it is asked."""
        model = self._desk.model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "prompt, messages: expected one of them", param="prompt")
        if body.messages is not None:
            if body.add_special_tokens is not None:
                raise ApiError(
                    400,
                    "add_special_tokens: not with messages, the template sets them",
                    param="add_special_tokens",
                )
            ids = list(Question(body.messages, model).ids)
        else:
            added = bool(body.add_special_tokens)
            ids = model.codec.tokenizer.encode(body.prompt, add_special_tokens=added)
        return {"tokens": ids, "count": len(ids), "max_model_len": model.max_context}

    async def detokenize(self, body: DetokenizeRequest) -> dict[str, Any]:
        """Returns the text of ids."""
        model = self._desk.model(body.model)
        size = model.codec.size
        if body.tokens and max(body.tokens) >= size:
            raise ApiError(
                400, f"tokens: {max(body.tokens)}, expected below {size}", param="tokens"
            )
        return {"prompt": logprobs.text_of(model.codec, body.tokens)}

    async def info(self, request: Request) -> dict[str, Any]:
        """Returns what the first model's tokenizer is, or that of ?model=NAME."""
        model = self._desk.model(request.query_params.get("model"))
        codec, tokenizer = model.codec, model.codec.tokenizer
        return {
            "tokenizer_class": type(tokenizer).__name__,
            "vocab_size": codec.size,
            "max_model_len": model.max_context,
            "bos_token": tokenizer.bos_token,
            "eos_token": codec.turn_end,
            "pad_token": tokenizer.pad_token,
            "chat_template": codec.chat_template,
        }
