"""Scoring files into a table, on one machine."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from corit_cli.bulk.rows import Row
from corit_cli.bulk.stamps import Shard, Stamp, stamp
from corit_cli.bulk.table import Table
from corit_cli.features.stream import ahead
from corit_cli.progress import Advance
from corit_cli.version import __version__

if TYPE_CHECKING:
    from corit_cli.detection.detector import Detector
    from corit_cli.detection.verdicts import Prediction

Predict = Callable[[Iterable[str]], Iterator["Prediction"]]


def conditions(detector: Detector, looked_at: Mapping[str, Any], part: Shard, checksum: bool) -> dict[str, Any]:
    """All that a file's row depends on besides the file: the program, the detector, what :meth:`Detector.predict` is
    asked for, and which files get one."""
    checkpoint = detector.checkpoint
    faces = looked_at["faces"] or detector.faces_by_default()
    return {
        "corit": __version__,
        **({"origin": checkpoint.origin} if checkpoint.origin else {}),
        "backbone": checkpoint.backbone["sha256"],
        "detector": checkpoint.sha256,
        "precision": detector.extractor.precision,
        "thresholds": asdict(checkpoint.thresholds),
        "face_thresholds": checkpoint.faces and asdict(checkpoint.faces.thresholds),
        **looked_at,
        "faces": faces,
        "shard": str(part),
        "checksum": checksum,
    }


def score(
    table: Table, paths: Iterable[str], predict: Predict, describe: Callable[[Prediction], Row], advance: Advance
) -> None:
    """Add the rows of those ``paths`` that have none yet, as they are ready; ``advance`` is told of each.

    ``predict`` gives one prediction a path, in order, and ``describe`` makes a row of it. A file's stamp is taken
    before it is read: one that is changed meanwhile is scored again when the table is taken up.
    """
    stamps: deque[Stamp | None] = deque()

    def stamped() -> Iterator[str]:
        look = ahead(lambda path: (path, stamp(path, table.checksum)), table.todo(paths), workers=4, window=64)
        for path, found in look:
            stamps.append(found)
            yield path

    for prediction in predict(stamped()):
        table.add(with_stamp(describe(prediction), stamps.popleft()))
        errors = table.counts["error"]
        advance(note=f"{errors} error{'' if errors == 1 else 's'}" if errors else "")
    table.finish()


def with_stamp(row: Row, found: Stamp | None) -> Row:
    """A row with the state of the file that it is about; a checksum only where one was taken."""
    known = asdict(found or Stamp())
    return row | {name: value for name, value in known.items() if name != "sha256" or value is not None}


class Counting:
    """Counts, in a thread of its own, what work there will be: ``total()`` is None until it is known."""

    def __init__(self, items: Iterable[object], less: int = 0) -> None:
        self._items, self._less = items, less
        self._found: int | None = None
        self.thread = threading.Thread(target=self._count, daemon=True)
        self.thread.start()

    def _count(self) -> None:
        try:
            found = sum(1 for _ in self._items) - self._less
            self._found = found if found >= 0 else None  # rows were kept that are of other files
        except Exception:  # whoever reads the files will be told
            self._found = None

    def total(self) -> int | None:
        """How many there are."""
        return self._found
