"""Bulk detection as a stream through a Ray cluster.

A process beside the driver lists files; tasks read them and cut them to windows; actors, one a GPU or a few CPUs, run
the model; tasks write the rows. Each stage runs only as far ahead as the next one takes up.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask, TaskPoolStrategy, read_datasource
from ray.data.block import BlockMetadata

from corit_cli.bulk import parquet
from corit_cli.bulk.index import Aside, Seen
from corit_cli.bulk.parts import Parts
from corit_cli.bulk.rows import Row, number_of
from corit_cli.bulk.run import Counting, with_stamp
from corit_cli.bulk.stamps import Stamp, stamp
from corit_cli.bulk.table import located
from corit_cli.cluster.ledger import Ledger, carefully
from corit_cli.cluster.session import ray_module, room
from corit_cli.data.opencv import single_threaded
from corit_cli.data.urls import reason
from corit_cli.data.video import is_video
from corit_cli.detection.eye import Eye
from corit_cli.detection.verdicts import Prediction
from corit_cli.errors import CoritError
from corit_cli.features.stream import Extracted, loaded
from corit_cli.progress import Advance, Progress, quiet

if TYPE_CHECKING:
    from corit_cli.detection.asked import Asked
    from corit_cli.detection.detector import Detector

#: Files that are read in one task, and rows of a part as it is first written.
FILES, ROWS = 32, 256
#: Share of an actor's CPUs that it asks for, and that a task which reads for it does: both find room.
ACTOR, READER = 0.8, 0.1
#: Tasks that write at a time.
WRITERS = 4
#: Times that the files are listed and those without a row done; more than one where the list changed on the way.
PASSES = 3


#: A path, the state of its file, and what was seen in it.
Looked = tuple[str, Stamp | None, Extracted[str]]


@dataclass(frozen=True)
class Plan:
    """What is done to the files: ``paths`` lists them, ``describe`` makes rows of predictions. Relative paths start
    from ``base``. An actor has ``cpus`` CPUs, or a GPU on ``cuda``."""

    paths: Callable[[], Iterable[str]]
    describe: Callable[[Prediction], Row]
    asked: Asked
    base: str
    checksum: bool = False
    cpus: float = 1
    device: str = "cpu"


@dataclass(frozen=True)
class Shipped:
    """A detector on its way to the workers, and what it must be when it arrives."""

    ref: Any
    sha256: str

    @classmethod
    def of(cls, detector: Detector, ray: ModuleType) -> Shipped:
        """Lay a detector where all workers find it."""
        return cls(ray.put(detector), fingerprint(detector))

    def open(self, ray: ModuleType) -> Detector:
        """The detector. Raises CoritError when it is not the one that was sent."""
        detector = ray.get(self.ref)
        if fingerprint(detector) != self.sha256:
            raise CoritError("the detector that arrived is not the one that was sent")
        return detector


def fingerprint(detector: Detector) -> str:
    """SHA-256 of a detector's weights, those of the tower as they are in memory among them."""
    from corit_cli.model.loading import state_sha256

    tower = detector.extractor.backbone.tower.state_dict()
    return state_sha256({f"tower.{k}": v.cpu() for k, v in tower.items()} | detector.checkpoint.tensors)


def detect(
    ray: ModuleType,
    detector: Detector,
    plan: Plan,
    parts: Parts,
    *,
    retry_errors: bool = False,
    progress: Progress = quiet,
    eye: Eye | None = None,
) -> Counter[str]:
    """Add the rows that ``parts`` lacks, or has of files that have changed since; returns the number of rows of each
    verdict, ``error`` among them.

    A worker's death costs no row: what it was doing is done again by another one, and a file that killed its worker,
    in its batch and then alone, gets an error. ``eye`` is the detector's own unless it is given. Raises CoritError
    where no node has room for a worker, where the files cannot be listed, and where rows are missing at the end.
    """
    shipped, eye = Shipped.of(detector, ray), eye or detector.eye(plan.asked)
    with tempfile.TemporaryDirectory() as folder, Aside() as aside:
        for number in range(PASSES):
            known = os.path.join(folder, f"{number}.sqlite")
            with Seen(known) as seen:
                kept = number_of(parts.take_up(seen, plan.base, retry_errors and not number, plan.checksum, aside))
            title = f"detecting ({kept} rows kept)" if kept else "detecting"
            advance = progress(title, Counting(plan.paths(), less=kept).total)
            if _once(ray, shipped, eye, plan, parts, known, advance):
                return parts.merge(aside)
    raise CoritError(f"rows are still missing after {PASSES} passes: go on with --resume")


def _once(ray: ModuleType, shipped: Shipped, eye: Eye, plan: Plan, parts: Parts, known: str, advance: Advance) -> bool:
    """Run all files through the cluster that are not in the index ``known``; whether every one of them has a row."""
    node = ray.get_runtime_context().get_node_id()  # of the driver: what is there lives as long as it does
    ledger = ray.remote(Ledger).options(num_cpus=0, label_selector={"ray.io/node-id": node}).remote()
    context = DataContext.get_current()
    context.target_max_block_size = 1  # byte: every group is a block, and is passed on as soon as it is there
    context.enable_progress_bars = False
    on_gpu = plan.device == "cuda"
    actors = room(ray, 1, "GPU") if on_gpu else room(ray, plan.cpus)
    each = {"num_gpus": 1, "num_cpus": 0} if on_gpu else {"num_cpus": ACTOR * plan.cpus}
    as_blocks = {"batch_size": None, "batch_format": "pyarrow"}
    listing = _Listing(partial(_list, plan, known, ledger))
    paths = read_datasource(listing, override_num_blocks=1, num_cpus=0, label_selector={"ray.io/node-id": node})
    looking = partial(_look, plan, eye, ledger)
    windows = paths.map_batches(looking, num_cpus=1 if on_gpu else READER * plan.cpus, **as_blocks)
    pool = ActorPoolStrategy(size=actors)
    found = windows.map_batches(_Model, fn_constructor_args=(plan, shipped, ledger), compute=pool, **each, **as_blocks)
    few = TaskPoolStrategy(size=WRITERS)
    as_parts = as_blocks | {"batch_size": max(1, ROWS // FILES)}
    rows = found.map_batches(partial(_write, parts), num_cpus=0, compute=few, **as_parts)
    written: dict[str, int] = {}
    errors = 0
    try:
        for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
            for part in batch.to_pylist():
                written[part["part"]] = part["rows"]
                errors += part["errors"]
                advance(part["rows"], note=f"{errors} error{'' if errors == 1 else 's'}" if errors else "")
    except ray.exceptions.RayTaskError as error:  # of a worker, whose traceback says nothing to the user
        raise CoritError(reason(error.cause)) from None
    return ray.get(ledger.listed.remote()) == sum(written.values())


# --- the stages, as they run on workers: groups of files, then of what is known of them -------------------


class _Listing(Datasource):
    """What a function yields, as blocks, in one process."""

    def __init__(self, blocks: Callable[[], Iterator[Any]]) -> None:
        super().__init__()
        self._blocks = blocks

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *more: Any, **others: Any) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(self._blocks, unknown)]


def _list(plan: Plan, known: str, ledger: Any) -> Iterator[Any]:
    """Paths that are to get a row, ``FILES`` at a time."""
    os.chdir(plan.base)
    count = 0
    with Seen(known) as done, Seen() as once:
        todo = (path for path in plan.paths() if path not in done and once.add(path))
        while group := list(islice(todo, FILES)):
            count += len(group)
            yield _pickled(group)
    ray_module().get(ledger.was_listed.remote(count))


def _look(plan: Plan, eye: Eye, ledger: Any, block: Any) -> Any:
    """Paths to stamps and windows, as tuples."""
    if eye.faces != "off":
        single_threaded()

    def look(path: str) -> Looked:
        place = located(path, plan.base)
        found = stamp(place, plan.checksum)
        # A video is read where the model is.
        return path, found, Extracted(place) if is_video(place) else loaded(eye.look, place)

    def give_up(path: str, why: str) -> Looked:
        place = located(path, plan.base)
        return path, stamp(place, plan.checksum), Extracted(place, error=why)

    paths = _unpickled(block)
    return _pickled(carefully(ledger, "reading", paths, str, lambda some: [look(path) for path in some], give_up))


class _Model:
    """Windows to rows, by a detector that stays in memory."""

    def __init__(self, plan: Plan, shipped: Shipped, ledger: Any) -> None:
        import torch

        torch.set_num_threads(max(1, round(plan.cpus)))
        self.plan, self.ledger = plan, ledger
        self.detector = shipped.open(ray_module()).on(plan.device)

    def __call__(self, block: Any) -> Any:
        items: list[Looked] = _unpickled(block)
        rows = carefully(self.ledger, "scoring", items, lambda item: item[0], self._score, self._give_up)
        return _pickled(rows)

    def _score(self, items: list[Looked]) -> list[Row]:
        found = self.detector.predict_seen([seen for _, _, seen in items], self.plan.asked)
        return [
            with_stamp(self.plan.describe(replace(prediction, path=path)), state)
            for (path, state, _), prediction in zip(items, found, strict=True)
        ]

    def _give_up(self, item: Looked, why: str) -> Row:
        path, state, _ = item
        return with_stamp(self.plan.describe(Prediction(path, None, None, 0.0, why)), state)


def _write(parts: Parts, block: Any) -> Any:
    """Rows to a part, and what is to be said of it."""
    rows: list[Row] = _unpickled(block)
    errors = sum(row["error"] is not None for row in rows)
    return parquet.arrow().table({"part": [parts.write(rows)], "rows": [len(rows)], "errors": [errors]})


def _pickled(group: list[Any]) -> Any:
    """A group as a table of one row: Ray Data divides and joins blocks between rows."""
    pa = parquet.arrow()
    return pa.table({"group": pa.array([pickle.dumps(group)], pa.large_binary())})


def _unpickled(block: Any) -> list[Any]:
    """What is in all the groups of a block."""
    return [item for group in block["group"].to_pylist() for item in pickle.loads(group)]
