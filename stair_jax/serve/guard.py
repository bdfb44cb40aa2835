"""Who is let in, and how much they may send: the first thing that sees a request."""

import asyncio
import hashlib
import hmac
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stair_jax.serve.errors import ApiError
from stair_jax.serve.limits import Limits

OPEN_PATHS = ("/health",)  # no key is needed for them
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})


class Guard:
    """Looks at address, key and size before anything else reads a request.

    A page that a browser has open may send requests to this machine, under a name of its own: where
    no key is asked for, the Host must be one of `hosts`.

    Args:
      app: that answers.
      limits: of the server.
      key: that clients send as "Authorization: Bearer KEY"; "": none is asked for.
      hosts: names without ports that a request without a key may be sent to.
      on_answer: gets path and status of each answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        key: str = "",
        hosts: frozenset[str] = LOOPBACK,
        on_answer: Callable[[str, int], None] = lambda path, status: None,
    ):
        self._app, self._limits, self._hosts = app, limits, hosts
        self._key = _digest(key.encode()) if key else b""
        self._on_answer = on_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or hands it on with its whole body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._on_answer(scope["path"], message["status"])
            await send(message)

        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            self._check(scope["path"], headers)
            body = await self._body(headers, receive)
        except ApiError as error:
            await error.response(scope, receive, told)
            return
        if body is not None:
            await self._app(scope, _replayed(body, receive), told)

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self._key:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            # Digests are of one length, so that the time says nothing about the key's.
            right = hmac.compare_digest(_digest(given.strip()), self._key)
            if path not in OPEN_PATHS and not (right and scheme.lower() == b"bearer"):
                raise ApiError(
                    401,
                    "no valid key, expected the header Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            return
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name not in self._hosts:
            raise ApiError(403, "Host: not a name of this server, which asks for no key")

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """Returns the whole body; None where the client has gone.

        Raises:
          ApiError: 413 where it is too large, 408 where it does not come.
        """
        most = self._limits.body_bytes
        too_large = ApiError(413, f"the body is larger than {most} bytes, the server's limit")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            raise too_large
        parts, size, more = [], 0, True
        try:
            async with asyncio.timeout(self._limits.body_s):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise too_large
                    more = message.get("more_body", False)
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {self._limits.body_s:g} s") from None
        return b"".join(parts)


def _digest(key: bytes) -> bytes:
    return hashlib.blake2b(key).digest()


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Returns what gives a body once, and then what else comes."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
