"""A server from its start to its end: it listens, says where, and ends gracefully on Ctrl-C and SIGTERM."""

import asyncio
import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from helium_mlx.engine.engine import HeliumEngine
from helium_mlx.errors import HeliumError
from helium_mlx.server.access import Access
from helium_mlx.server.app import App, Service
from helium_mlx.server.errors import refusal
from helium_mlx.server.http import HttpServer, Limits

# Seconds that answers have to end in, once the server is to.
GRACE = 5.0


# Files that are open beside connections: the model's, the loop's, libraries'.
_OTHER_FILES = 64


@dataclass(frozen=True)
class Address:
    """Where to listen; the system picks a port for 0."""

    host: str
    port: int


def system_limits() -> Limits:
    """Return the limits on clients, with no more connections than the system lets a process have open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    usual = Limits()
    if files == resource.RLIM_INFINITY:
        return usual
    return replace(usual, connections=min(usual.connections, max(files - _OTHER_FILES, 1)))


async def serve(
    engine: HeliumEngine,
    service: Service,
    access: Access,
    address: Address,
    *,
    on_ready: Callable[[str], None],
    limits: Limits | None = None,
    grace: float = GRACE,
) -> None:
    """Answer until Ctrl-C or SIGTERM; `on_ready` is given the server's address. Raises HeliumError for one in use."""
    app = App(engine, service, access)
    server = HttpServer(app, refusal, limits or system_limits(), app.turn_away)
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        port = await server.listen(address.host, address.port)
    except OSError as error:
        # asyncio puts a sentence of its own there; names that are not found have no number of the system's.
        reason = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else error.strerror
        raise HeliumError(
            f"cannot listen at {address.host}:{address.port} ({reason}); give another --port, or end what is there"
        ) from None
    # Of a thread that is not the main one nobody is told of signals; it ends by being cancelled.
    with suppress(NotImplementedError, ValueError, RuntimeError):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, ending.set)
    name = f"[{address.host}]" if ":" in address.host else address.host
    on_ready(f"http://{name}:{port}/")
    try:
        await ending.wait()
    finally:
        await server.close(grace, app.end)
