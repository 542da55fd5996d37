"""What the service counts, as Prometheus reads it. Nothing in it tells of a file or of who sent it."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from corit_cli.detection.verdicts import Prediction

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters of one service; ``waiting`` and ``held`` are asked when they are read."""

    def __init__(self, waiting: Callable[[], int], held: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        self._requests = Counter("corit_requests", "Requests that were answered.", ("path", "status"), **own)
        self._seconds = Histogram(
            "corit_request_seconds", "From a request's head to its answer.", ("path",), buckets=_SECONDS, **own
        )
        self._files = Counter("corit_files", "Files that were looked at.", ("verdict",), **own)
        self._runs = Counter("corit_runs", "Runs of the detector, each on all files that waited.", **own)
        self._busy = Counter("corit_busy_seconds", "Seconds that the detector was at work.", **own)
        Gauge("corit_waiting_files", "Files that wait or are being scored.", **own).set_function(waiting)
        Gauge("corit_held_bytes", "Bytes of uploads in memory.", **own).set_function(held)

    def request(self, path: str, status: int, seconds: float) -> None:
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def file(self, prediction: Prediction) -> None:
        self._files.labels(prediction.verdict or "error").inc()

    def run(self, files: int, seconds: float) -> None:
        self._runs.inc()
        self._busy.inc(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
