"""The service on a socket: until it is told to end, and no client that dawdles holds it up."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from corit_cli.errors import CoritError
from corit_cli.serve.app import Service
from corit_cli.serve.limits import Limits

#: Seconds in which a request's head must have come, and in which some of an answer must have been taken.
HEAD, STALLED = 10.0, 30.0
#: Seconds that requests under way have to end when the service is told to.
GRACE = 4.0
#: Descriptors that uploads and connections leave alone: for what decoders open, and libraries.
SPARE = 256


class Impatient(H11Protocol):
    """uvicorn's HTTP/1.1, which hangs up on clients that do not finish a request's head, go on sending after the
    answer, or do not take it."""

    _waits: asyncio.TimerHandle | None = None
    _stalls: asyncio.TimerHandle | None = None
    _last: Any = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > 2 * self.limit_concurrency:  # too many even to be told so
            transport.abort()
            return
        self._waits = self.loop.call_later(HEAD, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._waits, self._stalls):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        """Nothing has begun since the last look, and nothing is under way."""
        if self.cycle is self._last and (self.cycle is None or self.cycle.response_complete):
            self.transport.abort()
            return
        self._last = self.cycle
        self._waits = self.loop.call_later(HEAD, self._look)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalls = self.loop.call_later(STALLED, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalls is not None:
            self._stalls.cancel()


class Server(uvicorn.Server):
    """uvicorn's server, which ends without an error when it is told to, and tells when it can be reached."""

    def __init__(self, service: Service, started: Callable[[], None] = lambda: None) -> None:
        config = uvicorn.Config(
            service.app,
            http=Impatient,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=service.limits.connections,
            timeout_graceful_shutdown=int(GRACE) + 1,
        )
        super().__init__(config)
        self._service, self._tell = service, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """In the main thread SIGTERM and SIGINT end the server; uvicorn would raise them again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._loop = asyncio.get_running_loop()
        before = {sign: signal.signal(sign, self.handle_exit) for sign in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for sign, handler in before.items():
                signal.signal(sign, handler)

    def handle_exit(self, sign: int, frame: Any) -> None:
        if not self.should_exit:  # what is not done in a while is answered, too: that there will be no result
            self._loop.call_soon_threadsafe(self._loop.call_later, GRACE - 1, self._service.abandon)
        super().handle_exit(sign, frame)


def affordable(limits: Limits) -> Limits:
    """Raises the number of files that this process may open as far as that goes, and the limits lowered to it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.uploads + 2 * limits.connections + SPARE
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):  # macOS has a limit of its own, which it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    left = wanted if soft == resource.RLIM_INFINITY else soft
    # A connection over the limit is open, too, until it has been told so.
    share = min(1.0, max(0, left - SPARE) / (wanted - SPARE))
    uploads, connections = max(1, int(share * limits.uploads)), max(1, int(share * limits.connections))
    return replace(limits, uploads=uploads, connections=connections)


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address of this machine. Raises CoritError where there can be none."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address, family=family, backlog=2048)
    except OSError as error:
        raise CoritError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from None


def run(service: Service, listener: socket.socket, started: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT comes. Returns when all is answered, or does not: a decoder or a model at work
    cannot be interrupted, and the process then ends with it."""
    _log_to_stderr()
    with listener:
        Server(service, started).run(sockets=[listener])
    if not service.close():
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("corit_cli.serve", logging.INFO), ("uvicorn", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    forms = logging.getLogger("python_multipart")  # warns of what a client got wrong, which its answer says
    forms.addHandler(logging.NullHandler())
    forms.propagate = False
