"""A server that runs: its worker, its socket, and its end."""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

import uvicorn

from stair_jax.serve import app
from stair_jax.serve.desk import Desk
from stair_jax.serve.guard import LOOPBACK
from stair_jax.serve.limits import Gate, Limits
from stair_jax.serve.metrics import ServerMetrics
from stair_jax.serve.served import Served
from stair_jax.serve.worker import Worker

log = logging.getLogger(__name__)

_CONNECTIONS = 1024  # open at once; further ones are answered with 503


def name_of(host: str) -> str:
    """Returns an address as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


class Server(uvicorn.Server):
    """Ends at the first signal once all is answered, and at the second one at once.

    uvicorn's own would then raise the signal again, so that a server that has ended well would seem
    to have been killed.
    """

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Hears SIGTERM and Ctrl-C meanwhile, where this is the program's main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop, numbers = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, self.told_to_stop)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def told_to_stop(self) -> None:
        """Takes up a signal."""
        if self.should_exit:
            self.force_exit = True
            for task in list(self.server_state.tasks):  # uvicorn waits for their connections
                task.cancel()
            log.warning("stopping at once")
            return
        self.should_exit = True
        log.warning("stopping: what is under way is answered; once more ends it at once")


async def listen(
    models: Sequence[Served],
    listening: socket.socket,
    limits: Limits,
    key: str = "",
    on_start: Callable[[Desk, uvicorn.Server], None] = lambda desk, server: None,
) -> bool:
    """Serves until SIGTERM or Ctrl-C; returns whether it ended because the engine failed.

    Then it takes no further connections, and what is under way has `limits.drain_s` to end.

    Args:
      models: that can be asked, the first where none is named.
      listening: where clients come; it is closed at the end.
      limits: of the server.
      key: that clients must send; "": none.
      on_start: gets the state, and what `should_exit` of ends the server.
    """

    def failed() -> None:
        server.should_exit = True

    worker = Worker(models, asyncio.get_running_loop(), failed)
    by_name = {model.name: model for model in models}
    desk = Desk(by_name, worker, limits, Gate(limits), ServerMetrics())
    hosts = LOOPBACK | {name_of(listening.getsockname()[0])}
    config = uvicorn.Config(
        app.make(desk, key=key, hosts=hosts),
        log_level="warning",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=max(1, round(limits.drain_s)),
        lifespan="off",
    )
    server = Server(config)
    on_start(desk, server)
    try:
        await server.serve(sockets=[listening])
    finally:
        await asyncio.to_thread(worker.close)
    return worker.failure is not None
