"""What stands before every request: who may ask, from where, and what every answer says to browsers."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import time
from collections.abc import Collection, Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from corit_cli.serve.limits import Refused
from corit_cli.serve.metrics import Metrics

log = logging.getLogger(__name__)

#: Answered without a token: what shows nothing but the page itself, and that the service runs.
OPEN = frozenset(("/", "/health"))
ASSETS = "/page/"
#: Paths that are counted by their names; all others together.
KNOWN = frozenset(("/", "/health", "/metrics", "/v1/detect", "/v1/report"))
#: The page runs its own scripts and styles, shows pictures that stand in it, and asks nobody but this service.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Middleware. Requests are refused that name another host than ``hosts`` and the machine's addresses, that another
    site's page sent, or that lack the ``token``, if there is one; every answer is counted, and logged without names."""

    def __init__(self, app: ASGIApp, token: str | None, hosts: Iterable[str], metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics
        self._token = None if token is None else _digest(token.encode("utf-8", "surrogateescape"))
        self._hosts = frozenset(host.lower().rstrip(".") for host in ("localhost", *hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                said = {name for name, _ in message["headers"]}
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in said]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            self._check(scope)
        except Refused as refused:
            await refusal(refused)(scope, receive, answer)
        else:
            try:
                await self.app(scope, receive, answer)
            except Exception:
                log.exception("a request failed")
                if status:  # part of an answer is sent: hang up
                    raise
                await refusal(Refused(500, "the request failed"))(scope, receive, answer)
        finally:
            seconds = time.monotonic() - begun
            path = scope["path"] if scope["path"] in KNOWN else "other"
            self.metrics.request(path, status, seconds)
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD") else "other"
            log.info("%s %s %s %.3f s", method, path, status or "gone", seconds)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not named_here(host, self._hosts):
            raise Refused(403, "this service has another name: start it with --allow-host for this one")
        if not same_origin(headers, host, scope["method"]):
            raise Refused(403, "pages of other sites may not use this service")
        path = scope["path"]
        if self._token is None or path in OPEN or path.startswith(ASSETS):
            return
        given = headers.get("authorization", "").encode("latin-1")  # the bytes that were sent
        scheme, _, token = given.partition(b" ")
        right = hmac.compare_digest(_digest(token.strip()), self._token)
        if not (right and scheme.lower() == b"bearer"):
            raise Refused(401, "a token is needed: send the header Authorization: Bearer TOKEN")


def _digest(token: bytes) -> bytes:
    """Of one length, whatever the token's is: comparing takes the same time."""
    return hashlib.sha256(token).digest()


def named_here(host: str, names: Collection[str]) -> bool:
    """Whether a ``Host`` header gives an IP address or one of the ``names``.

    A page that has its own name point at this machine (DNS rebinding) sends that name, and is refused."""
    name = hostname(host)
    if not name:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in names
    return True


def same_origin(headers: Headers, host: str, method: str) -> bool:
    """Whether no browser says that another site's page asks, but for a link to this one. Programs say nothing of the
    kind."""
    origin = headers.get("origin")
    if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
        return False
    if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return True
    return method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"


def hostname(host: str) -> str:
    """The name in a ``Host`` header, without its port; empty where it is malformed."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def refusal(refused: Refused) -> Response:
    """The answer to a request that is refused."""
    headers = {} if refused.retry_after is None else {"retry-after": str(refused.retry_after)}
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({"error": refused.reason}, refused.status, headers)
