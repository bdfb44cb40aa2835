"""The server's paths, and what goes before and behind all of them."""

import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from stair_jax.serve import errors, metrics
from stair_jax.serve.chat_api import ChatHandler
from stair_jax.serve.completion_api import CompletionHandler
from stair_jax.serve.desk import Desk, Gone
from stair_jax.serve.errors import ApiError
from stair_jax.serve.guard import LOOPBACK, Guard
from stair_jax.serve.protocol import ErrorAnswer
from stair_jax.serve.token_api import TokenHandler

log = logging.getLogger(__name__)

_HUNG_UP = 499  # nginx's status of a request whose client has gone; nobody reads it
_REFUSED: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "Something about the request is not right."},
    401: {"model": ErrorAnswer, "description": "No valid key."},
    403: {"model": ErrorAnswer, "description": "Sent to a name that is none of this server's."},
    404: {"model": ErrorAnswer, "description": "No such model."},
    408: {"model": ErrorAnswer, "description": "The body did not come."},
    413: {"model": ErrorAnswer, "description": "The body is too large."},
    429: {"model": ErrorAnswer, "description": "Too much is under way; see Retry-After."},
    500: {"model": ErrorAnswer, "description": "The engine has failed."},
    504: {"model": ErrorAnswer, "description": "It took too long."},
}
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
}


def make(desk: Desk, *, key: str = "", hosts: frozenset[str] = LOOPBACK) -> Guard:
    """Returns the application.

    Args:
      desk: the server's state.
      key: that clients must send; "": none.
      hosts: names that a request without a key may be sent to.
    """
    app = FastAPI(
        title="stair-jax serve",
        version="1",
        description="Models that reason about safety before they answer, in OpenAI's protocol.",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    _add_errors(app)
    _add_paths(app, desk)
    known = {path for route in app.routes if (path := getattr(route, "path", None))}

    def counted(path: str, status: int) -> None:
        desk.metrics.requests[path if path in known else "other", status] += 1

    return Guard(app, desk.limits, key, hosts, counted)


def _add_paths(app: FastAPI, desk: Desk) -> None:
    chat, completion, tokens = ChatHandler(desk), CompletionHandler(desk), TokenHandler(desk)
    posts: Mapping[str, tuple[Callable[..., Any], dict[int | str, dict[str, Any]]]] = {
        "/v1/chat/completions": (chat.answer, _EVENTS),
        "/v1/completions": (completion.answer, _EVENTS),
        "/tokenize": (tokens.tokenize, {}),
        "/detokenize": (tokens.detokenize, {}),
    }
    for path, (handler, more) in posts.items():
        app.add_api_route(
            path, handler, methods=["POST"], response_model=None, responses=_REFUSED | more
        )
    about = _About(desk)
    gets: Mapping[str, Callable[..., Any]] = {
        "/v1/models": about.models,
        "/v1/models/{name:path}": about.model,
        "/tokenizer_info": tokens.info,
        "/health": about.health,
        "/metrics": about.figures,
    }
    for path, handler in gets.items():
        app.add_api_route(
            path,
            handler,
            methods=["GET"],
            response_model=None,
            response_class=PlainTextResponse if path == "/metrics" else JSONResponse,
            responses=_REFUSED,
        )


class _About:
    """Answers what there is, and how it is."""

    def __init__(self, desk: Desk):
        self._desk = desk

    async def models(self) -> dict[str, Any]:
        """Returns the models that can be asked."""
        return {"object": "list", "data": [self._card(name) for name in self._desk.served]}

    async def model(self, name: str) -> dict[str, Any]:
        """Returns one model."""
        return self._card(self._desk.model(name).name)

    def _card(self, name: str) -> dict[str, Any]:
        model = self._desk.served[name]
        return {
            "id": name,
            "object": "model",
            "created": model.created,
            "owned_by": "stair-jax",
            "max_model_len": model.max_context,
            "reasons": not model.direct,
        }

    async def health(self) -> Response:
        """Returns 200 where requests are answered, 503 where the engine has failed."""
        if self._desk.worker.failure is not None:
            return JSONResponse({"status": "failed"}, 503)
        return JSONResponse({"status": "ok"})

    async def figures(self) -> Response:
        """Returns the figures that Prometheus collects."""
        engines = self._desk.worker.figures
        said = self._desk.metrics.text(self._desk.gate.inside, engines)
        return PlainTextResponse(said, media_type=metrics.CONTENT_TYPE)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def ours(_: Request, error: ApiError) -> Response:
        return error.response

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return errors.of_validation(error.errors()).response

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        return ApiError(error.status_code, str(error.detail), headers=error.headers).response

    @app.exception_handler(Gone)
    async def gone(_: Request, error: Gone) -> Response:
        del error
        return Response(status_code=_HUNG_UP)

    @app.exception_handler(Exception)
    async def unknown(_: Request, error: Exception) -> Response:
        number = secrets.token_hex(4)
        log.error("error %s", number, exc_info=error)
        return ApiError(500, f"an error of the server ({number})").response
