"""``corit detect --out``: verdicts on very many files, in a table that can be gone on with."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

from corit_cli.cli.console import Bars, err, escape, working
from corit_cli.cli.options import check_file, opt
from corit_cli.cli.rows import as_dict
from corit_cli.cli.with_ray import check
from corit_cli.errors import CoritError

if TYPE_CHECKING:
    from corit_cli.bulk.sources import Collect
    from corit_cli.bulk.stamps import Shard
    from corit_cli.detection.detector import Detector
    from corit_cli.detection.verdicts import Prediction

PANEL = "Many files"

Out = Annotated[
    str | None, opt("--out -o", "Write rows to a table, .jsonl, .csv or .parquet, instead.", PANEL, metavar="FILE")
]
Resume = Annotated[bool, opt("--resume", "Go on with the table that is there, or begin it.", PANEL)]
RetryErrors = Annotated[bool, opt("--retry-errors", "Also try files again that could not be scored.", PANEL)]
Checksum = Annotated[
    bool, opt("--checksum", "Tell by content, not by size and time, whether a file has changed.", PANEL)
]
ShardOption = Annotated[
    str | None, opt("--shard", "Only part I of N of the files, always the same ones.", PANEL, metavar="I/N")
]


@dataclass(frozen=True)
class Many:
    """What the options of this panel say."""

    out: str | None
    resume: bool
    retry_errors: bool
    checksum: bool
    shard: str | None
    ray: str | None
    num_cpus: float | None
    device: str

    def check(self, **others: bool) -> None:
        """Raise CoritError for options that do not go together; ``others`` are ways of output that may be asked for."""
        _ = self.part
        if self.out is None:
            alone = ("resume", "retry_errors", "checksum", "shard", "ray", "num_cpus")
            given = [_flag(name) for name in alone if getattr(self, name)]
            if given:
                raise CoritError(f"{', '.join(given)} goes with --out")
            return
        if self.retry_errors and not self.resume:
            raise CoritError("--retry-errors goes with --resume")
        given = [_flag(name) for name, is_given in others.items() if is_given]
        if given:
            raise CoritError(f"{', '.join(given)} does not go with --out, which writes a table instead")
        check(self.ray, self.num_cpus)
        if self.ray is not None and PurePosixPath(self.out).suffix in (".jsonl", ".csv", ".parquet"):
            raise CoritError(f"with --ray a folder is written, not a file: name one instead of {self.out}")

    @property
    def part(self) -> Shard:
        """Raises CoritError for a text that names no part."""
        from corit_cli.bulk.stamps import Shard

        found = re.fullmatch(r"(\d+)/(\d+)", self.shard or "1/1")
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise CoritError(f"--shard takes I/N with I from 1 to N, as in 3/16, not {self.shard!r}")
        return Shard(int(found[1]), int(found[2]))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def into_table(
    many: Many,
    detector: Detector,
    sources: Sequence[str],
    recursive: bool,
    collect: Collect,
    workers: int | None,
    looked_at: dict[str, Any],
) -> Counter[str]:
    """Score files into the table that ``many`` asks for; returns the number of rows of each verdict. ``looked_at``
    holds what :meth:`Detector.predict` is asked for. Raises CoritError where there is no file at all."""
    from corit_cli.bulk.run import Counting, conditions, score
    from corit_cli.bulk.sources import listed
    from corit_cli.bulk.table import Table

    if many.ray is not None:
        return _into_folder(many, detector, sources, recursive, collect, looked_at)
    part, out = many.part, Path(many.out or "")
    check_file(out)

    def own() -> Iterator[str]:
        return (path for path in listed(sources, recursive, collect) if path in part)

    def predict(paths: Iterable[str]) -> Iterator[Prediction]:
        return detector.predict(paths, workers, **looked_at)

    about = conditions(detector, looked_at, part, many.checksum)
    how = {"resume": many.resume, "retry_errors": many.retry_errors, "checksum": many.checksum}
    predict(())  # options that do not go together are refused before anything is written
    with Table(out, about, **how) as table, Bars() as bars:
        kept = table.counts.total()
        total = None if "-" in sources else Counting(own(), less=kept).total
        try:
            score(table, own(), predict, as_dict, bars(f"detecting ({kept} rows kept)" if kept else "detecting", total))
        except KeyboardInterrupt:
            rows, file = table.counts.total(), escape(str(out))
            err.print(f"{rows} rows are kept in {file}: repeat the command with --resume to go on", soft_wrap=True)
            raise
        _check_some(table.counts, part, sources, recursive)
        return table.counts


def _into_folder(
    many: Many, detector: Detector, sources: Sequence[str], recursive: bool, collect: Collect, looked_at: dict[str, Any]
) -> Counter[str]:
    """As :func:`into_table`, on a Ray cluster, into a folder of parts."""
    if "-" in sources:
        raise CoritError("with --ray files are listed on the cluster: give a list in a file instead of -")
    from corit_cli.cluster.session import session

    with working("looking for the cluster"):
        stack = ExitStack()
        ray = stack.enter_context(session(many.ray or ""))
    with stack:
        from corit_cli.bulk.parts import Parts
        from corit_cli.bulk.run import conditions
        from corit_cli.bulk.sources import listed
        from corit_cli.cluster.detect import Plan, detect
        from corit_cli.detection.detector import Asked

        part, begun = many.part, time.monotonic()

        def own() -> Iterator[str]:
            return (path for path in listed(sources, recursive, collect) if path in part)

        asked = Asked(**looked_at | {"faces": looked_at["faces"] or detector.faces_by_default()})
        asked.check()
        on_gpu = many.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        if many.device == "cuda" and not on_gpu:
            raise CoritError("no node of the cluster has a GPU: give --device cpu")
        plan = Plan(own, as_dict, asked, os.getcwd(), many.checksum, many.num_cpus or 1, "cuda" if on_gpu else "cpu")
        about = conditions(detector, looked_at, part, many.checksum)
        parts = Parts.begin(many.out or "", about, many.resume)
        try:
            with Bars() as bars:
                counts = detect(ray, detector, plan, parts, retry_errors=many.retry_errors, progress=bars)
        except KeyboardInterrupt:
            err.print(f"rows are kept in {escape(many.out or '')}: repeat the command with --resume to go on")
            raise
        _check_some(counts, part, sources, recursive)
        nodes = sum(node["Alive"] for node in ray.nodes())
        took = {"seconds": round(time.monotonic() - begun, 1), "nodes": nodes, "device": plan.device}
        parts.summarise({"rows": counts.total(), "verdicts": dict(sorted(counts.items())), "last_run": took} | about)
        return counts


def _check_some(counts: Counter[str], part: Shard, sources: Sequence[str], recursive: bool) -> None:
    if not counts and part.count == 1:
        raise CoritError(f"no images or videos in {', '.join(sources)}{'' if recursive else ' (see --recursive)'}")
