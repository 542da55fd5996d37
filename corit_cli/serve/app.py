"""The service as an ASGI application: verdicts as JSON, reports as HTML, the page, health and metrics."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from corit_cli.data.stored import paths_in_memory
from corit_cli.detection.asked import FACES, Asked
from corit_cli.detection.detector import Detector
from corit_cli.detection.verdicts import Prediction
from corit_cli.errors import CoritError
from corit_cli.report.case import About
from corit_cli.report.casebook import Page
from corit_cli.report.document import as_dict, heading
from corit_cli.report.drawn import FEW, draw
from corit_cli.serve.guard import Guard, refusal
from corit_cli.serve.limits import SHUTTING_DOWN, Limits, Memory, Refused
from corit_cli.serve.metrics import Metrics
from corit_cli.serve.scorer import Job, Scorer, See, Wanted
from corit_cli.serve.upload import Upload, receive

MOST_FRAMES = 256
#: Styles and script of the report, which the page shares.
_REPORT = Path(__file__).parent.parent / "report"
_PAGE = Path(__file__).parent / "page"
_FILES = {
    "/": _PAGE / "index.html",
    "/page/casebook.css": _REPORT / "casebook.css",
    "/page/casebook.js": _REPORT / "casebook.js",
}
#: A report runs its own script, and may do nothing else, whoever opens it.
_REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)


class Options(BaseModel):
    """Options of a request: those of ``corit detect`` that say how a file is looked at."""

    model_config = ConfigDict(extra="forbid")

    strict: bool = False
    faces: Literal[FACES] | None = None  # type: ignore[valid-type]
    stability: bool = False
    provenance: bool = True
    frames: int = Field(32, ge=1, le=MOST_FRAMES)


class ReportOptions(Options):
    """``heatmap``: whether they may be drawn, which they are for a few files, as by ``corit detect --html``."""

    heatmap: bool = True


class Service:
    """The application ``app`` around one detector, and the ``scorer`` that has it; ``close`` ends that.
    ``abandon`` may be called from the event loop alone."""

    def __init__(
        self,
        detector: Detector,
        limits: Limits | None = None,
        token: str | None = None,
        hosts: Sequence[str] = (),
        workers: int | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.memory = Memory(self.limits.held, self.limits.uploads)
        self.metrics = Metrics(lambda: self.scorer.waiting, lambda: self.memory.taken)
        self.scorer = Scorer(detector, self.limits.waiting, workers, self.metrics.run)
        self._faces = detector.faces_by_default()
        self._arriving: set[asyncio.Future[list[Upload]]] = set()
        self._guarded = token is not None
        self.app = self._application(token, hosts)

    def _application(self, token: str | None, hosts: Sequence[str]) -> FastAPI:
        app = FastAPI(title="corit", docs_url=None, redoc_url=None, openapi_url=None)
        app.add_middleware(Guard, token=token, hosts=hosts, metrics=self.metrics)
        app.add_exception_handler(Refused, lambda _, error: refusal(error))
        app.add_exception_handler(CoritError, lambda _, error: _error(400, str(error)))
        app.add_exception_handler(RequestValidationError, lambda _, error: _error(400, _invalid(error)))
        app.add_exception_handler(
            HTTPException, lambda _, error: _error(error.status_code, error.detail.lower(), error.headers)
        )
        app.add_exception_handler(ClientDisconnect, lambda _, error: Response(status_code=499))
        app.add_api_route("/v1/detect", self.detect, methods=["POST"])
        app.add_api_route("/v1/report", self.report, methods=["POST"])
        app.add_api_route("/health", self.health, methods=["GET", "HEAD"])
        app.add_api_route("/metrics", self.told, methods=["GET"])
        for address, file in _FILES.items():
            app.add_api_route(address, _giving(file), methods=["GET", "HEAD"])
        app.mount("/page", StaticFiles(directory=_PAGE))
        return app

    async def detect(self, request: Request, options: Annotated[Options, Query()]) -> Response:
        """Verdicts on the files of a form, as ``corit detect --json`` prints them."""
        wanted = self._wanted(request, options)
        rows: list[dict[str, Any]] = []
        uploads = await self._received(request)
        await self._look(request, uploads, wanted, lambda _, __, prediction: rows.append(as_dict(prediction)))
        # As the command writes it: bytes of a name that are no UTF-8 stand as escapes.
        document = json.dumps(heading(self.scorer.detectors[options.strict]) | {"results": rows})
        return Response(document, media_type="application/json")

    async def report(self, request: Request, options: Annotated[ReportOptions, Query()]) -> Response:
        """The report on the files of a form, as ``corit detect --html`` writes it."""
        wanted = self._wanted(request, options)
        said = options.model_dump(exclude_unset=True).items()
        asked = "&".join(f"{name}={str(value).lower()}" for name, value in said)
        checkpoint = self.scorer.detectors[options.strict].checkpoint
        about = About.of(checkpoint, datetime.now(timezone.utc), f"POST /v1/report{'?' * bool(asked)}{asked}")
        page = Page(about, io.BytesIO())

        uploads = await self._received(request)
        mapped = options.heatmap and wanted.faces != "only" and len(uploads) <= FEW
        why = f"they are drawn for up to {FEW} files, looked at as a whole, unless heatmap=false"

        def see(detector: Detector, upload: Upload, prediction: Prediction) -> None:
            source = upload.file.source
            drawn = draw(detector, prediction, source, mapped, wanted.frames, not_mapped=why)
            page.add(prediction, drawn.image, drawn.painted, drawn.frames, drawn.no_heatmap, source)

        await self._look(request, uploads, wanted, see)
        text = await asyncio.to_thread(lambda: "".join(page.pieces()).encode())
        headers = {
            "content-security-policy": _REPORT_POLICY,
            "content-disposition": 'attachment; filename="corit-report.html"',
        }
        return Response(text, media_type="text/html", headers=headers)

    def health(self) -> Response:
        """Whether files can be looked at, videos among them, and whether that takes a token."""
        return (
            JSONResponse({"status": "ok", "token": self._guarded, "videos": paths_in_memory()})
            if self.scorer.alive
            else _error(503, "the detector does not run")
        )

    def told(self) -> Response:
        """Counters as Prometheus reads them."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    def _wanted(self, request: Request, options: Options) -> Wanted:
        given = [name for name, _ in request.query_params.multi_items()]
        for name in given:
            if given.count(name) > 1:
                raise CoritError(f"{name} is given more than once")
        faces = options.faces or self._faces
        Asked(faces, options.stability, options.provenance, options.frames).check()
        return Wanted(options.strict, faces, options.stability, options.provenance, options.frames)

    async def _received(self, request: Request) -> list[Upload]:
        """The files of a request. Raises Refused where they cannot be taken, at once where too many wait already."""
        self.scorer.check()
        arriving = asyncio.ensure_future(receive(request, self.limits, self.memory))
        self._arriving.add(arriving)
        try:
            return await arriving
        except asyncio.CancelledError:
            if self.scorer.alive:
                raise
            raise Refused(503, SHUTTING_DOWN) from None
        finally:
            self._arriving.discard(arriving)

    async def _look(self, request: Request, uploads: list[Upload], wanted: Wanted, see: See) -> None:
        """Have files looked at, and forgotten. Raises Refused where that cannot be done, or not in time."""

        def seen(detector: Detector, upload: Upload, prediction: Prediction) -> None:
            self.metrics.file(prediction)
            see(detector, upload, replace(prediction, path=upload.name))

        job = Job(uploads, wanted, seen)
        self.scorer.submit(job)
        done, gone = asyncio.wrap_future(job.done), asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait((done, gone), timeout=self.limits.answer, return_when=asyncio.FIRST_COMPLETED)
            if done.done():
                done.result()
            elif gone.done():
                raise ClientDisconnect
            else:
                raise Refused(504, f"no result within {self.limits.answer:g} seconds")
        finally:
            self.scorer.give_up(job)
            gone.cancel()
            done.cancel()

    def abandon(self) -> None:
        """Answer all requests that are under way with an error: the service ends."""
        self.scorer.abandon()
        for arriving in self._arriving:
            arriving.cancel()

    def close(self, seconds: float = 1.0) -> bool:
        """End the scoring thread; whether it ended within so many seconds."""
        self.scorer.abandon()
        return self.scorer.join(seconds)


def _giving(file: Path) -> Callable[[], Response]:
    """What answers with a file. It takes no argument: FastAPI would let the address set it."""

    def give() -> Response:
        return FileResponse(file)

    return give


async def _gone(request: Request) -> None:
    """Returns when the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _error(status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": reason}, status, headers)


def _invalid(error: RequestValidationError) -> str:
    """The first thing that is wrong with a request's options."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg'][:1].lower()}{first['msg'][1:]}"
