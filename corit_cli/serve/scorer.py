"""The one thread that owns the detector, and the queue before it.

Requests that wait together are scored in one run of :meth:`Detector.predict`, which decodes ahead in threads and fills
batches across files, as ``corit detect`` does; a request that comes while a run is under way joins it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import asdict, dataclass

from corit_cli.data.stored import Stored
from corit_cli.detection.detector import Detector
from corit_cli.detection.verdicts import Prediction
from corit_cli.serve.limits import SHUTTING_DOWN, Refused
from corit_cli.serve.upload import Upload

log = logging.getLogger(__name__)

#: What is told of each file, in the scoring thread: the detector, the upload, what was found.
See = Callable[[Detector, Upload, Prediction], None]


@dataclass(frozen=True)
class Wanted:
    """How files are to be looked at: the fields of :meth:`Detector.predict`, and ``strict``."""

    strict: bool
    faces: str
    stability: bool
    provenance: bool
    frames: int


class Job:
    """Files to be looked at together. They belong to the job from now on, which closes them; ``done`` is set when
    ``see`` has been told of all."""

    def __init__(self, uploads: Sequence[Upload], wanted: Wanted, see: See) -> None:
        self.uploads, self.wanted, self.see = list(uploads), wanted, see
        self.done: Future[None] = Future()
        self.given_up = False  # by the client, or for its time: what has not begun need not
        self.left = len(self.uploads)

    def finish(self, error: BaseException | None = None) -> None:
        """Set ``done``, and forget the files, which no thread may be reading."""
        self.left = 0
        for upload in self.uploads:
            upload.close()
        self._set(error)

    def fail(self, error: BaseException) -> None:
        """Answer with an error while the files may still be read."""
        self.given_up = True
        self._set(error)

    def _set(self, error: BaseException | None) -> None:
        with suppress(InvalidStateError):  # answered before, or nobody waits
            self.done.set_result(None) if error is None else self.done.set_exception(error)


class Scorer:
    """A thread that scores jobs in order. ``most`` files may wait, those being scored among them; ``workers`` threads
    decode. ``told`` is called, in that thread, with the files and seconds of every run."""

    def __init__(
        self,
        detector: Detector,
        most: int,
        workers: int | None = None,
        told: Callable[[int, float], None] = lambda files, seconds: None,
    ) -> None:
        self.detectors = {False: detector, True: detector.strictly()}
        self.most, self.workers, self._told = most, workers, told
        self._queue: deque[Job] = deque()
        self._begun: list[Job] = []  # taken from the queue and not finished
        self._wake = threading.Condition()
        self._stopping = False
        self._pace = 0.5  # seconds a file
        self._thread = threading.Thread(target=self._run, name="scorer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Files that wait or are being scored."""
        with self._wake:
            return self._waiting()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    def check(self, files: int = 1) -> None:
        """Raise Refused where there is no room for so many more files."""
        with self._wake:
            self._check(files)

    def submit(self, job: Job) -> None:
        """Put a job into the queue. Raises Refused where that is full; the files are then forgotten."""
        try:
            with self._wake:
                self._check(len(job.uploads))
                self._queue.append(job)
                self._wake.notify()
        except Refused:
            job.finish()
            raise

    def give_up(self, job: Job) -> None:
        """Nobody waits for a job any more: what of it was not begun need not be."""
        with self._wake:
            job.given_up = True
            if job not in self._queue:
                return
            self._queue.remove(job)
        job.finish()

    def abandon(self) -> None:
        """Take no more jobs, and answer all that are not done with an error: the service ends."""
        with self._wake:
            self._stopping = True
            ending = [*self._queue, *self._begun]
            self._wake.notify()
        for job in ending:
            job.fail(Refused(503, SHUTTING_DOWN))

    def join(self, seconds: float) -> bool:
        """Wait for the thread to end; whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    # --- in the thread ---

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._stopping)
                if self._stopping:
                    break
                wanted = self._queue[0].wanted
            try:
                self._score(wanted)
            except Exception as error:  # of one run: the thread goes on
                log.exception("scoring failed")
                self._end_all(Refused(500, f"scoring failed ({type(error).__name__})"))
        for job in self._queue:
            job.finish()

    def _score(self, wanted: Wanted) -> None:
        """One run of the detector, on all that waits or comes in the meantime and wants the same."""
        begun, files = time.monotonic(), 0
        detector = self.detectors[wanted.strict]
        how = {name: value for name, value in asdict(wanted).items() if name != "strict"}
        flight: deque[tuple[Job, Upload]] = deque()  # in the order in which predictions come

        def stop() -> bool:  # a video is looked at when all before it have been told of: it is the first in flight
            return self._stopping or flight[0][0].given_up

        for prediction in detector.predict(self._sources(wanted, flight), self.workers, stop=stop, **how):
            job, upload = flight.popleft()
            files += 1
            try:
                if not job.given_up:
                    job.see(detector, upload, prediction)
            except Exception:
                log.exception("a result could not be written down")
                job.fail(Refused(500, "the result could not be written down"))
            self._count_down(job, 1)
            if self._stopping:
                break
        self._end_all(Refused(503, SHUTTING_DOWN))  # none is left but then
        seconds = time.monotonic() - begun
        if files:
            self._pace += 0.3 * (seconds / files - self._pace)
            self._told(files, seconds)

    def _sources(self, wanted: Wanted, flight: deque[tuple[Job, Upload]]) -> Iterator[Stored]:
        while True:
            with self._wake:
                if self._stopping or not self._queue or self._queue[0].wanted != wanted:
                    return
                job = self._queue.popleft()
                self._begun.append(job)
            for number, upload in enumerate(job.uploads):
                if job.given_up:
                    self._count_down(job, len(job.uploads) - number)
                    break
                flight.append((job, upload))
                yield upload.file.source

    def _count_down(self, job: Job, files: int) -> None:
        """So many files of a job are done with."""
        with self._wake:
            job.left -= files
            if job.left:
                return
            self._begun.remove(job)
        job.finish()

    def _end_all(self, error: Refused) -> None:
        """Answer all that were begun; nothing reads their files any more, as the detector's threads have ended."""
        with self._wake:
            ending, self._begun = self._begun, []
        for job in ending:
            job.finish(error)

    def _waiting(self) -> int:
        return sum(job.left for job in (*self._queue, *self._begun))

    def _check(self, files: int) -> None:
        if self._stopping:
            raise Refused(503, SHUTTING_DOWN)
        waiting = self._waiting()
        if waiting + files > self.most:
            soon = min(60, max(1, round(waiting * self._pace)))
            raise Refused(503, f"{waiting} files wait already: try again in {soon} s", retry_after=soon)
