"""``corit detect --out``: verdicts on very many files, in a table that can be gone on with."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

from corit_cli.bulk.conditions import begun
from corit_cli.cli.console import Bars, err, escape, importing, working
from corit_cli.cli.inputs import STDIN, Left, collect
from corit_cli.cli.options import check_file, opt
from corit_cli.cli.with_ray import check
from corit_cli.data.urls import is_url
from corit_cli.errors import CoritError, NotMultiplied
from corit_cli.model.settings import PRECISIONS
from corit_cli.report.document import as_dict

if TYPE_CHECKING:
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
                raise CoritError(f"{', '.join(given)} goes with --out FILE")
            return
        if self.retry_errors and not self.resume:
            raise CoritError("--retry-errors goes with --resume")
        given = [_flag(name) for name, is_given in others.items() if is_given]
        if given:
            raise CoritError(f"{', '.join(given)} does not go with --out, which writes a table instead")
        check(self.ray, self.num_cpus)
        if self.ray is None and is_url(self.out):
            raise CoritError(f"at a URL a folder of parts is written, by --ray: name a file here instead of {self.out}")
        is_file = PurePosixPath(self.out).suffix in (".jsonl", ".csv", ".parquet") or os.path.isfile(self.out)
        if self.ray is not None and is_file:
            raise CoritError(f"with --ray a folder is written, not a file: name one instead of {self.out}")

    def load(self, checkpoint: str | None, device: str, precision: str) -> Detector:
        """The detector, in the arithmetic of :meth:`precision_of`. Raises CoritError as :meth:`Detector.load` does."""
        with importing():
            from corit_cli.detection.detector import Detector

        begun_in = self.precision_of(precision)
        try:
            return Detector.load(checkpoint, device, begun_in)
        except NotMultiplied as error:
            if begun_in != precision:
                raise CoritError(f"{self.out} was begun with --precision {begun_in}: {error}") from None
            raise

    def precision_of(self, asked: str) -> str:
        """``auto`` as the table that is gone on with was begun, on another kind of machine perhaps; fp32 with Ray,
        whose machines may differ."""
        if asked != "auto" or self.out is None:
            return asked
        found = begun(self.out).get("precision") if self.resume else None
        return found if found in PRECISIONS else "fp32" if self.ray is not None else asked

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


@dataclass(frozen=True)
class Found:
    """The files that ``sources`` stand for, as the command line has it."""

    sources: tuple[str, ...]
    recursive: bool
    null: bool

    def paths(self, left: Left | None = None) -> Iterator[str]:
        """All of them, some perhaps twice; what is left out of folders is told to ``left``."""
        from corit_cli.bulk.sources import listed

        left = left or Left()

        def collected(paths: Sequence[str], recursive: bool) -> Iterator[str]:
            return collect(paths, recursive, left, self.null, once=False)

        return listed(self.sources, self.recursive, collected, left)

    def of(self, part: Shard) -> Iterator[str]:
        """Those of a part."""
        return (path for path in self.paths() if path in part)

    def some(self, part: Shard, left: Left | None = None) -> tuple[str, Iterator[str]]:
        """The first of all, and those of a part. Raises CoritError at once where there is no file, in whichever
        part."""
        paths = self.paths(left)
        first = list(islice(paths, 1))
        if not first:
            hint = "" if self.recursive else " (see --recursive)"
            raise CoritError(f"no images or videos in {', '.join(self.sources)}{hint}")
        return first[0], (path for path in chain(first, paths) if path in part)

    def folder(self, first: str) -> str | None:
        """Where relative sources start from, if there are any. Names in a list, or on standard input, are taken to be
        as the ``first`` file's; if other sources stand beside it, to be relative."""
        from corit_cli.bulk.sources import LISTS

        named = list(self.sources)
        if any(source == STDIN or source.lower().endswith(LISTS) for source in self.sources):
            named = [*filter(STDIN.__ne__, named), first] if len(named) == 1 else [STDIN]
        return None if all(is_url(name) or os.path.isabs(name) for name in named) else os.getcwd()


def into_table(
    many: Many, detector: Detector, found: Found, left: Left, workers: int | None, looked_at: dict[str, Any]
) -> Counter[str]:
    """Score files into the table that ``many`` asks for; returns the number of rows of each verdict. ``looked_at``
    holds what :meth:`Detector.predict` is asked for. Raises CoritError where there is no file at all."""
    from corit_cli.bulk.rows import number_of
    from corit_cli.bulk.run import Counting, conditions, score
    from corit_cli.bulk.table import Table

    if many.ray is not None:
        if workers is not None:
            raise CoritError("with --ray images are decoded by the cluster's workers: leave out --workers")
        return _into_folder(many, detector, found, looked_at)
    part, out = many.part, Path(many.out or "")
    check_file(out)

    def predict(paths: Iterable[str]) -> Iterator[Prediction]:
        return detector.predict(paths, workers, **looked_at)

    predict(())  # options that do not go together are refused before anything is written
    first, paths = found.some(part, left)
    about = conditions(detector, looked_at, part, many.checksum) | {"folder": found.folder(first)}
    how = {"resume": many.resume, "retry_errors": many.retry_errors, "checksum": many.checksum}
    with Table(out, about, **how) as table, Bars() as bars:
        kept = number_of(table.counts)
        total = None if STDIN in found.sources else Counting(found.of(part), less=kept).total
        try:
            advance = bars(f"detecting ({kept} rows kept)" if kept else "detecting", total)
            score(table, paths, predict, as_dict, advance)
        except KeyboardInterrupt:
            rows, file = number_of(table.counts), escape(str(out))
            err.print(f"{rows} rows are kept in {file}: repeat the command with --resume to go on", soft_wrap=True)
            raise
        return table.counts


def _into_folder(many: Many, detector: Detector, found: Found, looked_at: dict[str, Any]) -> Counter[str]:
    """As :func:`into_table`, on a Ray cluster, into a folder of parts."""
    if STDIN in found.sources:
        raise CoritError("with --ray files are listed on the cluster: give a list in a file instead of -")
    first, _ = found.some(many.part)
    from corit_cli.cluster.session import session

    with working("looking for the cluster"):
        stack = ExitStack()
        ray = stack.enter_context(session(many.ray or ""))
    with stack:
        from corit_cli.bulk.parts import Parts
        from corit_cli.bulk.rows import number_of
        from corit_cli.bulk.run import conditions
        from corit_cli.cluster.detect import Plan, detect
        from corit_cli.detection.asked import Asked

        part, begun = many.part, time.monotonic()
        asked = Asked(**looked_at | {"faces": looked_at["faces"] or detector.faces_by_default()})
        asked.check()
        on_gpu = many.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        if many.device == "cuda" and not on_gpu:
            raise CoritError("no node of the cluster has a GPU: give --device cpu")
        if on_gpu and detector.extractor.precision == "int8":
            raise CoritError("8-bit products are a processor's: give --device cpu, or another --precision")
        plan = Plan(
            partial(found.of, part),
            as_dict,
            asked,
            os.getcwd(),
            many.checksum,
            many.num_cpus or 1,
            "cuda" if on_gpu else "cpu",
        )
        about = conditions(detector, looked_at, part, many.checksum) | {"folder": found.folder(first)}
        parts = Parts.begin(many.out or "", about, many.resume, stack)
        try:
            with Bars() as bars:
                counts = detect(ray, detector, plan, parts, retry_errors=many.retry_errors, progress=bars)
        except KeyboardInterrupt:
            err.print(f"rows are kept in {escape(many.out or '')}: repeat the command with --resume to go on")
            raise
        nodes = sum(node["Alive"] for node in ray.nodes())
        took = {"seconds": round(time.monotonic() - begun, 1), "nodes": nodes, "device": plan.device}
        parts.summarise({"rows": number_of(counts), "verdicts": dict(sorted(counts.items())), "last_run": took} | about)
        return counts
