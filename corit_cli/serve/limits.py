"""What one request, and all of them together, may take; and how a request is refused."""

from __future__ import annotations

import threading
from dataclasses import dataclass

MIB = 1 << 20
SHUTTING_DOWN = "the service is shutting down"


@dataclass(frozen=True)
class Limits:
    """Bytes of a file and of a request, files of a request, files that may wait, bytes of all uploads held at once,
    seconds in which a request must have arrived, and in which it is answered; uploads, and connections, there may be at
    once, each of which takes a descriptor."""

    file: int = 64 * MIB
    request: int = 128 * MIB
    files: int = 32
    waiting: int = 256
    held: int = 1024 * MIB
    arrival: float = 60.0
    answer: float = 120.0
    uploads: int = 2048
    connections: int = 1024


class Refused(Exception):
    """A request that is not answered with a result: its HTTP ``status``, why in one line, and after how many seconds
    it may be tried again, if that helps."""

    def __init__(self, status: int, reason: str, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after = status, reason, retry_after


class Memory:
    """Bytes that all uploads together may take, and how many there may be. May be used from several threads."""

    def __init__(self, limit: int, uploads: int) -> None:
        self.limit, self.uploads = limit, uploads
        self.taken = self.open = 0
        self._lock = threading.Lock()

    def take(self, count: int, uploads: int = 0) -> None:
        """Raises Refused where there is no more room."""
        with self._lock:
            if self.taken + count > self.limit or self.open + uploads > self.uploads:
                raise Refused(503, "too many uploads at once: try again soon", retry_after=5)
            self.taken += count
            self.open += uploads

    def give_back(self, count: int, uploads: int = 0) -> None:
        with self._lock:
            self.taken -= count
            self.open -= uploads
