"""What a request asks for, in the engine's words; what cannot be is refused here."""

import secrets
from collections.abc import Sequence

from stair_jax.engine.request import Sampling
from stair_jax.serve.errors import ApiError
from stair_jax.serve.limits import Limits
from stair_jax.serve.protocol import Asked
from stair_jax.serve.served import Served

_LEAST_TEMPERATURE = 1e-3  # but for 0; float32 cannot divide logits by much less


def sampling_of(body: Asked) -> Sampling:
    """Returns how tokens are drawn: greedily, unless a temperature is given.

    Raises:
      ApiError: for several answers that would all be the same, or a temperature that is no use.
    """
    temperature = body.temperature or 0.0
    check_temperature(body)
    if (body.n or 1) > 1 and not temperature:
        raise ApiError(
            400,
            f"n: {body.n} answers at temperature 0 would be the same; set a temperature",
            param="n",
        )
    return Sampling(
        temperature=temperature,
        top_k=body.top_k or 0,
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
    )


def check_temperature(body: Asked) -> None:
    """Refuses a temperature that is neither 0 nor one that logits can be divided by."""
    if body.temperature and body.temperature < _LEAST_TEMPERATURE:
        raise ApiError(
            400,
            f"temperature: {body.temperature:g}, expected 0, or {_LEAST_TEMPERATURE:g} or more",
            param="temperature",
        )


def keys_of(body: Asked) -> tuple[tuple[int | str, ...], ...]:
    """Returns the keys of the draws, one an answer: those of the request's seed, or new ones."""
    seed = secrets.randbits(62) if body.seed is None else body.seed
    return tuple(("serve", seed, index) for index in range(body.n or 1))


def check_stream(body: Asked) -> None:
    """Refuses options of a stream where there is none."""
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options: only with stream", param="stream_options")


def room_for(
    model: Served, ids: Sequence[int], wanted: int | None, usual: int, limits: Limits
) -> int:
    """Returns how many tokens an answer may have.

    Args:
      model: that is asked.
      ids: of the prompt.
      wanted: what the client asks for; None for `usual`, or as many as there is room for.
      usual: where nothing is asked for.
      limits: of the server.

    Raises:
      ApiError: where prompt and answer do not fit the context, or the answer the limit.
    """
    room = model.max_context - len(ids)
    if room < (1 if wanted is None else min(wanted, 1)):
        raise ApiError(
            400,
            f"the prompt has {len(ids)} tokens, and the model's maximum context length is"
            f" {model.max_context} tokens, those of the answer included",
            code="context_length_exceeded",
        )
    most = min(room, limits.max_tokens or room)
    if wanted is None:
        return min(usual, most)
    if wanted > most:
        why = "the server's limit" if most < room else f"the prompt has {len(ids)} tokens"
        raise ApiError(
            400,
            f"max_tokens: {wanted}, and there is room for {most} ({why}; the model's maximum"
            f" context length is {model.max_context} tokens)",
            param="max_tokens",
            code="context_length_exceeded" if most == room else None,
        )
    return wanted
