"""The Hub when it cannot be reached: found out at once, said in one line."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies

#: Before the name of a repository on the Hub.
PREFIX = "hf-hub:"
PATIENCE = 5  # seconds that a connection may take


@contextmanager
def at_once() -> Iterator[None]:
    """Where the Hub cannot be reached, look into the cache alone: no tries again, nothing in the log."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE:
        logging.disable(logging.ERROR)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        logging.disable(logging.NOTSET)


def _reachable(address: str) -> bool:
    """Whether a connection can be made; taken for granted behind a proxy."""
    url = urlsplit(address)
    if getproxies().get(url.scheme):
        return True
    try:
        socket.create_connection((url.hostname, url.port or (443 if url.scheme == "https" else 80)), PATIENCE).close()
    except (OSError, TypeError):
        return False
    return True


def is_offline(error: BaseException) -> bool:
    """Whether an exception, or any it was raised from, means that the network could not be reached."""
    seen = f"{type(error).__name__}: {error}".lower()
    signs = ("connect", "resolve", "offline", "localentrynotfound", "timed out", "unreachable", "proxy", "urlopen")
    if any(sign in seen for sign in signs):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and is_offline(cause)


def offline(what: str, command: str) -> str:
    return f"{what} is not in the local cache and the network cannot be reached: where there is one, run `{command}`"
