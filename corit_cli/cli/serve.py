"""``corit serve``: verdicts and reports over HTTP, and a page to drop pictures on."""

from __future__ import annotations

import ipaddress
import os
from typing import Annotated

from corit_cli.cli import options
from corit_cli.cli.console import err, escape, warn, working
from corit_cli.cli.options import opt
from corit_cli.errors import CoritError

REACH, LIMITS = "Who may reach it", "Limits"
MIB = 1 << 20
#: Where the token may stand, so that no list of processes shows it.
TOKEN = "CORIT_TOKEN"


def serve(
    checkpoint: options.Checkpoint = None,
    host: Annotated[str, opt("--host", "Address to listen on; 0.0.0.0 is every one.", REACH)] = "127.0.0.1",
    port: Annotated[int, opt("--port", "Port to listen on; 0 is any free one.", REACH, min=0, max=65535)] = 8000,
    token: Annotated[
        str | None, opt("--token", f"What requests must bring; better given in the environment, as {TOKEN}.", REACH)
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        opt("--allow-host", "A name that browsers may call it by, besides localhost and addresses.", REACH),
    ] = None,
    max_file: Annotated[float, opt("--max-file", "Size of a file.", LIMITS, min=0.001, metavar="MIB")] = 64,
    max_request: Annotated[float, opt("--max-request", "Size of a request.", LIMITS, min=0.001, metavar="MIB")] = 128,
    max_files: Annotated[int, opt("--max-files", "Files in a request.", LIMITS, min=1)] = 32,
    queue: Annotated[int, opt("--queue", "Files that may wait, of all requests.", LIMITS, min=1)] = 256,
    memory: Annotated[float, opt("--memory", "Size of all uploads held.", LIMITS, min=0.001, metavar="MIB")] = 1024,
    arrival: Annotated[
        float, opt("--arrival", "Time in which a request must have come.", LIMITS, min=0.1, metavar="SECONDS")
    ] = 60,
    timeout: Annotated[
        float, opt("--timeout", "Time in which it is answered from then on.", LIMITS, min=0.1, metavar="SECONDS")
    ] = 120,
    workers: options.Workers = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    config: options.Config = None,
) -> None:
    """Answer over HTTP what corit detect says of files: a page to drop pictures on, JSON, reports.

    \b
    corit serve
    curl -F file=@photo.jpg http://127.0.0.1:8000/v1/detect
    CORIT_TOKEN=... corit serve --host 0.0.0.0 --allow-host corit.example

    Needs FastAPI: pip install '.\\[serve]'. Uploads stay in memory until they are answered; docs/service.md has more.
    """
    token = token if token is not None else os.environ.get(TOKEN)
    if token is not None and (not token.strip() or token != token.strip()):
        raise CoritError("the token is empty, or has blanks around it")
    if token is not None and not (token.isascii() and token.isprintable()):
        raise CoritError("the token may hold letters, digits and signs of ASCII alone")
    try:
        from corit_cli.serve.app import Service
        from corit_cli.serve.server import affordable, listen, run
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "corit_cli":
            raise
        raise CoritError(f"corit serve needs the package {error.name}: pip install '.[serve]'") from None
    from corit_cli.detection.detector import Detector
    from corit_cli.serve.limits import Limits

    sizes = (round(size * MIB) for size in (max_file, max_request, memory))
    file, request, held = sizes
    request, max_files = min(request, held), min(max_files, queue)  # what has no room is refused for good, not for now
    uploads = max(Limits.uploads, queue + max_files)
    limits = affordable(Limits(file, request, max_files, queue, held, arrival, timeout, uploads))
    listener = listen(host, port)
    with working("loading the detector"):
        detector = Detector.load(checkpoint, device, precision)
    if token is None and not _only_here(host):
        warn("no token is asked for, and other machines can reach this address: whoever does may use it")
    service = Service(detector, limits, token, [host, *(allow_host or [])], workers)

    def started() -> None:
        shown = f"[{host}]" if ":" in host else host
        err.print(escape(f"corit serve: http://{shown}:{listener.getsockname()[1]}/"), soft_wrap=True)

    run(service, listener, started)


def _only_here(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
